"""Which gradient elements travel: the methods, as (init, select, split)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap, sequential_vmap

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.fast import fab, fub, uplink
from agsfl.types import Selection, Sparsifier

# Numbers per element of a message: its index and its value, or the value alone
# where both sides know the indices.
_SPARSE, _PLAIN = 2.0, 1.0


def _shared_choice(choose):
  """A choice for one k, which under vmap over k alone shares its work.

  Under any other vmap (seeds) the choices are made one after another, so that
  branches stay branches.

  Args:
    choose: (accumulated, weights, ks [S]) -> a pytree with leading axis S.
  """
  in_turn = sequential_vmap(choose)

  @custom_vmap
  def choose_one(accumulated, weights, k):
    return jax.tree.map(
        lambda x: x[0], in_turn(accumulated, weights, k[None])
    )

  @choose_one.def_vmap
  def batched(axis_size, in_batched, accumulated, weights, k):
    del axis_size
    if in_batched[0] or in_batched[1]:
      chosen = jax.vmap(
          in_turn, [0 if batched else None for batched in in_batched]
      )(accumulated, weights, k[..., None])
      chosen = jax.tree.map(lambda x: x[:, 0], chosen)
    else:
      chosen = in_turn(accumulated, weights, k)
    return chosen, jax.tree.map(lambda _: True, chosen)

  return choose_one


def _stateless(num_clients, dim):
  del num_clients, dim
  return ()


def check_arguments(accumulated, weights, k):
  """Ranks and types of what `select` takes, at trace time."""
  chex.assert_rank([accumulated, weights, k], [2, 1, 0])
  chex.assert_type([accumulated, k], [jnp.float32, jnp.int32])


def _selection(choice, k_up, numbers):
  k_down = jnp.sum(choice.mask)
  return Selection(
      mask=choice.mask,
      aggregate=choice.aggregate,
      k_up=k_up,
      k_down=k_down,
      volume_up=numbers * k_up.astype(jnp.float32),
      volume_down=numbers * k_down.astype(jnp.float32),
      contributed=choice.contributed,
      clients=choice.clients,
  )


def _top_k(choose, window, axes, client_chunk):
  """A method by its `choose`, without state, that sends sparse messages."""
  choose = _shared_choice(
      functools.partial(
          choose, width=window, axes=axes, client_chunk=client_chunk
      )
  )

  def select(key, accumulated, weights, k, state):
    del key
    check_arguments(accumulated, weights, k)
    k = jnp.minimum(k, accumulated.shape[1])
    choice = choose(accumulated, weights, k)
    return _selection(choice, k, _SPARSE), state

  return Sparsifier(_stateless, select, uplink.split)


def fab_top_k(
    axes: tuple[str, ...] = (),
    client_chunk: int | None = None,
    window: int = uplink.WIDTH,
) -> Sparsifier:
  """Fairness-aware bidirectional top-k.

  J takes every client's kappa largest entries, with kappa as large as k
  allows, then the largest of the (kappa+1)-th ones. So |J| = k, and every
  client contributes at least floor(k / N) elements. Zeros are entries like
  others, the smallest; equal magnitudes go by index. k is clipped to D. A
  client of weight 0 sends nothing.

  Args:
    axes: mesh axes over which clients are split; () for none.
    client_chunk: 1: clients one after another, in little memory; else all at
      once.
    window: entries of each client that are sorted at a time; it changes the
      cost, never the result.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FAB-top-k.
  """
  return _top_k(fab.choose, window, axes, client_chunk)


def fub_top_k(
    axes: tuple[str, ...] = (),
    client_chunk: int | None = None,
    window: int = uplink.WIDTH,
) -> Sparsifier:
  """Fairness-unaware bidirectional top-k, flat: J is the k largest |b_j|.

  A client whose entries are small may contribute nothing, round after round.

  Args:
    axes, client_chunk, window: see `fab_top_k`.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FUB-top-k.
  """
  choose = functools.partial(uplink.choose, fub.largest_of_sum)
  return _top_k(choose, window, axes, client_chunk)


def fub_top_k_tree(
    axes: tuple[str, ...] = (),
    client_chunk: int | None = None,
    window: int = uplink.WIDTH,
) -> Sparsifier:
  """FUB-top-k by pairwise merges, each cut to its k largest (gTop-k).

  What a merge drops goes back to the residuals of the clients below it, so
  no gradient is lost here either.

  Args:
    axes, client_chunk, window: see `fab_top_k`.

  Returns:
    A sparsifier without state.

  Source: Shi et al., "A Distributed Synchronous SGD Algorithm with Global
  Top-k Sparsification for Low Bandwidth Networks", ICDCS 2019; as FUB-top-k in
  Han, Wang, Leung, ICDCS 2020.
  """
  tree = _top_k(fub.choose_tree, window, axes, client_chunk)
  return tree._replace(
      split=lambda accumulated, mask, used: uplink.split_where(
          accumulated, used & mask
      )
  )


def unidirectional_top_k(
    axes: tuple[str, ...] = (),
    client_chunk: int | None = None,
    window: int = uplink.WIDTH,
) -> Sparsifier:
  """Top-k on the way up alone: J is all that any client sent, up to N k.

  Args:
    axes, client_chunk, window: see `fab_top_k`.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, unidirectional top-k.
  """
  choose = functools.partial(uplink.choose, uplink.Uplink.union)
  return _top_k(choose, window, axes, client_chunk)


def _common(accumulated, weights, mask, axes, client_chunk):
  """The choice of a J that all clients know beforehand."""
  clients = uplink.Clients(accumulated, weights, axes, client_chunk)
  last = uplink.everything(clients, jnp.any(mask))
  return uplink.Choice(mask, last, *uplink.sums(clients, last, mask))


class PeriodState(NamedTuple):
  """State of `periodic_k`.

  Attributes:
    left: [D] bool, what the current period still has to send; never empty.
  """

  left: jax.Array


def periodic_k(
    axes: tuple[str, ...] = (), client_chunk: int | None = None
) -> Sparsifier:
  """k random coordinates, the same at all clients, each once per period.

  Every round sends exactly k different ones. They are drawn from what the
  period has left; where that is less than k, all of it goes, and the rest are
  drawn from the others and begin the next period. So a coordinate is sent once
  in each period, and a period is a random permutation but for that one draw.
  (In the authors' code the last coordinates of a period count for the next one
  too.) Indices follow from a seed that is known to all, so an element is one
  number, its value; the authors' code counts two.

  Args:
    axes, client_chunk: see `fab_top_k`.

  Returns:
    A sparsifier.

  Source: Han, Wang, Leung, ICDCS 2020, periodic-k.
  """

  def init(num_clients, dim):
    del num_clients
    return PeriodState(jnp.ones(dim, bool))

  def select(key, accumulated, weights, k, state):
    check_arguments(accumulated, weights, k)
    dim = accumulated.shape[1]
    k = jnp.minimum(k, dim)
    # The period's own come first, each group in random order.
    order = (jax.random.bits(key, dim) >> 2).astype(jnp.int32)
    order += state.left.astype(jnp.int32) << 30
    mask = topk.at_or_above(
        order, topk.nth_largest(order, topk.count(order), k)
    )
    left = state.left & ~mask
    left = jnp.where(jnp.any(left), left, ~(mask & ~state.left))
    choice = _common(accumulated, weights, mask, axes, client_chunk)
    return _selection(choice, k, _PLAIN), PeriodState(left)

  return Sparsifier(init, select, uplink.split)


def send_all(
    axes: tuple[str, ...] = (), client_chunk: int | None = None
) -> Sparsifier:
  """All D elements, whatever k; with k = 0 none.

  Args:
    axes, client_chunk: see `fab_top_k`.

  Returns:
    A sparsifier without state, whose residuals stay zero.

  Source: Han, Wang, Leung, ICDCS 2020, send-all.
  """

  def select(key, accumulated, weights, k, state):
    del key
    check_arguments(accumulated, weights, k)
    dim = accumulated.shape[1]
    mask = jnp.broadcast_to(k > 0, dim)
    choice = _common(accumulated, weights, mask, axes, client_chunk)
    k = jnp.where(k > 0, dim, 0)
    return _selection(choice, k, _PLAIN), state

  return Sparsifier(_stateless, select, uplink.split)


class Method(NamedTuple):
  """An entry of `METHODS`.

  Attributes:
    build: (axes, client_chunk) -> Sparsifier.
    takes_k: whether k decides what is sent, so that it can be learned.
  """

  build: Callable[..., Sparsifier]
  takes_k: bool = True


METHODS = {
    "fab_top_k": Method(fab_top_k),
    "fub_top_k": Method(fub_top_k),
    "fub_top_k_tree": Method(fub_top_k_tree),
    "unidirectional_top_k": Method(unidirectional_top_k),
    "periodic_k": Method(periodic_k),
    "send_all": Method(send_all, takes_k=False),
}
