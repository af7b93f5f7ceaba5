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
    delays: jax.Array | float = 0.0,
) -> jax.Array:
  """Shares n k elements among n clients so that their uploads end together.

  Client i has k_i = up_i (T - latency_i - computation_i) / bytes_per_element
  elements, but at least floor(k / n) and at most D. T is the moment at which
  the k_i add up to n k. float32 may lack this T. Then the k_i are those of the
  largest T that is too small, and the few elements that are left go to the
  first clients.

  FAB-top-k guarantees that floor(k / n) elements of each client are used. A
  client that cannot send so many until T still sends them, and its upload ends
  later than T. A client that sends all D elements ends earlier.

  Args:
    speeds: [n] each.
    seen: [n] or [] samples whose gradients a client computes.
    k: [] i32, the mean over those who take part; from 0 to D.
    takes_part: [n] bool; n is their number.
    bytes_per_element: [] above 0, of a message of k elements. With bitmask,
      golomb and entropy a longer message has fewer bytes for each element, and
      the uploads end only nearly together.
    dim: D; n D is below 2^41.
    delays: [n] or [] seconds that each client needs before it computes.

  Returns:
    [n] i32, whose sum is n k; 0 for clients that do not take part.

  As in BCRS, fast clients send more in the time in which they would wait for
  slow ones. Here the mean is still k, so the traffic does not grow.

  Source: Tang et al., "Bandwidth-aware and overlap-weighted compression for
  communication-efficient federated learning", ICPP 2024 (BCRS, arXiv
  2408.14736), with computation as in AdaGQ (Liu et al., "Communication-
  efficient federated learning for heterogeneous edge devices based on adaptive
  gradient quantization", INFOCOM 2023).
  """
  k = jnp.int32(k)
  # Uploads begin at different times. From the first on, float32 has the finest
  # steps of T.
  begins = arrival(speeds, seen, 0) + delays
  begins -= jnp.min(begins, where=takes_part, initial=jnp.inf)
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

  The lower 10 bits and the others are added apart.
  """
  low = jnp.sum(x & 1023, dtype=jnp.int32)
  high = jnp.sum(x >> 10, dtype=jnp.int32) + (low >> 10)
  return (high > 0) | ((high == 0) & (low & 1023 > 0))
