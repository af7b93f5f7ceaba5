"""Exact order statistics of magnitudes with a traced rank.

The entries of a vector x are ordered by |x_j|, largest first; of equal
magnitudes the lower index comes first. An `Entry` names one place in that order
with two integers. So "the q largest entries" needs no array: they are the
entries `at_or_above` the q-th one. The rank q is always a traced number. No
shape depends on it, so a change of q never recompiles.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

# A float32 magnitude has 31 bits. A radix search takes a first digit of 5 to 15
# of them, by `_high_bits`, and then digits of at most 16 bits.
_BITS = 31
_MOST_BITS = 16
_ROWS = 256

# Values in a block; `top` first looks at the largest value of each block.
_BLOCK = 32


class Entry(NamedTuple):
  """A place in the order of a vector's entries, largest magnitude first.

  Attributes:
    key: [...] i32, the magnitude's bits (see `magnitude_key`).
    coordinate: [...] i32.
  """

  key: jax.Array
  coordinate: jax.Array


def magnitude_key(x: jax.Array) -> jax.Array:
  """The bits of |x| as int32, which have the order of the magnitudes.

  Integers also order denormals, which some hardware treats as zero.

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
  no_later = lax.iota(jnp.int32, keys.shape[0]) <= entry.coordinate
  return (keys > entry.key) | ((keys == entry.key) & no_later)


def _high_bits(dim):
  """Bits of the first digit: about one bin for 4 to 8 entries, if D allows."""
  return min(max(dim.bit_length() - 3, 5), 15)


def _low_bits(dim):
  """Bits of a magnitude beyond its first digit."""
  return _BITS - _high_bits(dim)


def _zero_bins(dim):
  """Bins of zeros, one for 32 others.

  There are many exact zeros, ordered by index. So a bin of zeros is a stretch
  of coordinates. These bins lie below those of the first digit.
  """
  return 1 << (_high_bits(dim) - 5)


def num_bins(dim: int) -> int:
  """How many `bins` there are for D entries: fewer than D / 3, if D >= 99.

  So the counts of all clients take less than a third of the memory of their
  gradients.
  """
  return _zero_bins(dim) + (1 << _high_bits(dim))


def bins(keys: jax.Array) -> jax.Array:
  """A coarse order of one vector's entries: no later entry has a higher bin.

  Args:
    keys: [D] i32 from `magnitude_key`.

  Returns:
    [D] i32, 0..num_bins(D) - 1.
  """
  dim = keys.size
  zero_bins = _zero_bins(dim)
  of_zero = zero_bins - 1 - lax.iota(jnp.int32, dim) // _stretch(dim)
  return jnp.where(keys > 0, zero_bins + (keys >> _low_bits(dim)), of_zero)


