"""Which gradient elements travel: the methods, as (init, apply) pairs."""

import functools

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap

from agsfl import topk
from agsfl.types import Selection, Sparsifier

# Up to this rank a sorted prefix of each client's entries costs less than a
# search. It holds kappa for every k <= 1024, and for k up to 1024 N where the
# clients' entries do not overlap.
_PREFIX_DEPTH = 1024


def select(
    accumulated: jax.Array,
    weights: jax.Array,
    mask: jax.Array,
    client_mask: jax.Array,
    k_up: jax.Array,
) -> Selection:
  """Splits the accumulated gradients along a choice of coordinates.

  Args:
    accumulated: [N, D] f32, a_i.
    weights: [N] f32, C_i / C.
    mask: [D] bool, J.
    client_mask: [N, D] bool, J_i and J together.
    k_up: [] i32, elements that each client sends.

  Returns:
    The selection; `sent + residual == accumulated`, bit for bit but for the
    sign of a zero.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1: the divisor is always C.
  """
  sent = jnp.where(client_mask, accumulated, 0.0)
  return Selection(
      mask=mask,
      client_mask=client_mask,
      sent=sent,
      residual=jnp.where(client_mask, 0.0, accumulated),
      aggregate=jnp.sum(sent * weights[:, None], axis=0),
      k_up=k_up,
      k_down=jnp.sum(mask),
  )


def _at_or_above(keys, entries):
  """[N, D] bool: each client's entries down to its own `entries`."""
  return jax.vmap(topk.at_or_above)(keys, entries)


def _nth_largest(keys, q):
  """Each client's q-th entry; a map, for the radix search wants caches."""
  return lax.map(lambda row: topk.nth_largest(row, q), keys)


def _deeper_kappa(keys, k, shallow, union_shallow):
  """The largest q >= shallow with |union_i J_i^q| <= k, by a bracketed search.

  Two thirds of the steps interpolate (the union grows smoothly with q), one
  third halve the bracket, so the number of steps stays logarithmic.
  """

  def union_size(q):
    inside = _at_or_above(keys, _nth_largest(keys, q))
    return jnp.sum(jnp.any(inside, axis=0))

  def narrow(bracket):
    low, size_low, high, size_high, step = bracket
    middle = low + (high - low) // 2
    slope = (high - low) / jnp.maximum(size_high - size_low, 1)
    guess = low + jnp.int32(slope * (k - size_low))
    q = jnp.where(step % 3 == 2, middle, guess)
    q = jnp.clip(q, low + 1, high - 1)
    size = union_size(q)
    inside = size <= k
    return (
        jnp.where(inside, q, low),
        jnp.where(inside, size, size_low),
        jnp.where(inside, high, q),
        jnp.where(inside, size_high, size),
        step + 1,
    )

  # At depth k + 1 a single client alone has more than k entries; the size
  # there only steers the first guess.
  dim = jnp.int32(keys.shape[1])
  bracket = (shallow, union_shallow, k + 1, dim, jnp.int32(0))
  return lax.while_loop(lambda b: b[2] - b[0] > 1, narrow, bracket)[0]


def _fab_masks(accumulated, k, *, prefix_depth):
  """J [D] and J_i & J [N, D] of FAB-top-k."""
  num_clients, dim = accumulated.shape
  keys = topk.magnitude_key(accumulated)
  depth = min(prefix_depth, dim)
  # Equal magnitudes: top_k takes the lower index first, as `Entry` does.
  _, order = lax.top_k(jnp.abs(accumulated), depth)
  ranks = jnp.broadcast_to(
      lax.iota(jnp.int32, depth), (num_clients, depth)
  )
  best_rank = jnp.full(dim, depth, jnp.int32).at[order].min(ranks)
  rank_counts = jnp.zeros(depth, jnp.int32).at[best_rank].add(1, mode="drop")
  union_sizes = jnp.cumsum(rank_counts)  # at depth 1, 2, ...
  shallow = jnp.sum(union_sizes <= k)
  union_shallow = jnp.sum(jnp.where(union_sizes <= k, rank_counts, 0))

  def entries(q):
    def from_prefix():
      index = order[:, jnp.maximum(q - 1, 0)]
      key = jnp.take_along_axis(keys, index[:, None], axis=1)[:, 0]
      nothing = topk.Entry(jnp.iinfo(jnp.int32).max, -1)
      return jax.tree.map(
          lambda some, none: jnp.where(q > 0, some, none),
          topk.Entry(key, index),
          nothing,
      )

    return lax.cond(q <= depth, from_prefix, lambda: _nth_largest(keys, q))

  kappa = lax.cond(
      (shallow < depth) | (k <= depth),
      lambda: shallow,
      lambda: _deeper_kappa(keys, k, shallow, union_shallow),
  )
  union = jnp.any(_at_or_above(keys, entries(kappa)), axis=0)
  # Fill up with the clients' next entries, the largest magnitudes first.
  following = entries(kappa + 1)
  waiting = jnp.full(dim, -1, jnp.int32).at[following.index].max(following.key)
  waiting = jnp.where(union, -1, waiting)
  # One more than the key: a waiting zero differs from no candidate, and the
  # radix search wants no negative keys.
  room = k - jnp.sum(union)
  last = topk.nth_largest(waiting + 1, room)
  mask = union | (topk.at_or_above(waiting + 1, last) & (waiting >= 0))
  return mask, _at_or_above(keys, entries(k)) & mask


def fab_top_k(prefix_depth: int = _PREFIX_DEPTH) -> Sparsifier:
  """Fairness-aware bidirectional top-k.

  J takes every client's kappa largest entries, with kappa as large as k
  allows, then the largest of the (kappa+1)-th ones. So |J| = k, and every
  client contributes at least floor(k / N) elements. Zeros are entries like
  others, the smallest; equal magnitudes go by index. k is clipped to D.

  Args:
    prefix_depth: entries of each client that are sorted; ranks beyond are
      searched. It changes the cost, never the result.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FAB-top-k.
  """
  # Under vmap (seeds) one after another, so that its branches stay branches.
  masks = sequential_vmap(
      functools.partial(_fab_masks, prefix_depth=prefix_depth)
  )

  def init(num_clients, dim):
    del num_clients, dim
    return ()

  def apply(key, accumulated, weights, k, state):
    del key
    chex.assert_rank([accumulated, weights, k], [2, 1, 0])
    chex.assert_type([accumulated, k], [jnp.float32, jnp.int32])
    k = jnp.minimum(k, accumulated.shape[1])
    mask, client_mask = masks(accumulated, k)
    return select(accumulated, weights, mask, client_mask, k), state

  return Sparsifier(init, apply)
