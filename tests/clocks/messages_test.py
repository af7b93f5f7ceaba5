"""Bits of messages and 16-bit values against NumPy and a real encoder."""

import typing

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.clocks import Message, rounded, volume
from agsfl.clocks.messages import golomb_bits
from agsfl.names import IndexCoding

DIMS = (1, 2, 7, 1000, 444_062, 10**8 - 1, 10**8)
LARGEST = float(np.finfo(np.float32).max)

# One program for each form of a message: D is traced, and shapes are equal.
volume = jax.jit(volume, static_argnums=0)


@jax.jit
def sent_and_rest(values):
  sent = rounded(values, 16)
  return sent, values - sent


def counts(dim):
  """[80] numbers of elements from 1 to D: small, large and between."""
  some = np.geomspace(1, dim, 40).astype(np.int32)
  return np.concatenate((some, dim + 1 - some))


def rice_bits(share):
  """Bits for each index in float64, with the best of all Rice parameters."""
  with np.errstate(divide="ignore", over="ignore"):
    off = np.log1p(-share)
    return np.min([b - 1 / np.expm1(2.0**b * off) for b in range(40)], axis=0)


def index_bits(coding, k, dim):
  """Bits of k indices in float64."""
  k = k.astype(np.float64)
  if coding == "raw":
    return 32 * k
  if coding == "bitmask":
    return np.full(len(k), dim)
  if coding == "golomb":
    return k * rice_bits(k / dim)
  off = np.where(k < dim, (dim - k) / dim, 1)
  return -k * np.log2(k / dim) - (dim - k) * np.log2(off)


def encode(positions, b):
  """Gaps between ascending positions in a Rice code, as text of 0 and 1."""
  gaps = np.diff(positions, prepend=-1) - 1
  low = lambda gap: f"{gap % 2**b:0{b}b}" if b else ""
  return "".join("1" * (gap >> b) + "0" + low(gap) for gap in gaps.tolist())


def decode(text, b):
  """The positions in such a text."""
  positions, place, last = [], 0, -1
  while place < len(text):
    zero = text.index("0", place)
    high, place = zero - place, zero + 1 + b
    last += 1 + (high << b) + int(text[zero + 1 : place] or "0", 2)
    positions.append(last)
  return positions


class VolumeTest(parameterized.TestCase):

  @parameterized.product(coding=typing.get_args(IndexCoding), bits=(16, 32))
  def test_equals_the_formula_in_float64(self, coding, bits):
    """Law: right to 4e-6 for all k up to D = 10^8."""
    for dim in DIMS:
      k = counts(dim)
      got = volume(Message(coding, bits), k, 2.0 * k, dim)
      want = (bits * k.astype(np.float64) + index_bits(coding, k, dim)) / 32
      self.assertEqual(got.dtype, jnp.float32)
      np.testing.assert_allclose(got, want, rtol=4e-6, err_msg=f"D = {dim}")

  def test_by_default_it_is_numbers_bit_for_bit(self):
    """Law: also where a method of one's own counts less than its elements."""
    numbers = np.float32([0, 1, 3.3, 1e8 / 3, 2e8, 0.1])
    elements = np.int32([0, 1, 3, 10**7, 10**8, 10**8])
    got = volume(Message(), elements, numbers, 10**8)
    np.testing.assert_array_equal(got, numbers)

  @parameterized.product(coding=typing.get_args(IndexCoding), bits=(16, 32))
  def test_no_index_costs_nothing(self, coding, bits):
    """Law: where both sides know the indices, or k is 0, there are none."""
    k = np.int32([0, 1, 1000])
    got = volume(Message(coding, bits), k, k, 1000)
    np.testing.assert_array_equal(got, k * (bits / 32))

  def test_order_of_codes(self):
    """Law: no code is shorter than the entropy."""
    for dim in DIMS:
      k = counts(dim)
      least, golomb, bitmask = (
          volume(Message(name), 0 * k, 1.0 * k, dim)
          for name in ("entropy", "golomb", "bitmask")
      )
      least = least * (1 - 4e-6) - 1e-3
      self.assertTrue(np.all(least <= golomb), f"D = {dim}")
      self.assertTrue(np.all(least <= bitmask), f"D = {dim}")

  def test_entropy_is_that_of_all_sets(self):
    """Law: D H(k / D) - log2(D + 1) <= log2 (D over k) <= D H(k / D)."""
    dim = 1000
    k = np.arange(1, dim + 1, dtype=np.int32)
    logs = np.concatenate(([0], np.cumsum(np.log2(np.arange(1, dim + 1)))))
    sets = logs[dim] - logs[k] - logs[dim - k]
    got = np.asarray(volume(Message("entropy"), 0 * k, 1.0 * k, dim)) * 32
    self.assertTrue(np.all(sets <= got + 1e-3))
    self.assertTrue(np.all(got <= sets + np.log2(dim + 1) + 1e-3))

  @parameterized.parameters(
      (10_000, 20_000_000), (5000, 444_062), (10_000, 50_000),
      (10_000, 20_000), (18_000, 20_000),
  )
  def test_a_real_encoder(self, k, dim):
    """Law: at random positions it needs as many bits, to 1%; and it decodes."""
    rng = np.random.default_rng(k)
    positions = np.sort(rng.choice(dim, k, replace=False))
    texts = {b: encode(positions, b) for b in range(14)}
    best = min(texts, key=lambda b: len(texts[b]))
    self.assertEqual(decode(texts[best], best), positions.tolist())
    got = k * float(golomb_bits(jnp.float32(k / dim)))
    np.testing.assert_allclose(got, len(texts[best]), rtol=0.01)


class RoundedTest(parameterized.TestCase):

  @hypothesis.given(
      st.lists(st.floats(width=32, allow_nan=False), min_size=8, max_size=8)
  )
  @hypothesis.example([0, -1, 1e-30, -1e30, LARGEST, -LARGEST, 1 / 3, 65504])
  def test_nothing_is_lost(self, values):
    """Law: rounded + rest is the value, bit for bit."""
    # XLA reads numbers below the smallest normal one as 0.
    values = np.float32(values)
    values = np.where(np.abs(values) < np.finfo(np.float32).tiny, 0, values)
    sent, rest = map(np.asarray, sent_and_rest(values))
    np.testing.assert_array_equal(sent + rest, values)

    # Law: what is sent is the nearest bfloat16, but for the smallest numbers.
    largest = float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    nearest = np.clip(values, -largest, largest).astype(ml_dtypes.bfloat16)
    small = np.abs(values) < 2.0**-102
    np.testing.assert_array_equal(sent, np.where(small, 0, nearest))

  def test_32_bits_are_the_values(self):
    values = np.float32([1 / 3, np.inf, 1e-40])
    self.assertIs(rounded(values, 32), values)

  def test_what_is_no_number_stays_so(self):
    sent, _ = sent_and_rest(np.float32([np.nan] * 8))
    np.testing.assert_array_equal(sent, np.nan)


if __name__ == "__main__":
  absltest.main()
