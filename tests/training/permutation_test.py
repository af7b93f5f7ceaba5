"""The order of an epoch: each number once, all orders alike."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.training.permutation import permuted

permuted_jit = jax.jit(permuted)
LONGEST = 300


def order_of(seed, count):
  """All of one order; one program for all counts up to LONGEST."""
  positions = np.minimum(np.arange(LONGEST), count - 1)
  numbers = permuted_jit(jax.random.key(seed), positions, jnp.int32(count))
  return np.asarray(numbers)[:count]


def orders_of(num, count):
  """[num, count] orders of as many keys."""
  keys = jax.random.split(jax.random.key(count), num)
  return np.asarray(jax.jit(jax.vmap(
      lambda key: permuted(key, jnp.arange(count), jnp.int32(count))
  ))(keys))


class PermutedTest(parameterized.TestCase):

  def test_is_a_bijection_for_small_counts(self):
    """Law: each number of range(count) comes once, for every small count."""
    for count in range(1, 70):
      order = order_of(count, count)
      np.testing.assert_array_equal(np.sort(order), np.arange(count))

  @hypothesis.given(st.integers(0, 2**32 - 1), st.integers(1, LONGEST))
  def test_is_a_bijection(self, seed, count):
    """Law: the same for any key."""
    order = order_of(seed, count)
    np.testing.assert_array_equal(np.sort(order), np.arange(count))

  @hypothesis.given(
      st.integers(0, 2**32 - 1),
      st.one_of(
          st.integers(LONGEST, 2**31 - 1),
          # Next to the powers of four, where the network grows.
          st.builds(
              lambda h, more: min(4**h + more, 2**31 - 1),
              st.integers(5, 16), st.integers(-1, 1),
          ),
      ),
  )
  def test_large_counts(self, seed, count):
    """Law: any LONGEST positions give as many numbers of the range."""
    last = count - 1 - np.arange(LONGEST // 2)
    positions = np.union1d(np.arange(LONGEST - len(last)), last)
    hypothesis.assume(len(positions) == LONGEST)
    numbers = permuted_jit(
        jax.random.key(seed), positions.astype(np.int32), jnp.int32(count)
    )
    self.assertLen(set(np.asarray(numbers).tolist()), LONGEST)
    self.assertBetween(np.min(numbers), 0, count - 1)
    self.assertLess(np.max(numbers), count)

  @parameterized.parameters(2, 3, 4, 5)
  def test_all_orders_alike(self, count):
    """Law: Pearson's statistic of the orders' frequencies, within 4 sigma.

    5 is above a power of four, so its numbers often leave the range.
    """
    orders = orders_of(24_000, count)
    frequency = {order: 0 for order in itertools.permutations(range(count))}
    for order, times in zip(
        *np.unique(orders, axis=0, return_counts=True), strict=True
    ):
      frequency[tuple(order.tolist())] = times
    freedom = math.factorial(count) - 1
    self.assertLess(
        _pearson(np.array(list(frequency.values()))),
        freedom + 4 * math.sqrt(2 * freedom),
    )

  @parameterized.parameters(16, 50)
  def test_pairs_alike(self, count):
    """Law: two positions have any two numbers alike, by the same measure."""
    orders = orders_of(24_000, count)
    freedom = count * (count - 1) - 1
    for i, j in ((0, 1), (0, count - 1), (count // 2, 3)):
      pairs = np.bincount(orders[:, i] * count + orders[:, j],
                          minlength=count**2).reshape(count, count)
      self.assertLess(
          _pearson(pairs[~np.eye(count, dtype=bool)]),
          freedom + 4 * math.sqrt(2 * freedom),
      )


def _pearson(frequency):
  """sum (observed - expected)^2 / expected, where all are expected alike."""
  expected = np.mean(frequency)
  return np.sum((frequency - expected) ** 2) / expected


if __name__ == "__main__":
  absltest.main()
