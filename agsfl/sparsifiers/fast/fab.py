"""FAB's choice of J: the clients' largest entries, rank by rank."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.fast import uplink, windows


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


def choose(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int,
    axes: tuple[str, ...],
    client_chunk: int | None,
) -> uplink.Choice:
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
  clients = uplink.Clients(accumulated, weights, axes, client_chunk)
  # Below W, kappa <= k lies in the first window, and so does the k-th entry.
  deep = (ks >= width) & (ks < dim)

  def count_and_guess():
    counts = uplink.count(clients)
    return counts, windows.guess_sizes(clients, counts)

  counts, guessed = lax.cond(
      jnp.any(deep),
      count_and_guess,
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
  sent = uplink.Uplink(clients, first.order, counts)

  def one(case):
    k, is_searched = case
    window = lax.cond(
        is_searched,
        lambda: windows.search(clients, counts, guessed, k, first),
        lambda: first,
    )
    mask = _fill(clients, window, k) | (k >= dim)
    last = sent.last(k)
    return uplink.Choice(mask, last, *sent.sums(k, last, mask))

  return lax.map(one, (ks, searched))
