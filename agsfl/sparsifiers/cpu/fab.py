"""FAB's choice of J: the clients' largest entries, rank by rank."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import Choice
from agsfl.sparsifiers.clients import one_run_at_a_time
from agsfl.sparsifiers.cpu import uplink, windows


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
    width: W, entries per window; it changes the cost, never the result.

  Returns:
    The choices, with a leading axis S.
  """

  def local(clients, ks):
    return _choose(clients, ks, min(width, accumulated.shape[1]))

  return one_run_at_a_time(local, accumulated, weights, ks)


def _choose(clients, ks, width):
  """The choices of one device's clients."""
  num_clients, dim = clients.accumulated.shape

  # For k < W the first window is enough: it has kappa <= k and the k-th
  # entries. For a larger k a histogram guesses where kappa lies.
  deep = (ks >= width) & (ks < dim)

  def count_and_guess():
    counts = uplink.count(clients)
    return counts, windows.guess_sizes(clients, counts)

  counts, guessed = lax.cond(
      jnp.any(deep),
      count_and_guess,
      lambda: (
          jnp.zeros((num_clients, topk.num_bins(dim)), jnp.int32),
          jnp.zeros(dim + 1, jnp.int32),
      ),
  )

  # One first window serves all k; skip it if it would help none of them.
  far = deep & (jax.vmap(windows.guess_kappa, (None, 0))(guessed, ks) >= width)
  first = lax.cond(
      jnp.all(far | (ks >= dim)),
      lambda: windows.Window.nowhere(num_clients, dim, width),
      lambda: windows.open_window(clients, None, width),
  )

  # Each k whose kappa is not in it searches for its own window.
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
    return Choice(mask, last, *sent.sums(k, last, mask))

  return lax.map(one, (ks, searched))


def _fill(clients, window, k):
  """J [D]: the union at depth kappa, then the largest of the next entries."""
  dim = clients.accumulated.shape[1]

  # kappa is the largest depth whose union has at most k coordinates.
  steps = lax.iota(jnp.int32, window.sizes.size)
  fits = (window.sizes <= k) & (steps <= window.reach)
  kappa = window.low + jnp.sum(fits, dtype=jnp.int32) - 1
  union = window.best_rank <= kappa

  # Each client's (kappa + 1)-th entry waits. Its key is raised by 1: 0 then
  # means that no entry waits, even if entries are zero.
  position = (kappa - window.num_above)[:, None]
  index = jnp.take_along_axis(window.order, position, axis=1)[:, 0]
  following = clients.entries_at(index)
  waiting = jnp.where(clients.active, following.key + 1, 0)
  waiting = jnp.zeros(dim, jnp.int32).at[index].max(waiting)
  waiting = lax.pmax(waiting, clients.axes)
  waiting = jnp.where(union, 0, waiting)

  # The largest of them fill J up to k.
  room = k - jnp.sum(union, dtype=jnp.int32)
  last = topk.nth_largest(waiting, topk.count(waiting), room)
  return union | (topk.at_or_above(waiting, last) & (waiting > 0))
