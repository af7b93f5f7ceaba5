"""FAB's choice of coordinates: J, and what each client sends of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl import topk, windows
from agsfl.types import Split


def _fill(clients, window, k):
  """J [D]: the union at depth kappa and the largest entries that follow."""
  dim = clients.accumulated.shape[1]
  steps = lax.iota(jnp.int32, window.sizes.size)
  fits = (window.sizes <= k) & (steps <= window.reach)
  kappa = window.low + jnp.sum(fits, dtype=jnp.int32) - 1
  union = window.best_rank <= kappa
  position = (kappa - window.num_above)[:, None]
  index = jnp.take_along_axis(window.order, position, axis=1)[:, 0]
  following = clients.entries_at(index)
  # One more than the key: a waiting zero differs from no candidate.
  waiting = jnp.where(clients.active, following.key + 1, 0)
  waiting = jnp.zeros(dim, jnp.int32).at[index].max(waiting)
  waiting = lax.pmax(waiting, clients.axes)
  waiting = jnp.where(union, 0, waiting)
  room = k - jnp.sum(union, dtype=jnp.int32)
  last = topk.nth_largest(waiting, topk.count(waiting), room)
  return union | (topk.at_or_above(waiting, last) & (waiting > 0))


def _aggregate(clients, weights, mask, last):
  """b [D], and how much of each client it holds [N].

  The mean is by data size; the divisor is C, whoever sent.
  """

  def part(accumulated, weight, last):
    result = split(accumulated, mask, last)
    return weight * result.sent, jnp.sum(result.mask)

  zeros = jnp.zeros(mask.shape, jnp.float32)
  return clients.fold(part, jnp.add, zeros, weights, last)


def _aggregate_few(clients, weights, mask, order, k):
  """The same, where `order` [N, W] holds each client's k largest entries.

  One client after another, as a client's coordinates differ: the sum has one
  order on every platform.
  """
  among_first = lax.iota(jnp.int32, order.shape[1]) < k

  def add(aggregate, client):
    accumulated, weight, order = client
    used = among_first & mask[order]
    sent = jnp.where(used, weight * accumulated[order], 0.0)
    aggregate = aggregate.at[order].add(sent, unique_indices=True)
    return aggregate, jnp.sum(used & (weight > 0))

  zeros = jnp.zeros(mask.shape, jnp.float32)
  arguments = (clients.accumulated, weights, order)
  aggregate, contributed = lax.scan(add, zeros, arguments)
  return lax.psum(aggregate, clients.axes), contributed


def split(
    accumulated: jax.Array, mask: jax.Array, last: topk.Entry
) -> Split:
  """One client's part of a choice.

  Args:
    accumulated: [D] f32, a_i.
    mask: [D] bool, J.
    last: [] the last entry of J_i.

  Returns:
    The split; `sent + residual == accumulated`, bit for bit but for the sign
    of a zero.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1.
  """
  used = topk.at_or_above(topk.magnitude_key(accumulated), last) & mask
  return Split(
      mask=used,
      sent=jnp.where(used, accumulated, 0.0),
      residual=jnp.where(used, 0.0, accumulated),
  )


class Choice(NamedTuple):
  """What is sent, in little memory.

  Attributes:
    mask: [D] bool, J.
    last: [N] the last entry of each J_i; above all where J_i is empty.
    aggregate: [D] f32, b.
    contributed: [N] i32, |J_i and J|.
  """

  mask: jax.Array
  last: topk.Entry
  aggregate: jax.Array
  contributed: jax.Array


def choose(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int,
    axes: tuple[str, ...],
    client_chunk: int | None,
) -> Choice:
  """The choices for several k on the same gradients.

  Args:
    accumulated: [N, D] f32, a_i; this device's clients.
    weights: [N] f32, C_i / C; a client of weight 0 sends nothing, and not all
      of them are 0.
    ks: [S] i32, 0..D.
    width: entries per window; it changes the cost, never the result.
    axes: mesh axes over which clients are split; () for none.
    client_chunk: clients at a time, see `over_clients`.

  Returns:
    The choices, with a leading axis S.

  Source: Han, Wang, Leung, ICDCS 2020, FAB-top-k.
  """
  num_clients, dim = accumulated.shape
  width = min(width, dim)
  active = weights > 0
  clients = windows.Clients(accumulated, active, axes, client_chunk)
  everything = topk.Entry(jnp.int32(0), jnp.int32(dim))
  # Below W, kappa <= k lies in the first window, and so does the k-th entry.
  deep = (ks >= width) & (ks < dim)
  counts, guessed = lax.cond(
      jnp.any(deep),
      lambda: windows.count_and_guess(clients),
      lambda: (
          jnp.zeros((num_clients, topk.NUM_BINS), jnp.int32),
          jnp.zeros(dim + 1, jnp.int32),
      ),
  )
  far = deep & (jax.vmap(windows.guess_kappa, (None, 0))(guessed, ks) >= width)
  first = lax.cond(
      jnp.all(far | (ks >= dim)),
      lambda: windows.Window.nowhere(num_clients, dim, width),
      lambda: windows.open_window(clients, None, width),
  )
  searched = (ks < dim) & ~jax.vmap(first.holds_kappa)(ks)

  def one(case):
    k, is_searched = case
    is_dense = k >= dim

    window = lax.cond(
        is_searched,
        lambda: windows.search(clients, counts, guessed, k, first),
        lambda: first,
    )
    mask = _fill(clients, window, k) | is_dense

    def silenced(last):
      sends = active & (k > 0)
      return jax.tree.map(
          lambda some, none: jnp.where(sends, some, none),
          last,
          topk.above_all(),
      )

    def few():
      last = clients.entries_at(first.order[:, jnp.maximum(k - 1, 0)])
      return silenced(last), *_aggregate_few(
          clients, weights, mask, first.order, k
      )

    def many():
      last = lax.cond(
          is_dense,
          lambda: jax.tree.map(lambda x: jnp.full(num_clients, x), everything),
          lambda: windows.nth_largest(clients, counts, k),
      )
      last = silenced(last)
      return last, *_aggregate(clients, weights, mask, last)

    return Choice(mask, *lax.cond(k < width, few, many))

  return lax.map(one, (ks, searched))
