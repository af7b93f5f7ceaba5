"""FAB's choice of J: the clients' largest entries, rank by rank.

With U(q) = |union_i J_i^q|, kappa is the largest depth q with U(q) <= k. It is
found in a `Window`, a short sorted stretch of every client. The stretch of the
uplink shows kappa if it begins at the largest entries. Otherwise a sample of
every 32nd coordinate gives a guess of kappa. Windows count exactly, so a wrong
guess costs time but never changes the result.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.accelerator import order, uplink
from agsfl.sparsifiers.choice import Choice
from agsfl.sparsifiers.clients import Clients

# Shorter windows might not move on in the search.
_LEAST_WIDTH = 8

_UNION = jnp.iinfo(jnp.int32).max


class Window(NamedTuple):
  """A sorted stretch of each client's order, for each k.

  Attributes:
    above: [N, S], the places before.
    last_rank: [N, S] i32, the rank of the last entry.
    sorted: [N, S, W] i32, coordinates, largest magnitude first.
  """

  above: order.Place
  last_rank: jax.Array
  sorted: jax.Array


class Found(NamedTuple):
  """What a window shows; all with a leading axis S.

  Attributes:
    priority: [S, D] i32: of the union at depth kappa the highest number; of the
      entries that wait to fill J their key + 1; else 0.
    low, high: [S] i32, the least and the largest depth q that is shown.
    size_low, size_high: [S] i32, U(low) and U(high).
    holds: [S] bool, whether J follows from `priority`.
  """

  priority: jax.Array
  low: jax.Array
  high: jax.Array
  size_low: jax.Array
  size_high: jax.Array
  holds: jax.Array

  @classmethod
  def nothing(cls, num_k: int, dim: int) -> "Found":
    """What no window shows."""
    zeros = jnp.zeros(num_k, jnp.int32)
    return cls(
        jnp.zeros((num_k, dim), jnp.int32),
        *(zeros,) * 4,
        jnp.zeros(num_k, bool),
    )


def fab(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int = uplink.WIDTH,
) -> Choice:
  """Fairness-aware bidirectional top-k; see `methods.fab_top_k`.

  Args:
    accumulated, weights, ks: see `choice.Choose`.
    width: W, entries per window, at least 8; it changes the cost, never the
      result.

  Returns:
    The choices, with a leading axis S.
  """
  width = max(width, _LEAST_WIDTH)

  def pick(sent, ks, sums):
    del sums
    dim = accumulated.shape[1]

    # A quarter of the uplink's stretches is mostly enough for a small k,
    # because kappa is near k / N if clients differ.
    part = width // 4
    first = Window(
        sent.stretches.above,
        jnp.minimum(
            sent.stretches.last.rank, sent.stretches.above.rank + part
        ),
        sent.sorted[..., :part],
    )
    starts = jnp.max(first.above.rank, axis=0)
    is_top = lax.pmax(starts, sent.clients.axes) == 0
    found = lax.cond(
        jnp.any(is_top),
        lambda: look(sent.clients, first, jnp.zeros((ks.size, dim), bool), ks),
        lambda: Found.nothing(ks.size, dim),
    )
    found = found._replace(holds=found.holds & is_top | (ks >= dim))
    return jax.vmap(order.largest)(search(sent, found, ks, width), ks)

  return uplink.choose(pick, accumulated, weights, ks, width)


def look(
    clients: Clients, window: Window, covered: jax.Array, ks: jax.Array
) -> Found:
  """Finds kappa in a window, or which sizes the window shows.

  Args:
    clients: this device's.
    window: of each client.
    covered: [S, D] bool, coordinates before the window of any client.
    ks: [S] i32.

  Returns:
    What it shows.
  """
  dim = clients.accumulated.shape[1]
  active = clients.active[:, None]

  # The depths at which the windows of all clients overlap.
  low = jnp.max(jnp.where(active, window.above.rank, 0), axis=0)
  high = jnp.min(jnp.where(active, window.last_rank, dim), axis=0)
  low, high = lax.pmax(low, clients.axes), lax.pmin(high, clients.axes)

  # Each coordinate's best rank at any client.
  steps = lax.iota(jnp.int32, window.sorted.shape[-1])[None, None]
  ranks = window.above.rank[..., None] + steps + 1
  is_shown = active[..., None] & (ranks <= window.last_rank[..., None])
  nowhere = jnp.int32(dim + 1)
  scatter = lambda covered, index, ranks: (
      jnp.where(covered, 0, nowhere).at[index].min(ranks, mode="drop")
  )
  best = jax.vmap(scatter, (0, 1, 1))(
      covered, window.sorted, jnp.where(is_shown, ranks, nowhere)
  )
  best = lax.pmin(best, clients.axes)

  # U at the ends; and kappa, which is less than the (k + 1)-th best rank.
  size_low, size_high = (
      jnp.sum(best <= depth[:, None], axis=1, dtype=jnp.int32)
      for depth in (low, high)
  )
  following = jnp.take_along_axis(
      jnp.sort(best, axis=1), jnp.minimum(ks, dim - 1)[:, None], axis=1
  )[:, 0]
  kappa = jnp.clip(following - 1, low, high)

  # Each client's (kappa + 1)-th entry waits to fill J up to k. Its key is
  # raised by 1: 0 then means that no entry waits, even if entries are zero.
  def waiting_keys(index, position, is_shown):
    position = jnp.clip(position, 0, index.shape[1] - 1)[:, None]
    index = jnp.take_along_axis(index, position, axis=1)[:, 0]
    waits = jnp.take_along_axis(is_shown, position, axis=1)[:, 0]
    entries = jax.vmap(order.entry_at)(clients.accumulated, index)
    key = jnp.where(waits, entries.key + 1, 0)
    return jnp.zeros(dim, jnp.int32).at[index].max(key, mode="drop")

  waiting = jax.vmap(waiting_keys, 1)(
      window.sorted, kappa[None] - window.above.rank, is_shown
  )
  waiting = lax.pmax(waiting, clients.axes)
  return Found(
      priority=jnp.where(best <= kappa[:, None], _UNION, waiting),
      low=low,
      high=high,
      size_low=size_low,
      size_high=size_high,
      holds=(low <= high) & (size_low <= ks) & (ks <= size_high),
  )


def search(
    sent: uplink.Uplink, found: Found, ks: jax.Array, width: int
) -> jax.Array:
  """`Found.priority` of windows that hold kappa.

  Args:
    sent: the uplink for these k.
    found: what its own stretches show.
    ks: [S] i32.
    width: W.

  Returns:
    [S, D] i32.
  """
  dim = sent.clients.accumulated.shape[1]

  # A window of `span` ranks, and `room` more at both ends, has W entries.
  room = width // 4
  span = width + 1 - 2 * room

  # kappa is at least k / N and at most k.
  num_active = lax.psum(jnp.sum(sent.clients.active), sent.clients.axes)
  least = ks // num_active

  def goes_on(carry):
    return jnp.any(~carry[0].holds)

  def move(carry):
    found, guess, low, high, step = carry
    clients = sent.clients._replace(
        accumulated=order.in_each_step(sent.clients.accumulated, step)
    )
    start = jnp.maximum(guess - span // 2, 0)
    window, covered = open_window(
        sent._replace(clients=clients),
        start,
        jnp.minimum(start + span, dim),
        width,
        room,
    )
    seen = look(clients, window, covered, ks)

    # A depth that is too small, or too large, is one end of what is left.
    is_deeper = seen.size_low <= ks
    low = jnp.where(is_deeper, jnp.maximum(low, seen.high), low)
    high = jnp.where(is_deeper, high, jnp.minimum(high, seen.low))

    # U grows about in proportion to q; each third step halves what is left.
    depth = jnp.where(is_deeper, seen.high, seen.low).astype(jnp.float32)
    size = jnp.where(is_deeper, seen.size_high, seen.size_low)
    guess = depth * (ks / jnp.maximum(size, 1))
    guess = jnp.minimum(guess, ks.astype(jnp.float32))  # fits into int32
    guess = jnp.where(step % 3 == 2, (low + high) // 2, guess.astype(jnp.int32))
    guess = jnp.clip(guess, low, jnp.maximum(high - 1, low))
    found = jax.tree.map(
        lambda old, new: jnp.where(
            found.holds.reshape(-1, *(1,) * (old.ndim - 1)), old, new
        ),
        found,
        seen,
    )
    return found, guess, low, high, step + 1

  guess = lax.cond(
      jnp.all(found.holds), lambda: least, lambda: guess_kappa(sent, ks)
  )
  carry = (found, jnp.clip(guess, least, ks), least, ks + 1, jnp.int32(0))
  return lax.while_loop(goes_on, move, carry)[0].priority


def guess_kappa(sent: uplink.Uplink, ks: jax.Array) -> jax.Array:
  """kappa of the sample alone, times 32; [S] i32."""
  clients = sent.clients
  ranks = jnp.argsort(sent.samples.coordinate, axis=1)
  ranks = jnp.where(clients.active[:, None], ranks, ranks.shape[1])
  best = jnp.sort(lax.pmin(jnp.min(ranks, axis=0), clients.axes))
  index = jnp.minimum(ks // order.STRIDE, best.size - 1)
  return best[index].astype(jnp.int32) * order.STRIDE


def open_window(
    sent: uplink.Uplink,
    start: jax.Array,
    end: jax.Array,
    width: int,
    room: int,
) -> tuple[Window, jax.Array]:
  """The window of some ranks.

  Args:
    sent: the uplink.
    start, end: [S] i32, ranks. Each client's window begins before the one, and
      ends at the other or later.
    width: W.
    room: the most entries by which it is longer at either end.

  Returns:
    The window, and `covered` of `look`.
  """
  clients = sent.clients
  ranks = jnp.concatenate([start, end])

  def of_client(accumulated, sample, active):
    ends = order.stretches(
        accumulated, sample, jnp.where(active, ranks, 0), room
    )
    above = jax.tree.map(lambda x: x[: start.size], ends.above)
    last = jax.tree.map(lambda x: x[start.size :], ends.last)
    stretches = order.Stretch(above, last)
    return Window(above, last.rank, order.sort(accumulated, stretches, width))

  window = jax.vmap(of_client)(
      clients.accumulated, sent.samples, clients.active
  )
  keys = topk.magnitude_key(clients.accumulated)
  covered = jnp.stack([
      jnp.any(
          jax.vmap(topk.at_or_above)(
              keys, jax.tree.map(lambda x, i=i: x[:, i], window.above.entry)
          ),
          axis=0,
      )
      for i in range(start.size)
  ])
  covered = lax.pmax(covered.astype(jnp.int32), clients.axes) > 0
  return window, covered
