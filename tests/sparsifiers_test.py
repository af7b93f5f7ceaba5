"""FAB-top-k against the NumPy oracle, and its laws."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import sparsifiers, topk
from tests import reference


def apply(accumulated, counts, k):
  weights = jnp.asarray(counts / np.sum(counts), jnp.float32)
  return _apply(jnp.asarray(accumulated), weights, jnp.int32(k))


_apply = jax.jit(lambda a, w, k: sparsifiers.fab_top_k().apply(
    None, a, w, k, ())[0])


class FabTest(parameterized.TestCase):

  @parameterized.product(num_clients=(1, 4), scale=(2, 1000))
  def test_equals_oracle_and_laws(self, num_clients, scale):
    """Masks as the oracle's; |J| = k; fairness; conservation; ties too."""
    rng = np.random.default_rng(scale)
    dim = 50
    for k in (0, 1, 3, 7, 20, 49, 50):
      a = rng.integers(-scale, scale + 1, (num_clients, dim))
      a = a.astype(np.float32)
      counts = rng.integers(1, 9, num_clients)
      got = apply(a, counts, k)
      want = reference.fab(a, counts, k)
      np.testing.assert_array_equal(got.mask, want.mask)
      np.testing.assert_array_equal(got.client_mask, want.client_mask)
      np.testing.assert_allclose(
          got.aggregate, want.aggregate, rtol=1e-5, atol=1e-6 * scale
      )
      self.assertEqual(np.sum(got.mask), k)
      self.assertTrue(
          np.all(np.sum(got.client_mask, 1) >= k // num_clients)
      )
      np.testing.assert_array_equal(
          np.asarray(got.sent) + np.asarray(got.residual), a
      )

  def test_nth_largest_equals_sorting(self):
    """Law: the q-th entry is that of a stable sort, ties and zeros too."""
    rng = np.random.default_rng(0)
    x = rng.integers(-4, 5, 60).astype(np.float32)
    x[:3] = 1e-40, -2e-40, 0.0
    order = np.argsort(-np.abs(x.astype(np.float64)), kind="stable")
    nth = jax.jit(topk.nth_largest)
    keys = topk.magnitude_key(jnp.asarray(x))
    for q in range(1, 61):
      self.assertEqual(int(nth(keys, q).index), order[q - 1])


if __name__ == "__main__":
  absltest.main()
