"""Order statistics against stable sorts by NumPy."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.sparsifiers import topk


def order_of(x):
  """All coordinates, largest magnitude first; no denormal in float64."""
  return np.argsort(-np.abs(x.astype(np.float64)), kind="stable")


@jax.jit
def nth_largest(keys, q):
  return topk.nth_largest(keys, topk.count(keys), q)


class NthLargestTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(
      hnp.arrays(
          np.float32,
          40,
          elements=st.floats(width=32, allow_nan=False)
          | st.sampled_from((0.0, -0.0, 1.0, -1.0)),
      ),
      st.integers(1, 40),
  )
  def test_is_the_entry_of_a_stable_sort(self, x, q):
    order = order_of(x)
    keys = topk.magnitude_key(jnp.asarray(x))
    entry = nth_largest(keys, q)
    self.assertEqual(entry.coordinate, order[q - 1])
    inside = np.asarray(topk.at_or_above(keys, entry))
    np.testing.assert_array_equal(np.flatnonzero(inside), np.sort(order[:q]))

  # The digits of a radix search depend on D.
  @parameterized.parameters(5000, 70_000, 300_000)
  def test_where_zeros_share_bins(self, dim):
    rng = np.random.default_rng(dim)
    x = np.where(rng.random(dim) < 0.2, rng.normal(size=dim), 0)
    x[::7] *= 1e-42  # denormals lie above zeros
    x = x.astype(np.float32)
    order = order_of(x)
    keys = topk.magnitude_key(jnp.asarray(x))
    for share in (0.0, 0.18, 0.22, 0.5, 1.0):
      q = max(1, int(share * dim))
      self.assertEqual(nth_largest(keys, q).coordinate, order[q - 1])

  def test_the_ends_of_the_order(self):
    keys = topk.magnitude_key(jnp.array([jnp.inf, 1.0, 0.0]))
    self.assertFalse(np.any(topk.at_or_above(keys, topk.above_all())))
    self.assertFalse(np.any(topk.at_or_above(keys, nth_largest(keys, 0))))
    self.assertTrue(np.all(topk.at_or_above(keys, topk.below_all())))


class TopTest(parameterized.TestCase):

  @parameterized.product(dim=(64, 1000, 3001), width=(1, 7, 30))
  def test_is_top_k(self, dim, width):
    """Law: as lax.top_k, ties and all, where blocks are cut off too."""
    rng = np.random.default_rng(dim + width)
    for values in (
        rng.normal(size=dim),
        rng.integers(0, 3, dim),
        np.zeros(dim),
        np.where(rng.random(dim) < 0.01, rng.normal(size=dim), -1),
    ):
      values = jnp.asarray(values, jnp.float32)
      np.testing.assert_array_equal(
          topk.top(values, width), jax.lax.top_k(values, width)[1]
      )

  def test_denormals_among_zeros(self):
    """Law: order is by bits, though floats on CPU flush denormals to 0."""
    values = np.zeros(8192, np.float32)
    values[5000], values[7000] = 1e-41, 3e-41
    got = jax.jit(topk.top, static_argnums=1)(values, 64)
    np.testing.assert_array_equal(got[:3], [7000, 5000, 0])


if __name__ == "__main__":
  absltest.main()
