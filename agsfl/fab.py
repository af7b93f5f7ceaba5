"""FAB's choice of coordinates: kappa, J, and what each client sends of it.

Only ranks near kappa matter, and near k for the uplink. So no client's entries
are sorted in full: a `Window` is a short sorted stretch of each client's
entries, and kappa is read off the window that holds it. The first window to
try starts at the largest entries; where kappa lies deeper, a histogram of
magnitudes tells roughly where, and a search settles what it misses. Windows
count exactly, so a bad guess costs time and never the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl import topk
from agsfl.over_clients import fold_clients, map_clients
from agsfl.types import Split

_COLLECTIVES = {
    jnp.minimum: lax.pmin,
    jnp.maximum: lax.pmax,
    jnp.add: lax.psum,
}


class Clients(NamedTuple):
  """The clients of this device.

  Keys are formed where they are used: inside branches and loops a second array
  of this size would have to be stored and copied.

  Attributes:
    accumulated: [N, D] f32, a_i.
    active: [N] bool; a client that is not sends nothing.
    axes: mesh axes over which N is split; () for none.
    chunk: clients at a time, see `over_clients`.
  """

  accumulated: jax.Array
  active: jax.Array
  axes: tuple[str, ...]
  chunk: int | None

  def map(self, function, *arguments):
    """Over each client's accumulated gradient and further arguments."""
    return map_clients(function, (self.accumulated, *arguments), self.chunk)

  def fold(self, function, merge, start, *arguments):
    """The same, merged over all clients, those of other devices too."""
    merged, results = fold_clients(
        function, merge, start, (self.accumulated, *arguments), self.chunk
    )
    return _COLLECTIVES[merge](merged, self.axes), results

  def entries_at(self, index):
    """Each client's entry at its own coordinate of `index` [N]."""
    value = jnp.take_along_axis(self.accumulated, index[:, None], axis=1)
    return topk.Entry(topk.magnitude_key(value[:, 0]), index)


class Window(NamedTuple):
  """The sorted stretch of W entries that follows each client's start.

  With U(q) = |union_i J_i^q|, it tells U from depth `low` to `low + reach`.

  Attributes:
    order: [N, W] i32, coordinates, largest magnitude first.
    num_above: [N] i32, entries of each client before the stretch.
    best_rank: [D] i32, a coordinate's least rank at any client; 0 where it
      comes before some client's stretch, D + 1 where it comes in none.
    low: [] i32, the shallowest depth.
    sizes: [W + 1] i32, U(low), U(low + 1), ...
    reach: [] i32, how many of those are known beyond the first; below 0
      where the clients' stretches do not overlap.
  """

  order: jax.Array
  num_above: jax.Array
  best_rank: jax.Array
  low: jax.Array
  sizes: jax.Array
  reach: jax.Array

  def known(self, depth):
    """U at a depth within the window."""
    return self.sizes[jnp.clip(depth - self.low, 0, self.sizes.size - 1)]

  def holds_kappa(self, k):
    """Whether U passes k within the window."""
    last = self.known(self.low + self.reach)
    return (self.reach > 0) & (self.sizes[0] <= k) & (last > k)


def _open_window(clients, starts, width):
  """The window after each client's entry of `starts` [N]."""
  dim = clients.accumulated.shape[1]

  def stretch(accumulated, start, active):
    above = topk.at_or_above(topk.magnitude_key(accumulated), start)
    # Equal magnitudes: top_k takes the lower index first, as `Entry` does.
    _, order = lax.top_k(jnp.where(above, -1.0, jnp.abs(accumulated)), width)
    num_above = jnp.sum(above, dtype=jnp.int32)
    ranks = num_above + 1 + lax.iota(jnp.int32, width)
    best_rank = jnp.where(above, 0, dim + 1)
    best_rank = best_rank.at[order].min(jnp.minimum(ranks, dim + 1))
    best_rank = jnp.where(active, best_rank, dim + 1)
    return best_rank, (order, num_above)

  best_rank, (order, num_above) = clients.fold(
      stretch,
      jnp.minimum,
      jnp.full(dim, dim + 1, jnp.int32),
      starts,
      clients.active,
  )
  low = jnp.max(jnp.where(clients.active, num_above, 0))
  high = jnp.min(jnp.where(clients.active, num_above, dim)) + width
  low = lax.pmax(low, clients.axes)
  high = jnp.minimum(lax.pmin(high, clients.axes), dim)
  beyond_low = jnp.maximum(best_rank - low, 0)
  counts = jnp.zeros(width + 1, jnp.int32).at[beyond_low].add(1, mode="drop")
  return Window(
      order, num_above, best_rank, low, jnp.cumsum(counts), high - low
  )


