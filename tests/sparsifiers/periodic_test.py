"""Periodic-k: which coordinates have their turn, and how often."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest

from agsfl.sparsifiers.methods import periodic_k

_select = jax.jit(periodic_k().select)


class PeriodicTest(absltest.TestCase):

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
      st.lists(st.integers(1, 40), min_size=8, max_size=8),
      st.integers(0, 2**32 - 1),
  )
  def test_every_index_once_per_period(self, ks, seed):
    sparsifier = periodic_k()
    accumulated, weights = jnp.ones((2, 40)), jnp.full(2, 0.5)
    state, seen = sparsifier.init(2, 40), np.zeros(40, int)
    for m, k in enumerate(ks):
      key = jax.random.fold_in(jax.random.key(seed), m)
      selection, state = _select(key, accumulated, weights, k, state)
      # Law: exactly k different ones, past the period's end too.
      self.assertEqual(selection.k_up, k)
      self.assertEqual(selection.k_down, k)
      self.assertEqual(selection.volume_up, k)
      seen += np.asarray(selection.mask)
      # Law: within a period no index twice; at its end each once more.
      self.assertLessEqual(seen.max() - seen.min(), 1)
      np.testing.assert_array_equal(state.left, seen == seen.min())

  def test_every_index_is_as_likely(self):
    """Law: k / D in every round; over 2,000 runs of four, to 6 deviations."""
    ks = jnp.array([3, 6, 3, 2])  # of 10: the second period is begun by two

    def run(key):
      def one(state, key_and_k):
        key, k = key_and_k
        selection, state = periodic_k().select(
            key, jnp.ones((1, 10)), jnp.ones(1), k, state
        )
        return state, selection.mask

      state = periodic_k().init(1, 10)
      return jax.lax.scan(one, state, (jax.random.split(key, 4), ks))[1]

    keys = jax.random.split(jax.random.key(0), 2000)
    masks = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    share = np.mean(masks, 0)  # [4, 10]
    np.testing.assert_allclose(
        share, np.repeat(ks[:, None] / 10, 10, axis=1), atol=6 * 0.5 / 2000**0.5
    )

  def test_periods_differ_and_trials_share_one(self):
    sparsifier = periodic_k()
    accumulated, weights = jnp.ones((2, 40)), jnp.full(2, 0.5)
    state = sparsifier.init(2, 40)
    ks = jnp.array([20, 7])
    of_ks = jax.vmap(sparsifier.select, (None, None, None, 0, None))
    tried, _ = jax.jit(of_ks)(
        jax.random.key(0), accumulated, weights, ks, state
    )
    # Law: the smaller k's coordinates are among the larger one's.
    self.assertFalse(np.any(tried.mask[1] & ~tried.mask[0]))
    other, _ = _select(jax.random.key(1), accumulated, weights, 20, state)
    self.assertTrue(np.any(other.mask != tried.mask[0]))


if __name__ == "__main__":
  absltest.main()
