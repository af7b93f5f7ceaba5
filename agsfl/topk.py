"""Exact order statistics of magnitudes with a traced rank.

The entries of a vector x are ordered by |x_j|, largest first, and by index
where magnitudes are equal. An `Entry` names one place in that order with two
integers, so "the q largest entries" costs no memory: it is everything
`at_or_above` the q-th entry. The rank q is always a traced number; no shape
depends on it, so a change of q never recompiles.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# A float32 magnitude has 31 bits; two radix digits cover them.
LOW_BITS = 16
HIGH_BINS = 1 << (31 - LOW_BITS)
_LOW_BINS = 1 << LOW_BITS
_ROWS = 256


class Entry(NamedTuple):
  """A place in the order of a vector's entries, largest magnitude first.

  Attributes:
    key: [...] i32, the magnitude's bits (see `magnitude_key`).
    index: [...] i32, the coordinate.
  """

  key: jax.Array
  index: jax.Array


def magnitude_key(x: jax.Array) -> jax.Array:
  """The bits of |x| as int32: they order as the magnitudes do.

  Integers tell denormals from zero where the hardware flushes floats.

  Args:
    x: [...] f32. NaN counts as larger than infinity.

  Returns:
    [...] i32, not negative.
  """
  return lax.bitcast_convert_type(jnp.abs(x), jnp.int32)


def at_or_above(keys: jax.Array, entry: Entry) -> jax.Array:
  """Mask of the entries that come no later than `entry` in the order.

  Args:
    keys: [D] i32 from `magnitude_key`.
    entry: [] an entry of that vector.

  Returns:
    [D] bool.
  """
  index = lax.iota(jnp.int32, keys.shape[0])
  return (keys > entry.key) | ((keys == entry.key) & (index <= entry.index))


def digit_at(
    counts: jax.Array, rank: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The digit at a rank.

  Sums of rows first: two short searches cost a tenth of a long one.

  Args:
    counts: [B] i32, entries by digit; 256 divides B.
    rank: [] i32 from 1, largest digit first.

  Returns:
    The digit, the rank among its entries, and their number; [] i32.
  """
  rows = counts.reshape(_ROWS, -1)
  row, rank = _short_digit(jnp.sum(rows, axis=1), rank)
  column, rank = _short_digit(rows[row], rank)
  return row * rows.shape[1] + column, rank, rows[row, column]


def _short_digit(counts, rank):
  index = lax.iota(jnp.int32, counts.size)
  # All pairs compared: quicker to compile and to run than a scan.
  later = index[None] >= index[:, None]
  at_least = jnp.sum(jnp.where(later, counts[None], 0), axis=1)
  digit = jnp.sum(at_least >= rank, dtype=jnp.int32) - 1
  return digit, rank - (at_least[digit] - counts[digit])


def high_counts(keys: jax.Array) -> jax.Array:
  """How many of one vector's entries have each high digit.

  Args:
    keys: [D] i32 from `magnitude_key`.

  Returns:
    [HIGH_BINS] i32, by `high_digit`.
  """
  return jnp.zeros(HIGH_BINS, jnp.int32).at[high_digit(keys)].add(1)


def high_digit(keys: jax.Array) -> jax.Array:
  """The first of a key's two digits: exponent and leading mantissa bits."""
  return keys >> LOW_BITS


def nth_largest(keys: jax.Array, counts: jax.Array, q: jax.Array) -> Entry:
  """The q-th entry of one vector, by a radix search of two digits.

  The cost does not depend on q: a histogram and at most one scan.

  Args:
    keys: [D] i32 from `magnitude_key`.
    counts: their `high_counts`.
    q: [] i32 rank from 1. At 0 the entry lies above all others, so that
      nothing is `at_or_above` it; ranks past D mean D.

  Returns:
    The [] entry.
  """
  q = jnp.minimum(q, keys.shape[0])
  high, q_high, _ = digit_at(counts, q)
  low_digits = jnp.where(
      high_digit(keys) == high, keys & (_LOW_BINS - 1), _LOW_BINS
  )
  low_counts = jnp.zeros(_LOW_BINS, jnp.int32).at[low_digits].add(
      1, mode="drop"
  )
  low, q_low, num_ties = digit_at(low_counts, q_high)
  key = (high << LOW_BITS) | low
  ties = keys == key
  index = lax.cond(
      q_low == num_ties,
      lambda: jnp.max(
          jnp.where(ties, lax.iota(jnp.int32, keys.shape[0]), -1)
      ),
      lambda: jnp.argmax(jnp.cumsum(ties) >= q_low).astype(jnp.int32),
  )
  nothing = above_all()
  return Entry(
      jnp.where(q > 0, key, nothing.key), jnp.where(q > 0, index, nothing.index)
  )


def above_all() -> Entry:
  """The place above every entry of any vector."""
  return Entry(jnp.int32(jnp.iinfo(jnp.int32).max), jnp.int32(-1))


def stochastic_round(k: jax.Array, uniform: jax.Array) -> jax.Array:
  """Rounds k to floor(k) or ceil(k) without bias: E = k.

  With one `uniform` for both, k' <= k - 1 stays below k after rounding.
  The fraction is compared rather than added: floor(k + u) in float32 would
  overshoot near k = 444,062.

  Args:
    k: [] f32, not negative.
    uniform: [] f32 from [0, 1).

  Returns:
    [] i32.
  """
  whole = jnp.floor(k)
  return whole.astype(jnp.int32) + (uniform < k - whole).astype(jnp.int32)
