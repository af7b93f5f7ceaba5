"""FUB's choice of J: the largest of the sum, flat or by a tree of merges."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import Choice, split
from agsfl.sparsifiers.clients import one_run_at_a_time
from agsfl.sparsifiers.cpu import uplink
from agsfl.sparsifiers.plain import merge_pairwise


def fub(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int = uplink.WIDTH,
) -> Choice:
  """Fairness-unaware bidirectional top-k; see `methods.fub_top_k`.

  Args:
    accumulated, weights, ks: see `choice.Choose`.
    width: see `uplink.open_uplink`.

  Returns:
    The choices, with a leading axis S.
  """

  def largest_of_sum(sent, k, last):
    everywhere = jnp.ones(accumulated.shape[1], bool)
    total, _ = sent.sums(k, last, everywhere)
    return _largest(total, k)

  return uplink.choose(largest_of_sum, accumulated, weights, ks, width)


def fub_tree(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int = uplink.WIDTH,
) -> Choice:
  """FUB-top-k by pairwise merges; see `methods.fub_top_k_tree`.

  Every device gathers the messages of all clients: 2 N D more floats on each.

  Args:
    accumulated, weights, ks: see `choice.Choose`.
    width: see `uplink.open_uplink`.

  Returns:
    The choices, with a leading axis S.
  """

  def local(clients, ks):
    sent = uplink.open_uplink(clients, ks, width)
    num_here, dim = clients.accumulated.shape
    everywhere = jnp.ones(dim, bool)

    def message(accumulated, weight, last):
      return weight * split(accumulated, everywhere, last).sent

    def one(k):
      # Each client's message, already weighted.
      last = sent.last(k)
      messages = clients.map(message, clients.weights, last)

      # Every device merges the messages of all clients.
      if clients.axes:
        messages = lax.all_gather(messages, clients.axes, tiled=True)

      def send_on(pair):
        total = pair[0] + pair[1]
        is_sent_on = _largest(total, k)
        return jnp.where(is_sent_on, total, 0.0), is_sent_on

      total, survives = merge_pairwise(
          messages, lambda pairs: lax.map(send_on, pairs)
      )
      mask = _largest(total, k)

      # From here each device looks only at its own clients.
      first = num_here * lax.axis_index(clients.axes)
      survives = lax.dynamic_slice_in_dim(survives, first, num_here)
      used = clients.map(
          lambda a, last, survives: split(a, survives & mask, last).mask,
          last,
          survives,
      )
      return Choice(
          mask=mask,
          clients=used,
          aggregate=jnp.where(mask, total, 0.0),
          contributed=jnp.sum(used, axis=1, dtype=jnp.int32),
      )

    return lax.map(one, ks)

  return one_run_at_a_time(local, accumulated, weights, ks)


def _largest(values, k):
  """[D] bool, the k largest magnitudes of `values` [D]."""
  keys = topk.magnitude_key(values)
  return topk.at_or_above(keys, topk.nth_largest(keys, topk.count(keys), k))
