"""FUB's choice of J: the largest of the sum, flat or by a tree of merges."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.accelerator import order, uplink
from agsfl.sparsifiers.choice import Choice
from agsfl.sparsifiers.clients import over_devices
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

  def largest_of_sum(sent, ks, sums):
    del sent
    return jax.vmap(order.largest)(topk.magnitude_key(sums), ks)

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
    num_here = clients.accumulated.shape[0]
    weighted = clients.weights[:, None] * clients.accumulated

    def one(is_sent, k):
      # Every device merges the messages of all clients, already weighted.
      messages = jnp.where(is_sent, weighted, 0.0)
      if clients.axes:
        messages = lax.all_gather(messages, clients.axes, tiled=True)

      def send_on(pair):
        total = pair[0] + pair[1]
        is_sent_on = _largest(total, k, width)
        return jnp.where(is_sent_on, total, 0.0), is_sent_on

      total, survives = merge_pairwise(messages, jax.vmap(send_on))
      mask = _largest(total, k, width)

      # From here each device looks only at its own clients.
      first = num_here * lax.axis_index(clients.axes)
      survives = lax.dynamic_slice_in_dim(survives, first, num_here)
      used = is_sent & survives & mask[None]
      return Choice(
          mask=mask,
          clients=used,
          aggregate=jnp.where(mask, total, 0.0),
          contributed=jnp.sum(used, axis=1, dtype=jnp.int32),
      )

    is_sent = jnp.stack([sent.sent(index) for index in range(ks.size)])
    return jax.vmap(one)(is_sent, ks)

  return over_devices(local, accumulated, weights, ks)


def _largest(values, k, width):
  """[D] bool, the k largest magnitudes of `values` [D]."""
  *_, last = uplink.open_client(values, k[None], width)
  last = jax.tree.map(lambda x: x[0], last)
  return topk.at_or_above(topk.magnitude_key(values), last)