def _stretch(dim):
  return -(-dim // _zero_bins(dim))


def bin_start(bin_index: jax.Array, dim: int) -> Entry:
  """The place right above all entries that a bin can hold.

  Args:
    bin_index: [] i32.
    dim: D.

  Returns:
    The [] place; there may be no entry in it.
  """
  digit = bin_index - _zero_bins(dim)
  before = -(digit + 1) * _stretch(dim) - 1
  return Entry(
      jnp.maximum(digit + 1, 0) << _low_bits(dim),
      jnp.where(digit < 0, before, -1),
  )


def count(keys: jax.Array) -> jax.Array:
  """How many of one vector's entries are in each of its `bins`.

  Args:
    keys: [D] i32 from `magnitude_key`.

  Returns:
    [num_bins(D)] i32.
  """
  return jnp.zeros(num_bins(keys.size), jnp.int32).at[bins(keys)].add(1)


def bin_at(
    counts: jax.Array, rank: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The bin at a rank.

  The sums of rows give the row; then the bin is found in it. These two short
  searches cost a tenth of one long search.

  Args:
    counts: [B] i32, entries by bin; B is a power of 2, or 33 of them.
    rank: [] i32 from 1, highest bin first.

  Returns:
    The bin, and the rank among its entries; [] i32.
  """
  rows = counts.reshape(math.gcd(_ROWS, counts.size), -1)
  row, rank = _short_bin(jnp.sum(rows, axis=1, dtype=jnp.int32), rank)
  column, rank = _short_bin(rows[row], rank)
  return row * rows.shape[1] + column, rank


def _short_bin(counts, rank):
  index = lax.iota(jnp.int32, counts.size)
  # Comparing all pairs is quicker to compile and to run than a scan.
  later = index[None] >= index[:, None]
  at_least = jnp.sum(
      jnp.where(later, counts[None], 0), axis=1, dtype=jnp.int32
  )
  found = jnp.sum(at_least >= rank, dtype=jnp.int32) - 1
  return found, rank - (at_least[found] - counts[found])


def nth_largest(keys: jax.Array, counts: jax.Array, q: jax.Array) -> Entry:
  """The q-th entry of one vector, by a radix search.

  Args:
    keys: [D] i32 from `magnitude_key`.
    counts: their `count`.
    q: [] i32 rank from 1. Rank 0 gives the place above all entries, so nothing
      is `at_or_above` it. Ranks beyond D mean D.

  Returns:
    The [] entry.
  """
  q = jnp.minimum(q, keys.size)
  high, q_high = bin_at(counts, q)
  is_zero = high < _zero_bins(keys.size)
  found = lax.cond(is_zero, _nth_zero, _nth_of_digit, keys, high, q_high)
  return jax.tree.map(
      lambda some, none: jnp.where(q > 0, some, none), found, above_all()
  )


def _nth_zero(keys, high, n):
  """The n-th zero of a stretch."""
  stretch = _stretch(keys.size)
  start = (_zero_bins(keys.size) - 1 - high) * stretch
  index = start + lax.iota(jnp.int32, stretch)
  zeros = keys.at[index].get(mode="fill", fill_value=1) == 0
  return Entry(jnp.int32(0), start + _nth_true(zeros, n))


def _nth_of_digit(keys, high, n):
  """The n-th entry among those, not zero, that share a first digit."""
  found, unknown = high - _zero_bins(keys.size), _low_bits(keys.size)
  while unknown:
    # The next digit: the entries that share all digits so far, by its value.
    bits = -(-unknown // -(-unknown // _MOST_BITS))
    shares = (keys > 0) & (keys >> unknown == found)
    unknown -= bits
    size = 1 << bits
    digits = jnp.where(shares, (keys >> unknown) & (size - 1), size)
    counts = jnp.zeros(size, jnp.int32).at[digits].add(1, mode="drop")
    digit, n = bin_at(counts, n)
    found = (found << bits) | digit
  ties = keys == found
  # Mostly the n-th is the last entry with its key; then no scan is needed.
  index = lax.cond(
      n == counts[digit],
      lambda: jnp.max(jnp.where(ties, lax.iota(jnp.int32, keys.size), -1)),
      lambda: _nth_true(ties, n),
  )
  return Entry(found, index)


def _nth_true(mask, n):
  """The index of the n-th True, [] i32."""
  return lax.argmax(jnp.cumsum(mask, dtype=jnp.int32) >= n, 0, jnp.int32)


def top(values: jax.Array, width: int) -> jax.Array:
  """The coordinates of the largest values, as `lax.top_k` gives them.

  The W largest values lie in the W blocks with the largest maxima: each value
  of another block comes after those W maxima. That holds for equal values too,
  because blocks with equal maxima go by index, as entries do.

  Args:
    values: [D] f32.
    width: W <= D.

  Returns:
    [W] i32, largest value first; of equal values the lower index first.
  """
  num_blocks = values.size // _BLOCK
  if num_blocks <= width:
    return lax.top_k(values, width)[1]
  end = num_blocks * _BLOCK
  # Integers, because a maximum of floats may take denormals for zeros.
  bits = lax.bitcast_convert_type(values[:end], jnp.int32)
  maxima = jnp.max(_ordered(bits).reshape(num_blocks, _BLOCK), axis=1)
  maxima = lax.bitcast_convert_type(_ordered(maxima), jnp.float32)
  chosen = jnp.sort(lax.top_k(maxima, width)[1])
  index = chosen[:, None] * _BLOCK + lax.iota(jnp.int32, _BLOCK)[None]
  rest = jnp.arange(end, values.size, dtype=jnp.int32)
  index = jnp.concatenate([index.reshape(-1), rest])
  return index[lax.top_k(values[index], width)[1]]


def _ordered(bits):
  """Bits of floats as integers in the order of the floats; also the inverse."""
  return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def above_all() -> Entry:
  """The place above every entry of any vector."""
  return Entry(jnp.int32(jnp.iinfo(jnp.int32).max), jnp.int32(-1))


def below_all() -> Entry:
  """The place below every entry of any vector."""
  return Entry(jnp.int32(0), jnp.int32(jnp.iinfo(jnp.int32).max))
