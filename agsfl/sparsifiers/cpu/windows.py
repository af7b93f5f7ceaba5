"""Sorted windows, to find where U(q) = |union_i J_i^q| passes k.

FAB needs only the ranks near kappa, so no client's entries are sorted in full.
A `Window` is a short sorted stretch of each client's entries, and kappa is
found in the window that contains it. The first window starts at the largest
entries. If kappa lies deeper, a histogram of magnitudes guesses where. If the
guess is wrong, a search follows. Windows count exactly, so a wrong guess costs
time but never changes the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.clients import Clients
from agsfl.sparsifiers.cpu.uplink import first_entries, nth_largest


class Window(NamedTuple):
  """The sorted stretch of W entries that follows each client's start.

  With U(q) = |union_i J_i^q|, it shows U from depth `low` to `low + reach`.

  Attributes:
    order: [N, W] i32, coordinates, largest magnitude first.
    num_above: [N] i32, entries of each client before the stretch.
    best_rank: [D] i32, a coordinate's least rank at any client; 0 if it comes
      before some client's stretch, D + 1 if it is in no stretch.
    low: [] i32, the least depth.
    sizes: [W + 1] i32, U(low), U(low + 1), ...
    reach: [] i32, how many of these are known beyond the first; negative if
      the clients' stretches do not overlap.
  """

  order: jax.Array
  num_above: jax.Array
  best_rank: jax.Array
  low: jax.Array
  sizes: jax.Array
  reach: jax.Array

  @classmethod
  def nowhere(cls, num_clients: int, dim: int, width: int) -> "Window":
    """One that shows nothing but U(0) = 0."""
    return cls(
        order=jnp.zeros((num_clients, width), jnp.int32),
        num_above=jnp.zeros(num_clients, jnp.int32),
        best_rank=jnp.full(dim, dim + 1, jnp.int32),
        low=jnp.int32(0),
        sizes=jnp.zeros(width + 1, jnp.int32),
        reach=jnp.int32(0),
    )

  def known(self, depth):
    """U at a depth within the window."""
    return self.sizes[jnp.clip(depth - self.low, 0, self.sizes.size - 1)]

  def holds_kappa(self, k):
    """Whether U passes k within the window."""
    last = self.known(self.low + self.reach)
    return (self.reach > 0) & (self.sizes[0] <= k) & (last > k)


def open_window(
    clients: Clients, starts: topk.Entry | None, width: int
) -> Window:
  """The window that follows a place in each client's order.

  Args:
    clients: this device's.
    starts: [N] entries, or None for the top of each order.
    width: W.

  Returns:
    The window.
  """
  num_clients, dim = clients.accumulated.shape

  # Of equal magnitudes `top` takes the lower index first, as `Entry` does.
  def stretch(accumulated, start, active):
    above = topk.at_or_above(topk.magnitude_key(accumulated), start)
    order = topk.top(jnp.where(above, -1.0, jnp.abs(accumulated)), width)
    return above & active, (order, jnp.sum(above, dtype=jnp.int32))

  # Each client's stretch, and the coordinates above any client's start.
  covered = jnp.zeros(dim, bool)
  if starts is None:
    num_above = jnp.zeros(num_clients, jnp.int32)
    order = first_entries(clients, width)
  else:
    covered, (order, num_above) = clients.fold_here(
        stretch, jnp.logical_or, covered, starts, clients.active
    )

  # Each coordinate's best rank at any client.
  ranks = num_above[:, None] + lax.iota(jnp.int32, width)[None] + 1
  counted = clients.active[:, None] & (ranks <= dim)
  nowhere = jnp.int32(dim + 1)
  best_rank = jnp.where(covered, 0, nowhere).at[order].min(
      jnp.where(counted, ranks, nowhere)
  )
  best_rank = lax.pmin(best_rank, clients.axes)

  # The depths at which the stretches of all clients overlap.
  low = jnp.max(jnp.where(clients.active, num_above, 0))
  high = jnp.min(jnp.where(clients.active, num_above, dim)) + width
  low = lax.pmax(low, clients.axes)
  high = jnp.minimum(lax.pmin(high, clients.axes), dim)

  # U at these depths: the coordinates whose best rank is at most the depth.
  beyond_low = jnp.maximum(best_rank - low, 0)
  counts = jnp.zeros(width + 1, jnp.int32).at[beyond_low].add(1, mode="drop")
  sizes = jnp.cumsum(counts, dtype=jnp.int32)
  return Window(order, num_above, best_rank, low, sizes, high - low)


def guess_sizes(clients: Clients, counts: jax.Array) -> jax.Array:
  """U(0), ..., U(D), roughly: each entry gets the middle rank of its bin.

  Args:
    clients: this device's.
    counts: [N, B] i32, their `uplink.count`.

  Returns:
    [D + 1] i32.
  """
  dim = clients.accumulated.shape[1]
  at_least = jnp.cumsum(counts[:, ::-1], axis=1, dtype=jnp.int32)[:, ::-1]

  def ranks(accumulated, middle, active):
    in_bin = topk.bins(topk.magnitude_key(accumulated))
    rank = middle.at[in_bin].get(mode="promise_in_bounds")
    return jnp.where(active, rank, dim), None

  best, _ = clients.fold(
      ranks,
      jnp.minimum,
      jnp.full(dim, dim, jnp.int32),
      at_least - counts // 2,
      clients.active,
  )
  counts = jnp.zeros(dim + 1, jnp.int32).at[best].add(1)
  return jnp.cumsum(counts, dtype=jnp.int32)


def guess_kappa(guessed: jax.Array, k: jax.Array) -> jax.Array:
  """The last depth q with U(q) <= k, [] i32, by guessed sizes [D + 1]."""
  return jnp.sum(guessed <= k, dtype=jnp.int32) - 1


def search(
    clients: Clients,
    counts: jax.Array,
    guessed: jax.Array,
    k: jax.Array,
    first: Window,
) -> Window:
  """The window that contains kappa, if `first` does not.

  The guess from the histogram nearly always finds it. If not, a bracketed
  search over exact starts follows. Two thirds of its steps interpolate, because
  U grows smoothly. One third halve the bracket, so that the number of steps
  stays logarithmic.

  Args:
    clients: this device's.
    counts: [N, B] i32, their `uplink.count`.
    guessed: [D + 1] i32 from `guess_sizes`.
    k: [] i32 below D.
    first: the window at depth 0, or `Window.nowhere`.

  Returns:
    The window, as wide as `first`.
  """
  dim = clients.accumulated.shape[1]
  width = first.order.shape[1]

  def guess(start):
    del start
    start = jnp.clip(guess_kappa(guessed, k) - width // 2, 0, dim - 1)

    def above_bin(accumulated, counts):
      in_bin, _ = topk.bin_at(counts, start + 1)
      return topk.bin_start(in_bin, accumulated.size)

    return clients.map(above_bin, counts)

  def exact(start):
    return nth_largest(clients, counts, start)

  def narrow(carry):
    _, low, size_low, high, size_high, step = carry
    # The next start: interpolated, or the middle; in step 0 the guess.
    rise = jnp.maximum(size_high - size_low, 1)
    slope = (high - low).astype(jnp.float32) / rise.astype(jnp.float32)
    ahead = slope * (k - size_low).astype(jnp.float32)
    start = low + ahead.astype(jnp.int32) - width // 2
    start = jnp.where(step % 3 == 0, low + (high - low) // 2, start)
    start = jnp.clip(start, low, high - 1)
    starts = lax.cond(step == 0, guess, exact, start)
    window = open_window(clients, starts, width)

    # An exact window moves one end of the bracket. The guess moves neither,
    # because its stretches may not overlap.
    inside = (window.sizes[0] <= k) & (step > 0)
    above = (window.sizes[0] > k) & (step > 0)
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
