"""The methods as the papers describe them: all clients at once, in ranks.

An entry's rank is its place among the entries of its client: 1 for the largest
magnitude; of equal magnitudes the lower index comes first. So J_i are the
entries of rank at most k. `agsfl.sparsifiers.cpu` and `accelerator` choose the
same with less work.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import Choice, Choose, weighted_sum


def _for_each_k(choose: Callable[..., Choice]) -> Choose:
  """Makes choices for several k from a choice for one."""
  return functools.wraps(choose)(jax.vmap(choose, (None, None, 0)))


@_for_each_k
def fab(accumulated, weights, k):
  """Fairness-aware bidirectional top-k; see `methods.fab_top_k`."""
  ranks = _client_ranks(accumulated, weights)
  dim = accumulated.shape[1]
  # |U(q)| for q = 0..D: a coordinate is in the union of all J_i^q if its best
  # rank is at most q.
  best = jnp.min(ranks, axis=0)
  sizes = jnp.cumsum(jnp.bincount(best, length=dim + 1))
  # kappa is the largest q with |U(q)| <= k.
  kappa = jnp.sum(sizes <= k) - 1
  union = best <= kappa
  # The entries of rank kappa + 1 fill J up to k, the largest first. Their keys
  # are raised by 1: 0 then means that no entry waits, even if entries are zero.
  keys = topk.magnitude_key(accumulated) + 1
  waiting = jnp.max(jnp.where(ranks == kappa + 1, keys, 0), axis=0)
  waiting = jnp.where(union, 0, waiting)
  fills = _ranks(waiting) <= k - jnp.sum(union)
  mask = union | (fills & (waiting > 0))
  return _choice(accumulated, weights, mask, ranks <= k)


@_for_each_k
def fub(accumulated, weights, k):
  """Fairness-unaware bidirectional top-k; see `methods.fub_top_k`."""
  uplink = _client_ranks(accumulated, weights) <= k
  total = weighted_sum(jnp.where(uplink, accumulated, 0.0), weights)
  return _choice(accumulated, weights, _largest(total, k), uplink)


@_for_each_k
def fub_tree(accumulated, weights, k):
  """FUB-top-k by pairwise merges; see `methods.fub_top_k_tree`."""
  uplink = _client_ranks(accumulated, weights) <= k
  messages = weights[:, None] * jnp.where(uplink, accumulated, 0.0)

  def merge(pairs):
    total = jnp.sum(pairs, axis=1)
    is_sent_on = jax.vmap(_largest, (0, None))(total, k)
    return jnp.where(is_sent_on, total, 0.0), is_sent_on

  total, survives = merge_pairwise(messages, merge)
  return _choice(accumulated, weights, _largest(total, k), uplink & survives)


@_for_each_k
def unidirectional(accumulated, weights, k):
  """Top-k on the uplink only; see `methods.unidirectional_top_k`."""
  uplink = _client_ranks(accumulated, weights) <= k
  return _choice(accumulated, weights, jnp.any(uplink, axis=0), uplink)


def merge_pairwise(
    messages: jax.Array,
    merge: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
  """A tree of merges: 0 with 1, 2 with 3 and so on; then the same for pairs.

  A last message without a partner goes up as it is.

  Args:
    messages: [n, D] f32.
    merge: pairs [p, 2, D] -> what each merge sends on, [p, D] f32, and its
      coordinates, [p, D] bool.

  Returns:
    The root's message [D], and for each of the n messages the coordinates that
    no merge dropped, [n, D] bool.
  """
  if len(messages) == 1:
    return messages[0], jnp.ones(messages.shape, bool)
  num_pairs = len(messages) // 2
  paired, unpaired = jnp.split(messages, [2 * num_pairs])
  sent_on, is_sent_on = merge(paired.reshape(num_pairs, 2, -1))
  total, survives = merge_pairwise(
      jnp.concatenate([sent_on, unpaired]), merge
  )
  of_pairs = jnp.repeat(survives[:num_pairs] & is_sent_on, 2, axis=0)
  return total, jnp.concatenate([of_pairs, survives[num_pairs:]])


def _ranks(keys):
  """[D] i32 -> [D] i32 from 1, the largest key first, then by index."""
  order = jnp.argsort(-keys, stable=True)
  places = jnp.arange(1, keys.size + 1, dtype=jnp.int32)
  return jnp.zeros(keys.shape, jnp.int32).at[order].set(places)


def _largest(values, k):
  """[D] bool, the k largest magnitudes of `values` [D]."""
  return _ranks(topk.magnitude_key(values)) <= k


def _client_ranks(accumulated, weights):
  """All ranks [N, D]; D + 1 in a client of weight 0, which never sends."""
  ranks = jax.vmap(_ranks)(topk.magnitude_key(accumulated))
  return jnp.where(weights[:, None] > 0, ranks, accumulated.shape[1] + 1)


def _choice(accumulated, weights, mask, uplink):
  """The choice of J [D], where the clients send J_i, `uplink` [N, D]."""
  used = uplink & mask[None]
  aggregate = weighted_sum(jnp.where(used, accumulated, 0.0), weights)
  contributed = jnp.sum(used, axis=1, dtype=jnp.int32)
  return Choice(mask, uplink, aggregate, contributed)
