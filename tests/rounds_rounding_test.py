"""k as a whole number: unbiased, and exact."""

import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from agsfl.rounds import stochastic_round


class StochasticRoundTest(absltest.TestCase):

  def test_is_unbiased_and_exact_at_large_k(self):
    uniform = jnp.linspace(0, 1, 1000, endpoint=False)
    rounded = stochastic_round(jnp.float32(7.25), uniform)
    self.assertEqual(set(np.unique(rounded)), {7, 8})
    self.assertEqual(int(jnp.sum(rounded)), 7250)
    top = stochastic_round(jnp.float32(444062), jnp.float32(0.9999999))
    self.assertEqual(int(top), 444062)

  def test_a_probe_below_k_stays_below(self):
    for uniform in np.linspace(0, 1, 50, endpoint=False, dtype=np.float32):
      k = stochastic_round(jnp.float32(20.3), uniform)
      probe = stochastic_round(jnp.float32(20.3) - 1, uniform)
      self.assertEqual(int(k) - int(probe), 1)


if __name__ == "__main__":
  absltest.main()
