"""k of each client, so that all uploads end together."""

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.clocks.durations import arrival
from agsfl.clocks.speeds import Speeds


def k_together(
    speeds: Speeds,
    seen: jax.Array | float,
    k: jax.Array,
    takes_part: jax.Array,
    bytes_per_element: float | jax.Array,
    dim: int,
) -> jax.Array:
  """Shares n k elements among n clients so that their uploads end together.

  Client i has k_i = up_i (T - latency_i - computation_i) / bytes_per_element
  elements, between floor(k / n) and D, and T is the moment at which the k_i add
  up to n k. The last elements go to clients in their order; they change an
  upload by the least step of T, or by one element.

  floor(k / n) elements are what FAB-top-k guarantees to each client. A client
  that is too slow to send them until T sends them all the same, and its upload
  ends later. A client of D elements ends earlier.

  Args:
    speeds: [n] each.
    seen: [n] or [] samples whose gradients a client computes.
    k: [] i32, the mean over those who take part; from 0 to D.
    takes_part: [n] bool; n is their number, at most 2^15.
    bytes_per_element: [] above 0, of a message of k elements. With bitmask,
      golomb and entropy a longer message has fewer bytes for each element, and
      the uploads end only nearly together.
    dim: D.

  Returns:
    [n] i32, whose sum is n k; 0 for clients that do not take part.

  Source: Tang et al., "Bandwidth-aware and overlap-weighted compression for
  communication-efficient federated learning", ICPP 2024 (BCRS, arXiv
  2408.14736), with computation as in AdaGQ (Liu et al., "Communication-
  efficient federated learning for heterogeneous edge devices based on adaptive
  gradient quantization", INFOCOM 2023).
  """
  k = jnp.int32(k)
  begins = arrival(speeds, seen, 0)
  least = k // jnp.maximum(jnp.sum(takes_part, dtype=jnp.int32), 1)

  def elements(seconds):
    """[n] i32, k_i for T = `seconds`."""
    sent = (seconds - begins) * speeds.up / bytes_per_element
    # int32 holds all numbers up to 2^30.
    whole = jnp.clip(sent, 0.0, 2.0**30).astype(jnp.int32)
    return jnp.where(takes_part, jnp.clip(whole, least, dim), 0)

  def more_than_k(own):
    """[n] i32, by how much a client has more than the mean."""
    return jnp.where(takes_part, own - k, 0)

  # The bits of a float32 that is not negative grow with the number. So 31 steps
  # find the largest T at which the clients have no more than n k.
  def set_bit(step, bits):
    larger = bits | (jnp.int32(1) << (30 - step))
    seconds = _float32(larger)
    fits = jnp.isfinite(seconds) & ~_is_positive_sum(
        more_than_k(elements(seconds))
    )
    return jnp.where(fits, larger, bits)

  bits = lax.fori_loop(0, 31, set_bit, jnp.int32(0))
  own = elements(_float32(bits))

  # What is left goes to those who would have more at the next T.
  left = -jnp.sum(more_than_k(own), dtype=jnp.int32)
  more = elements(_float32(bits + 1)) - own
  before = jnp.cumsum(more, dtype=jnp.int32) - more
  return own + jnp.clip(left - before, 0, more)


def _float32(bits):
  return lax.bitcast_convert_type(bits, jnp.float32)


def _is_positive_sum(x):
  """Whether a sum of int32 is above 0, even if int32 cannot hold it.

  The upper 16 bits and the lower 16 bits are added apart.
  """
  low = jnp.sum(x & 0xFFFF, dtype=jnp.int32)
  high = jnp.sum(x >> 16, dtype=jnp.int32) + (low >> 16)
  return (high > 0) | ((high == 0) & (low & 0xFFFF > 0))
