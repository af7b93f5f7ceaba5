"""Which gradient elements travel: the methods, as (init, apply) pairs."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap, sequential_vmap

from agsfl import fab, topk
from agsfl.types import Selection, Sparsifier

# A wider window holds more of the ranks that matter, a narrower one sorts
# faster; at this width both cost the same.
_FAB_WINDOW = 1024


def select(
    accumulated: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    client_mask: jax.Array,
    k_up: jax.Array,
    axes: tuple[str, ...] = (),
) -> Selection:
  """Splits the accumulated gradients along a choice of coordinates.

  Args:
    accumulated: [N, D] f32, a_i.
    weights: [N] f32, C_i / C.
    mask: [D] bool, J.
    client_mask: [N, D] bool, J_i and J together.
    k_up: [] i32, elements that each client sends.
    axes: mesh axes over which clients are split; () for none.

  Returns:
    The selection; `sent + residual == accumulated`, bit for bit but for the
    sign of a zero.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1: the divisor is always C.
  """
  aggregate = lax.psum(_weighted_sum(weights, accumulated, client_mask), axes)
  return Selection(
      mask=mask,
      client_mask=client_mask,
      sent=jnp.where(client_mask, accumulated, 0.0),
      residual=jnp.where(client_mask, 0.0, accumulated),
      aggregate=aggregate,
      k_up=k_up,
      k_down=jnp.sum(mask),
  )


@sequential_vmap
def _weighted_sum(weights, accumulated, client_mask):
  """[D] sum over clients of what they send; one k after another, for memory.

  A product: XLA's CPU sum over the first axis is forty times slower.
  """
  sent = jnp.where(client_mask, accumulated, 0.0)
  return jnp.dot(weights, sent, precision=lax.Precision.HIGHEST)


def _shared_choice(choose):
  """A choice for one k, which under vmap over k alone shares its work.

  Under any other vmap (seeds) the choices are made one after another, so that
  branches stay branches.

  Args:
    choose: (accumulated, active, ks [S]) -> a pytree with leading axis S.
  """
  in_turn = sequential_vmap(choose)

  @custom_vmap
  def choose_one(accumulated, active, k):
    return jax.tree.map(
        lambda x: x[0], in_turn(accumulated, active, k[None])
    )

  @choose_one.def_vmap
  def batched(axis_size, in_batched, accumulated, active, k):
    del axis_size
    if in_batched[0] or in_batched[1]:
      chosen = jax.vmap(
          in_turn, [0 if batched else None for batched in in_batched]
      )(accumulated, active, k[..., None])
      chosen = jax.tree.map(lambda x: x[:, 0], chosen)
    else:
      chosen = in_turn(accumulated, active, k)
    return chosen, jax.tree.map(lambda _: True, chosen)

  return choose_one


def fab_top_k(
    window: int = _FAB_WINDOW, axes: tuple[str, ...] = ()
) -> Sparsifier:
  """Fairness-aware bidirectional top-k.

  J takes every client's kappa largest entries, with kappa as large as k
  allows, then the largest of the (kappa+1)-th ones. So |J| = k, and every
  client contributes at least floor(k / N) elements. Zeros are entries like
  others, the smallest; equal magnitudes go by index. k is clipped to D. A
  client of weight 0 sends nothing.

  Args:
    window: entries of each client that are sorted at a time; it changes the
      cost, never the result.
    axes: mesh axes over which clients are split; () for none.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FAB-top-k.
  """
  choose = _shared_choice(
      functools.partial(fab.choose, width=window, axes=axes)
  )

  def init(num_clients, dim):
    del num_clients, dim
    return ()

  def apply(key, accumulated, weights, k, state):
    del key
    chex.assert_rank([accumulated, weights, k], [2, 1, 0])
    chex.assert_type([accumulated, k], [jnp.float32, jnp.int32])
    k = jnp.minimum(k, accumulated.shape[1])
    mask, last = choose(accumulated, weights > 0, k)
    client_mask = fab.at_or_above(topk.magnitude_key(accumulated), last)
    client_mask &= mask[None]
    return select(accumulated, weights, mask, client_mask, k, axes), state

  return Sparsifier(init, apply)
