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
  last = topk.nth_largest(waiting, topk.high_counts(waiting), room)
  return union | (topk.at_or_above(waiting, last) & (waiting > 0))


def _aggregate(clients, weights, mask, last):
  """b [D]: the mean by data size; the divisor is C, whoever sent."""

  def part(accumulated, weight, last):
    return weight * split(accumulated, mask, last).sent, None

  zeros = jnp.zeros(mask.shape, jnp.float32)
  return clients.fold(part, jnp.add, zeros, weights, last)[0]


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
  """

  mask: jax.Array
  last: topk.Entry
  aggregate: jax.Array


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
  nothing = jax.tree.map(
      lambda x: jnp.broadcast_to(x, num_clients), topk.above_all()
  )
  first = windows.open_window(clients, None, width)
  searched = (ks < dim) & ~jax.vmap(first.holds_kappa)(ks)
  counts = lax.cond(
      jnp.any((ks > width) & (ks < dim)) | jnp.any(searched),
      lambda: clients.map(lambda a: topk.high_counts(topk.magnitude_key(a))),
      lambda: jnp.zeros((num_clients, topk.HIGH_BINS), jnp.int32),
  )
  guessed = lax.cond(
      jnp.any(searched),
      lambda: windows.guess_sizes(clients, counts),
      lambda: jnp.zeros(dim + 1, jnp.int32),
  )

  def one(case):
    k, is_searched = case
    is_dense = k >= dim

    def last_of_window():
      last = clients.entries_at(first.order[:, jnp.clip(k - 1, 0, width - 1)])
      return jax.tree.map(
          lambda some, all_: jnp.where(is_dense, all_, some),
          last,
          topk.Entry(0, dim),
      )

    window = lax.cond(
        is_searched,
        lambda: windows.search(clients, counts, guessed, k, first),
        lambda: first,
    )
    last = lax.cond(
        is_dense | (k <= width),
        last_of_window,
        lambda: windows.nth_largest(clients, counts, k),
    )
    last = jax.tree.map(
        lambda some, none: jnp.where(active & (k > 0), some, none),
        last,
        nothing,
    )
    mask = _fill(clients, window, k) | is_dense
    return Choice(mask, last, _aggregate(clients, weights, mask, last))

  return lax.map(one, (ks, searched))
