"""FUB's choice of J: the largest of the sum, flat or by a tree of merges."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.fast import uplink


def _largest(values, k):
  """[D] bool, the k largest entries of `values` [D]."""
  keys = topk.magnitude_key(values)
  return topk.at_or_above(keys, topk.nth_largest(keys, topk.count(keys), k))


def largest_of_sum(
    sent: uplink.Uplink, k: jax.Array, last: topk.Entry
) -> jax.Array:
  """J as the k largest |b_j| of what all clients sent.

  Args:
    sent: the uplink.
    k: [] i32.
    last: [N], its `last` for k.

  Returns:
    [D] bool.
  """
  everywhere = jnp.ones(sent.clients.accumulated.shape[1], bool)
  total, _ = sent.sums(k, last, everywhere)
  return _largest(total, k)


def choose_tree(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int,
    axes: tuple[str, ...],
    client_chunk: int | None,
) -> uplink.Choice:
  """J is what is left when neighbours merge, pair by pair, each cut to k.

  Client 0 merges with 1, 2 with 3 and so on, then the pairs; one that is left
  over goes up unmerged. The messages of all clients meet on every device:
  2 N D more floats there.

  Args:
    accumulated, weights, ks, width, axes, client_chunk: see `fab.choose`.

  Returns:
    The choices, with a leading axis S; `clients` is [N, D] bool, entries of
    J_i and J that no merge above client i dropped.
  """
  clients = uplink.Clients(accumulated, weights, axes, client_chunk)
  sent = uplink.open_uplink(clients, ks, width)
  everywhere = jnp.ones(accumulated.shape[1], bool)
  num_here = accumulated.shape[0]

  def one(k):
    def message(accumulated, weight, last):
      return weight * uplink.split(accumulated, everywhere, last).sent

    last = sent.last(k)
    messages = clients.map(message, weights, last)
    messages = lax.all_gather(messages, axes, tiled=True) if axes else messages
    total, alive = _merge(messages, k)
    first = num_here * lax.axis_index(axes)
    alive = lax.dynamic_slice_in_dim(alive, first, num_here)
    mask = _largest(total, k)
    used = clients.map(
        lambda a, last, alive: uplink.split(a, alive & mask, last).mask,
        last,
        alive,
    )
    aggregate = jnp.where(mask, total, 0.0)
    return uplink.Choice(mask, used, aggregate, jnp.sum(used, axis=1))

  return lax.map(one, ks)


def _merge(messages, k):
  """The root's message [D], and what lives up to it of each of [n, D]."""
  count = len(messages)
  if count == 1:
    return messages[0], jnp.ones(messages.shape, bool)
  pairs = messages[: count // 2 * 2].reshape(count // 2, 2, -1)

  def cut(pair):
    total = pair[0] + pair[1]
    kept = _largest(total, k)
    return jnp.where(kept, total, 0.0), kept

  merged, kept = lax.map(cut, pairs)
  rest = messages[count // 2 * 2 :]
  total, alive = _merge(jnp.concatenate([merged, rest]), k)
  below = jnp.repeat(alive[: count // 2] & kept, 2, axis=0)
  return total, jnp.concatenate([below, alive[count // 2 :]])
