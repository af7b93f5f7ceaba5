"""What all clients send and what the server sends back, for several k."""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from agsfl.sparsifiers import topk
from agsfl.types import PyTree, Selection, Split

# Numbers per element of a message: its index and its value, or the value alone
# where both sides know the indices.
SPARSE, INDICES_KNOWN = 2, 1


class Choice(NamedTuple):
  """What is sent for one k; for several, with a leading axis S.

  Attributes:
    mask: [D] bool, J.
    clients: with a leading axis N, each client's J_i: either a mask [D] bool,
      or its last `topk.Entry`; for an empty J_i the place above all entries.
    aggregate: [D] f32, b: the weighted sum of what was sent, 0 outside J.
    contributed: [N] i32, |J_i and J|.
  """

  mask: jax.Array
  clients: jax.Array | topk.Entry
  aggregate: jax.Array
  contributed: jax.Array


class Choose(Protocol):
  """A method's choices for several k on the same gradients."""

  def __call__(
      self, accumulated: jax.Array, weights: jax.Array, ks: jax.Array, /
  ) -> Choice:
    """Chooses.

    Args:
      accumulated: [N, D] f32, a_i of all clients.
      weights: [N] f32, C_i / C. A client of weight 0 sends nothing; not all
        weights are 0.
      ks: [S] i32, 0..D.

    Returns:
      The choices, with a leading axis S.
    """


def split(
    accumulated: jax.Array, mask: jax.Array, client: jax.Array | topk.Entry
) -> Split:
  """ONE client's part of a choice.

  Args:
    accumulated: [D] f32, a_i.
    mask: [D] bool, J.
    client: J_i, as `Choice.clients` says it: [D] bool, or its last entry.

  Returns:
    The split. `sent + residual == accumulated`, bit for bit except for the
    sign of a zero.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1.
  """
  if isinstance(client, topk.Entry):
    client = topk.at_or_above(topk.magnitude_key(accumulated), client)
  used = client & mask
  return Split(
      mask=used,
      sent=jnp.where(used, accumulated, 0.0),
      residual=jnp.where(used, 0.0, accumulated),
  )


def common(
    accumulated: jax.Array, weights: jax.Array, mask: jax.Array
) -> Choice:
  """The choice if all clients know J beforehand: each J_i is J.

  Args:
    accumulated, weights: see `Choose`.
    mask: [D] bool, J.

  Returns:
    The choice.
  """
  sends = (weights > 0) & jnp.any(mask)
  clients = jax.tree.map(
      lambda all_of_it, nothing: jnp.where(sends, all_of_it, nothing),
      topk.below_all(),
      topk.above_all(),
  )
  return Choice(
      mask=mask,
      clients=clients,
      aggregate=jnp.where(mask, weighted_sum(accumulated, weights), 0.0),
      contributed=jnp.where(sends, jnp.sum(mask, dtype=jnp.int32), 0),
  )


def weighted_sum(sent: jax.Array, weights: jax.Array) -> jax.Array:
  """[N, D] f32, [N] f32 -> [D] f32, at full precision on every platform."""
  return jnp.dot(weights, sent, precision="highest")


def selection(
    choice: Choice, k_up: jax.Array, numbers_per_element: int
) -> Selection:
  """A choice as the round needs it.

  Args:
    choice: for one k.
    k_up: [] i32, see `types.Selection`.
    numbers_per_element: `SPARSE` or `INDICES_KNOWN`.

  Returns:
    The selection.
  """
  # An element with an index can be left out, so zeros are not sent.
  is_sent = choice.mask
  if numbers_per_element == SPARSE:
    is_sent = topk.magnitude_key(choice.aggregate) > 0
  k_down = jnp.sum(is_sent, dtype=jnp.int32)
  return Selection(
      mask=choice.mask,
      aggregate=choice.aggregate,
      k_up=k_up,
      k_down=k_down,
      volume_up=numbers_per_element * k_up.astype(jnp.float32),
      volume_down=numbers_per_element * k_down.astype(jnp.float32),
      contributed=choice.contributed,
      clients=choice.clients,
  )


def check_arguments(accumulated: jax.Array, weights: jax.Array, k: jax.Array):
  """Checks ranks and types of arguments of `Sparsifier.select`, in tracing."""
  chex.assert_rank([accumulated, weights, k], [2, 1, 0])
  chex.assert_type([accumulated, k], [jnp.float32, jnp.int32])


def for_one_k(choose: Choose) -> Callable[..., PyTree]:
  """Makes a choice for one k from the choices for several.

  A vmap over k alone becomes one call of `choose`, which shares work between
  the k.

  Args:
    choose: for several k.

  Returns:
    (accumulated, weights, k []) -> Choice.
  """
  @custom_vmap
  def choose_one(accumulated, weights, k):
    choices = choose(accumulated, weights, k[None])
    return jax.tree.map(lambda x: x[0], choices)

  @choose_one.def_vmap
  def batched(axis_size, in_batched, accumulated, weights, k):
    del axis_size
    if in_batched[0] or in_batched[1]:
      axes = [0 if is_batched else None for is_batched in in_batched]
      choices = jax.vmap(choose, axes)(accumulated, weights, k[..., None])
      choices = jax.tree.map(lambda x: x[:, 0], choices)
    else:
      choices = choose(accumulated, weights, k)
    return choices, jax.tree.map(lambda _: True, choices)

  return choose_one
