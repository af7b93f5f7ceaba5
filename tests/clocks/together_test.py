"""k of each client by its speed: what makes the shares the right ones."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import clocks
from agsfl.clocks import Speeds

k_together = jax.jit(clocks.k_together)
BYTES = 8.0
PLACES = 6


def shares_in_float64(begins, rates, k, least, dim):
  """k_i as real numbers, by bisection of T."""
  own = lambda seconds: np.clip((seconds - begins) * rates, least, dim)
  low, high = 0.0, float(np.max(begins + dim / rates)) + 1
  for _ in range(200):
    middle = (low + high) / 2
    if own(middle).sum() <= len(begins) * k:
      low = middle
    else:
      high = middle
  return own(low)


@st.composite
def cohorts(draw):
  """(speeds, seen, k, takes_part, D)."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32)))
  spread = draw(st.sampled_from((0, 0.5, 2)))
  number = lambda: np.exp(rng.normal(0, spread, PLACES)).astype(np.float32)
  speeds = Speeds(
      draw(st.sampled_from((0, 0.01, 0.2))) * number(),
      1e5 * number(), 1e5 * number(), 0.1 * number(),
  )
  dim = draw(st.integers(1, 10**6))
  k = draw(st.integers(0, dim))
  takes_part = np.array(draw(st.tuples(*[st.booleans()] * PLACES)))
  return speeds, np.float32(rng.integers(0, 64, PLACES)), k, takes_part, dim


class TogetherTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=200)
  @hypothesis.given(cohorts())
  def test_laws(self, cohort):
    speeds, seen, k, takes_part, dim = cohort
    got = np.asarray(k_together(speeds, seen, k, takes_part, BYTES, dim))
    n = int(takes_part.sum())
    least = k // max(n, 1)

    # Law: the mean over those who take part is k; the others have nothing.
    self.assertEqual(got.dtype, np.int32)
    self.assertEqual(got.sum(), n * k)
    self.assertFalse(np.any(got[~takes_part]))
    if n == 0:
      return

    # Law: what stands in the places of others does not matter, not even 0.
    others = Speeds(*(column * takes_part for column in speeds))
    again = k_together(others, seen, k, takes_part, BYTES, dim)
    np.testing.assert_array_equal(again, got)

    # Law: each has from floor(k / n) to D.
    own = got[takes_part]
    self.assertTrue(np.all((least <= own) & (own <= dim)))

    # Law: no client that could have less ends after one that could have more,
    # but for one element of each.
    begins = np.asarray(clocks.arrival(speeds, seen, 0))[takes_part]
    rates = np.float64(speeds.up[takes_part]) / BYTES
    ends = begins + own / rates
    slack = 1e-6 * ends.max() + 1 / rates
    for i in np.flatnonzero(own > least):
      for j in np.flatnonzero(own < dim):
        self.assertLessEqual(ends[i] - slack[i], ends[j] + slack[j])

    # Law: they are those of float64, but for whole numbers and the last bits
    # of T.
    want = shares_in_float64(begins, rates, k, least, dim)
    moment = np.max(begins + want / rates, where=want > least, initial=0)
    slack = 1 + n + 1e-6 * moment * rates.sum()
    np.testing.assert_array_less(np.abs(own - want), slack)

  def test_equal_clients_have_k(self):
    speeds = Speeds(*(np.ones(PLACES, np.float32),) * 4)
    everybody = np.ones(PLACES, bool)
    for k in (0, 1, 999, 1000):
      got = k_together(speeds, 1.0, k, everybody, BYTES, 1000)
      np.testing.assert_array_equal(got, k)

  def test_a_delay_of_all_clients_changes_nothing(self):
    """Law: bit for bit, though T itself has larger steps then."""
    places = np.arange(1, PLACES + 1, dtype=np.float32)
    of_delay = lambda delay: k_together(
        Speeds(0 * places, 1e6 * places, places, places + delay),
        1.0, 10**5, np.ones(PLACES, bool), BYTES, 10**6,
    )
    np.testing.assert_array_equal(of_delay(0), of_delay(2**20))

  def test_slow_clients_have_their_share_all_the_same(self):
    """Law: who cannot send floor(k / n) until T does so, and ends later."""
    speeds = Speeds(*np.float32([
        [0, 0, 100, 1, 1, 1], [8e3, 16e3, 8e3, 1, 1, 1], [1] * 6, [0] * 6
    ]))
    got = k_together(speeds, 1.0, 300, np.arange(PLACES) < 3, BYTES, 10**6)
    # 100 for the third; of the other 800, two thirds for the faster link.
    np.testing.assert_allclose(got, [800 / 3, 1600 / 3, 100, 0, 0, 0], atol=1)
    ends = clocks.arrival(speeds, 1, 2 * got)[:3]
    np.testing.assert_allclose(ends, [0.2667, 0.2667, 100.1], rtol=0.01)

  def test_sums_beyond_int32(self):
    """Law: the mean is k where n k and n D are above 2^31."""
    n, dim = 1000, 10**8
    rng = np.random.default_rng(0)
    number = lambda: np.exp(rng.normal(size=n)).astype(np.float32)
    speeds = Speeds(0.01 * number(), 1e6 * number(), number(), number())
    for k in (10**4 + 1, dim // 2, dim - 1, dim):
      got = k_together(speeds, 32.0, k, np.ones(n, bool), BYTES, dim)
      self.assertEqual(np.asarray(got, np.int64).sum(), n * k)
      self.assertTrue(np.all((got >= k // n) & (got <= dim)))

  def test_k_is_traced(self):
    """Law: a batch of k is its k, one by one."""
    speeds = Speeds(*(np.arange(1, PLACES + 1, dtype=np.float32),) * 4)
    of_k = lambda k: k_together(
        speeds, 1.0, k, np.ones(PLACES, bool), BYTES, 50
    )
    ks = jnp.array([3, 20])
    np.testing.assert_array_equal(jax.vmap(of_k)(ks), [of_k(k) for k in ks])


if __name__ == "__main__":
  absltest.main()