def _guess_sizes(clients, counts, by_index):
  """U(0), ..., U(D), roughly: each entry at the middle rank of its bin.

  Entries that are zero share one bin, a large one; there the index orders them,
  and their ranks are taken as evenly spread over the indices, or counted.
  """
  dim = clients.accumulated.shape[1]
  at_least = jnp.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
  middle = at_least - counts // 2

  def ranks(accumulated, middle, num_zeros, active):
    digit = topk.high_digit(topk.magnitude_key(accumulated))
    rank = middle.at[digit].get(mode="promise_in_bounds")
    among_zeros = dim - num_zeros + by_index(digit == 0, num_zeros)
    rank = jnp.where(digit > 0, rank, among_zeros)
    return jnp.where(active, rank, dim), None

  best, _ = clients.fold(
      ranks,
      jnp.minimum,
      jnp.full(dim, dim, jnp.int32),
      middle,
      counts[:, 0],
      clients.active,
  )
  return jnp.cumsum(jnp.zeros(dim + 1, jnp.int32).at[best].add(1))


def _evenly(zeros, num_zeros):
  share = lax.iota(jnp.int32, zeros.size).astype(jnp.float32) / zeros.size
  return (share * num_zeros).astype(jnp.int32)


def _counted(zeros, num_zeros):
  del num_zeros
  return jnp.cumsum(zeros, dtype=jnp.int32)


def _start_guess(counts, rank, dim):
  """An entry near `rank` of one client, from its histogram alone."""
  at_least = jnp.cumsum(counts[::-1])[::-1]
  digit = jnp.sum(at_least > rank, dtype=jnp.int32) - 1
  first_zero = dim - counts[0]
  index = (rank - first_zero) / jnp.maximum(counts[0], 1) * dim
  in_zeros = digit == 0
  return topk.Entry(
      jnp.where(in_zeros, 0, (digit + 1) << topk.LOW_BITS),
      jnp.where(in_zeros, index.astype(jnp.int32), -1),
  )


def _nth_largest(clients, counts, q):
  """Each client's q-th entry."""
  return clients.map(
      lambda a, counts: topk.nth_largest(topk.magnitude_key(a), counts, q),
      counts,
  )


def _search(clients, counts, guessed, k, first):
  """The window that holds kappa, where `first` ends above it.

  The guess from the histogram nearly always does, and the one with counted
  zeros where kappa lies among those. If not: a bracketed search over exact
  starts, two thirds of the steps by interpolation (U grows smoothly), one third
  by halving, so that their number stays logarithmic.
  """
  dim = clients.accumulated.shape[1]
  width = first.order.shape[1]

  def near(sizes):
    kappa = jnp.sum(sizes <= k, dtype=jnp.int32)
    return jnp.clip(kappa - width // 2, 0, dim - 1)

  def guess(start):
    del start
    starts = jax.vmap(_start_guess, (0, None, None))
    return starts(counts, near(guessed), dim)

  def guess_zeros(start):
    del start
    sizes = _guess_sizes(clients, counts, _counted)
    return _nth_largest(clients, counts, near(sizes))

  def exact(start):
    return _nth_largest(clients, counts, start)

  def narrow(carry):
    _, low, size_low, high, size_high, step = carry
    slope = (high - low) / jnp.maximum(size_high - size_low, 1)
    start = low + (slope * (k - size_low)).astype(jnp.int32) - width // 2
    start = jnp.where(step % 3 == 0, low + (high - low) // 2, start)
    start = jnp.clip(start, low, high - 1)
    starts = lax.switch(step, [guess, guess_zeros, exact], start)
    window = _open_window(clients, starts, width)
    # A guess bounds nothing: its stretches need not overlap.
    inside = (window.sizes[0] <= k) & (step > 1)
    above = (window.sizes[0] > k) & (step > 1)
    end = window.low + window.reach
    return (
        window,
        jnp.where(inside, end, low),
        jnp.where(inside, window.known(end), size_low),
        jnp.where(above, start, high),
        jnp.where(above, window.sizes[0], size_high),
        step + 1,
    )

  # At depth k + 1 a single client alone has more than k entries; the size
  # there only steers the search.
  end = first.low + first.reach
  carry = (first, end, first.known(end), k + 1, jnp.int32(dim), jnp.int32(0))
  return lax.while_loop(
      lambda carry: ~carry[0].holds_kappa(k), narrow, carry
  )[0]


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
  clients = Clients(accumulated, active, axes, client_chunk)
  nothing = jax.tree.map(
      lambda x: jnp.broadcast_to(x, num_clients), topk.above_all()
  )
  first = _open_window(clients, nothing, width)
  searched = (ks < dim) & ~jax.vmap(first.holds_kappa)(ks)
  counts = lax.cond(
      jnp.any((ks > width) & (ks < dim)) | jnp.any(searched),
      lambda: clients.map(lambda a: topk.high_counts(topk.magnitude_key(a))),
      lambda: jnp.zeros((num_clients, topk.HIGH_BINS), jnp.int32),
  )
  guessed = lax.cond(
      jnp.any(searched),
      lambda: _guess_sizes(clients, counts, _evenly),
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
        lambda: _search(clients, counts, guessed, k, first),
        lambda: first,
    )
    last = lax.cond(
        is_dense | (k <= width),
        last_of_window,
        lambda: _nth_largest(clients, counts, k),
    )
    last = jax.tree.map(
        lambda some, none: jnp.where(active & (k > 0), some, none),
        last,
        nothing,
    )
    mask = _fill(clients, window, k) | is_dense
    return Choice(mask, last, _aggregate(clients, weights, mask, last))

  return lax.map(one, (ks, searched))
