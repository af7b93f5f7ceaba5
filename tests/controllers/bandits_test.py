"""EXP3 and the bandit: a NumPy oracle, worked scripts, laws."""

import doctest
import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.controllers import bandits
from agsfl.errors import ConfigError
from tests import reference
from tests.controllers.playing import of_losses, rollout

ROUNDS = 200
ARMS = (  # (k_min, k_max, horizon, num_arms)
    (10, 110, ROUNDS, 5),
    (2.5, 9.1, 50, None),
    (7, 7, 100, None),  # One arm: gamma is 0.
    (7, 8, 10**5, 1),
    (20, 300, ROUNDS, None),  # So many that gamma is 1.
    (3.5, 9, ROUNDS, 40),  # More than there are.
    (888.124, 444062, 10**6, 100),
)
INTERVALS = (  # (k_init, k_min, k_max, horizon, radius, step)
    (60, 10, 110, ROUNDS, None, None),
    (444062, 888.124, 444062, 10**4, None, None),
    (2, 2, 3, ROUNDS, 0.01, 0.5),
    (40, 10, 110, ROUNDS, 0.3, 0.2),
    (40, 10, 110, ROUNDS, 7.0, 0.2),  # Cut to 1: x stays in the middle.
    (5, 5, 5, ROUNDS, None, None),
    (5, 2, 50, 1, None, None),
)


def random_rounds(seed, none):
  """([T] loss before, after, time): a share `none` is no fall, or no number."""
  rng = np.random.default_rng(seed)
  before, time = rng.uniform(1, 4, ROUNDS), rng.uniform(1, 10, ROUNDS)
  after = before - rng.uniform(0, 1, ROUNDS)
  way = np.where(rng.random(ROUNDS) < none, rng.integers(1, 6, ROUNDS), 0)
  after = np.select(
      [way == 1, way == 2, way == 3, way == 4],
      [before + 1, before, np.nan, -np.inf],
      after,
  )
  before = np.where(way == 5, np.inf, before)
  return [x.astype(np.float32) for x in (before, after, time)]


def observe(proposal, losses_and_time):
  before, after, time = losses_and_time
  return of_losses(*proposal, time, time, before, after, after)


@functools.cache
def player(rule, *settings):
  controller = rule(*settings)
  return jax.jit(lambda key, rounds: rollout(controller, observe, rounds, key))


def play(rule, settings, rounds, seed=0):
  """([T + 1] KProposal, [T + 1] state): of each round to come, in NumPy."""
  key = jax.random.key(seed)
  first, after = player(rule, *settings)(key, jax.tree.map(jnp.asarray, rounds))
  join = lambda a, b: np.concatenate([np.asarray(a)[None], b])
  return jax.tree.map(join, first, after)


def steer(step, k):
  """step(key) for the first key that makes it play k."""
  for seed in range(100):
    proposal, state = step(jax.random.key(seed))
    if abs(proposal.k - k) < 1e-4:
      return proposal, state
  raise AssertionError(f"no key in 100 plays {k}")


GAME = (st.integers(0, 2**31 - 1), st.sampled_from((0.0, 0.2, 0.6)))


class OracleTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=50, deadline=None)
  @hypothesis.given(st.sampled_from(ARMS), *GAME)
  def test_exp3(self, settings, seed, none):
    """Law: given the arms it drew, equals the oracle."""
    rounds = random_rounds(seed, none)
    proposal, state = play(bandits.exp3, settings, rounds, seed)
    oracle = reference.Exp3(*settings)
    for m, k in enumerate(proposal.k):
      i = oracle.arms.index(k)
      self.assertEqual(state.arm[m], i)
      self.assertAlmostEqual(
          state.probability[m], oracle.probabilities()[i], delta=2e-5
      )
      level = np.subtract(oracle.log_weights, max(oracle.log_weights))
      np.testing.assert_allclose(
          state.log_weights[m], level, rtol=1e-4, atol=1e-4
      )
      if m < ROUNDS:
        oracle.update(k, *(x[m] for x in rounds))

  @hypothesis.settings(max_examples=50, deadline=None)
  @hypothesis.given(st.sampled_from(INTERVALS), *GAME)
  def test_bandit(self, settings, seed, none):
    """Law: given the sides it drew, equals the oracle."""
    rounds = random_rounds(seed, none)
    proposal, state = play(bandits.bandit, settings, rounds, seed)
    self.assertContainsSubset(state.u, {-1.0, 1.0})
    oracle = reference.Bandit(*settings)
    _, _, k_max, *_ = settings
    for m, u in enumerate(state.u):
      self.assertAlmostEqual(state.x[m], oracle.x, delta=1e-4)
      np.testing.assert_allclose(
          proposal.k[m], oracle.play(u), rtol=1e-5, atol=1e-4 * k_max
      )
      if m < ROUNDS:
        oracle.update(u, *(x[m] for x in rounds))


class ScriptTest(parameterized.TestCase):
  """Rounds worked by hand; keys are sought that play the k written here."""

  def test_exp3(self):
    """Arms 10 and 11; T = 100, so gamma = sqrt(2 ln 2 / 171.828) = 0.0898215.

    d is log w_10 - log w_11, and arm 10 has
    p = 0.9101785 / (1 + exp(-d)) + 0.0449108.
    """
    controller = bandits.exp3(9.5, 11.5, 100)
    script = (  # k, p, loss before and after, time; d after it
        # 0.5 per time, the first: reward 1, and d = gamma / 0.5 / 2.
        (10, 0.5, 3.0, 1.0, 4.0, 0.0898215),
        # p_10 = 0.9101785 * 0.5224403 + 0.0449108 = 0.5204247. 0.25 per time:
        # reward 0.5, and d falls by gamma * 0.5 / 0.4795753 / 2 = 0.0468234.
        (11, 0.4795753, 3.0, 2.0, 4.0, 0.0429981),
        # p_10 = 0.9101785 * 0.5107479 + 0.0449108 = 0.5097824; no fall.
        (11, 0.4902176, 3.0, 4.0, 1.0, 0.0429981),
        # 1.5 per time, the largest so far: reward 1, and d rises by
        # gamma / 0.5097824 / 2 = 0.0880979.
        (10, 0.5097824, 4.0, 1.0, 2.0, 0.1310960),
        # p_10 = 0.9101785 * 0.5327271 + 0.0449108 = 0.5297875; no number.
        (11, 0.4702125, 3.0, math.nan, 1.0, 0.1310960),
        # 1.5 per time again: d falls by gamma / 0.4702125 / 2 = 0.0955116.
        (11, 0.4702125, 2.0, 0.5, 1.0, 0.0355844),
        # p_10 = 0.9101785 * 0.5088952 + 0.0449108 = 0.5080962. Reward
        # 0.75 / 1.5: d rises by gamma * 0.5 / 0.5080962 / 2 = 0.0441951.
        (10, 0.5080962, 2.0, 1.25, 1.0, 0.0797795),
    )
    step = controller.init
    for k, p, before, after, time, difference in script:
      proposal, state = steer(step, k)
      self.assertAlmostEqual(state.probability, p, delta=1e-6)
      observed = observe(proposal, map(jnp.float32, (before, after, time)))
      step = functools.partial(
          controller.update, observed=observed, state=state
      )
      low, high = step(jax.random.key(0))[1].log_weights
      self.assertAlmostEqual(low - high, difference, delta=1e-6)
      self.assertEqual(max(low, high), 0.0)

  def test_bandit(self):
    """K = [10, 110], T = 16: delta 1/2, eta 1/8; k = 60 + 50 (x +- 1/2).

    x moves by eta / delta = 1/4 of the cost, and stays in [-1/2, 1/2].
    """
    controller = bandits.bandit(100, 10, 110, 16)
    script = (  # x, k, loss before and after, time
        # k_init is 0.8, cut to 0.5. u = 1, c = -1: to 0.75, cut to 0.5.
        (0.5, 110, 3.0, 1.0, 4.0),
        # u = -1. 0.25 of at most 0.5 per time: c = -0.5, x falls by 0.125.
        (0.5, 60, 3.0, 2.0, 4.0),
        # u = 1. The loss rises by 1 per time, the most so far: c = 1.
        (0.375, 103.75, 3.0, 4.0, 1.0),
        (0.125, 41.25, math.inf, 4.0, 1.0),  # u = -1, no number: x stays.
        # u = -1. 0.5 of at most 1 per time: c = -0.5, x falls by 0.125.
        (0.125, 41.25, 3.0, 2.5, 1.0),
        (0.0, 85, 3.0, 3.0, 1.0),  # u = 1, c = 0.
        (0.0, 35, 3.0, 4.0, 1.0),  # u = -1, c = 1: x rises by 0.25.
        (0.25, 97.5, 3.0, 1.0, 1.0),  # u = 1; 2 per time, c = -1.
        (0.5, 60, 0.0, 0.0, 1.0),
    )
    step = controller.init
    for x, k, before, after, time in script:
      proposal, state = steer(step, k)
      self.assertAlmostEqual(state.x, x, delta=1e-6)
      observed = observe(proposal, map(jnp.float32, (before, after, time)))
      step = functools.partial(
          controller.update, observed=observed, state=state
      )


def any_rounds(seed):
  """Rounds with every kind of number that a float32 can be."""
  rng = np.random.default_rng(seed)
  rare = (0.0, -1.0, 1e-40, 3e38, -3e38, np.nan, np.inf, -np.inf)
  values = rng.uniform(0, 4, (3, ROUNDS))
  seldom = rng.random(values.shape) < 0.1
  values = np.where(seldom, rng.choice(rare, values.shape), values)
  return list(values.astype(np.float32))


class Exp3Test(parameterized.TestCase):

  @parameterized.parameters(
      (1.5, 5.2, None, [2, 3, 4, 5]),
      (2, 5, 1, [2]),
      (2, 5, 2, [2, 5]),
      (2, 5, 3, [2, 4, 5]),  # 3.5 is rounded up.
      (2, 5, 9, [2, 3, 4, 5]),
      (4, 4.9, 3, [4]),
      (0.2, 100, 4, [1, 34, 67, 100]),
  )
  def test_arms(self, k_min, k_max, num_arms, expected):
    controller = bandits.exp3(k_min, k_max, 10, num_arms)
    keys = jax.random.split(jax.random.key(0), 200)
    proposal, state = jax.jit(jax.vmap(controller.init))(keys)
    np.testing.assert_array_equal(np.unique(proposal.k), expected)
    np.testing.assert_array_equal(
        proposal.k, np.array(expected)[np.asarray(state.arm)]
    )

  def test_no_arm(self):
    with self.assertRaisesRegex(ConfigError, "--k_max=2.8: .* at least 3,"):
      bandits.exp3(2.2, 2.8, 10)

  @parameterized.product(
      gamma=(0.0, 1e-4, 0.5, 1.0), num_arms=(1, 2, 1000, 400_000)
  )
  def test_probabilities(self, gamma, num_arms):
    """Law: at least gamma / K, and 1 in all."""
    rng = np.random.default_rng(num_arms)
    log_weights = jnp.asarray(-rng.exponential(20, num_arms), jnp.float32)
    for w in (log_weights, jnp.zeros(num_arms), log_weights + 1e4):
      p = np.asarray(bandits.probabilities(w, gamma))
      self.assertTrue(np.all(p >= np.float32(gamma / num_arms) * (1 - 1e-6)))
      self.assertTrue(np.all(p >= 0))
      self.assertAlmostEqual(p.sum(dtype=np.float64), 1.0, delta=1e-4)

  @parameterized.parameters(20, 10**4, 1)
  def test_frequencies(self, horizon):
    """Law: over keys, arms are as frequent as their probabilities say."""
    controller = bandits.exp3(10, 14.9, horizon)
    gamma = reference.Exp3(10, 14.9, horizon).gamma
    proposal, state = controller.init(jax.random.key(0))
    log_weights = jnp.array([-1.0, -0.3, 0.0, -2.0, -30.0])
    state = state._replace(log_weights=log_weights)
    observed = observe(proposal, jnp.array([1.0, jnp.nan, 1.0]))
    keys = jax.random.split(jax.random.key(1), 40_000)
    update = lambda key: controller.update(key, observed, state)
    arms = jax.jit(jax.vmap(update))(keys)[1].arm
    p = np.asarray(bandits.probabilities(log_weights, gamma), np.float64)
    expected = len(keys) * p
    counts = np.bincount(arms, minlength=5)
    # Pearson's, at most 4 degrees of freedom: above 24 once in 10^4.
    seen = expected > 1
    self.assertLess(
        np.sum((counts - expected)[seen] ** 2 / expected[seen]), 24.0
    )
    self.assertLessEqual(counts[~seen].sum(), 10)

  def test_first_arm_is_uniform(self):
    keys = jax.random.split(jax.random.key(2), 40_000)
    init = jax.jit(jax.vmap(bandits.exp3(10, 14.9, 20).init))
    counts = np.bincount(init(keys)[1].arm, minlength=5)
    self.assertLess(np.sum((counts - 8000.0) ** 2 / 8000.0), 24.0)

  @parameterized.parameters(10, 10**9)
  def test_many_arms(self, horizon):
    """Law: K = 400 000, gamma 1 or small: all stays finite, k in K."""
    rounds = [jnp.full(6, x) for x in (3.0, 1.0, 2.0)]
    proposal, state = play(bandits.exp3, (63, 400_062, horizon), rounds)
    k = proposal.k
    self.assertTrue(np.all((k >= 63) & (k <= 400_062) & (k == np.round(k))))
    self.assertLen(set(k), len(k))
    self.assertTrue(np.all(np.isfinite(state.log_weights)))
    np.testing.assert_allclose(state.probability, 1 / 400_000, rtol=2e-2)
    # Each of the 6 arms played, with reward 1, gained gamma / (p K), and p is
    # 1 / K but for a little.
    gamma = min(1.0, math.sqrt(4e5 * math.log(4e5) / (1.71828 * horizon)))
    gain = state.log_weights[-1] - state.log_weights[-1].min()
    self.assertEqual(np.count_nonzero(gain), 6)
    np.testing.assert_allclose(gain[gain > 0], gamma, rtol=2e-2)

  def test_long_game_finds_the_arm(self):
    """Law: weights stay finite, and the better arm is the most frequent."""
    settings, rounds = (1, 3, 20_000), 20_000
    controller = bandits.exp3(*settings)

    def observed_of(proposal, _):
      after = jnp.where(proposal.k == 2, 1.0, 1.9)  # Rewards 1 and 0.1.
      return observe(proposal, (jnp.float32(2.0), after, jnp.float32(1.0)))

    run = lambda key: rollout(controller, observed_of, jnp.zeros(rounds), key)
    proposal, state = jax.jit(run)(jax.random.key(5))[1]
    self.assertTrue(np.all(np.isfinite(state.log_weights)))
    share = np.mean(proposal.k[rounds // 2 :] == 2)
    self.assertGreater(share, 1 - reference.Exp3(*settings).gamma)

  @parameterized.product(settings=ARMS, seed=(0, 1, 2))
  def test_any_observation(self, settings, seed):
    """Law: no number that a round may show leaves the arms, or is NaN."""
    proposal, state = play(bandits.exp3, settings, any_rounds(seed), seed)
    self.assertContainsSubset(proposal.k, reference.Exp3(*settings).arms)
    np.testing.assert_array_equal(proposal.k, proposal.k_probe)
    self.assertTrue(np.all((state.probability > 0) & (state.probability <= 1)))
    self.assertTrue(np.all(np.isfinite(state.log_weights)))
    self.assertTrue(np.all(state.log_weights.max(axis=1) == 0))


class BanditTest(parameterized.TestCase):

  @parameterized.product(settings=INTERVALS, seed=(0, 1, 2))
  def test_any_observation(self, settings, seed):
    """Law: no number that a round may show drives k out of K, or to NaN."""
    proposal, state = play(bandits.bandit, settings, any_rounds(seed), seed)
    _, k_min, k_max, *_ = settings
    k = proposal.k
    self.assertTrue(np.all((k >= np.float32(k_min)) & (k <= k_max)))
    np.testing.assert_array_equal(k, proposal.k_probe)
    self.assertTrue(np.all(np.abs(state.x) <= 1))

  def test_sides(self):
    """Law: either side is as frequent, in the first round and later."""
    controller = bandits.bandit(60, 10, 110, 100)
    keys = jax.random.split(jax.random.key(3), 10_000)
    proposal, state = jax.jit(jax.vmap(controller.init))(keys)
    self.assertLess(abs(np.mean(state.u)), 0.04)  # Four deviations.
    rounds = jnp.broadcast_to(jnp.array([3.0, 1.0, 1.0])[:, None], (3, 10_000))
    update = jax.jit(jax.vmap(controller.update))
    after = update(keys, observe(proposal, rounds), state)
    self.assertLess(abs(np.mean(after[1].u)), 0.04)

  @parameterized.product(low_is_better=(True, False), k_init=(20, 60, 100))
  def test_goes_to_the_better_side(self, low_is_better, k_init):
    """Law: on a linear cost k ends at its better end, on average over keys."""
    rounds, k_min, k_max = 2000, 10.0, 110.0
    controller = bandits.bandit(k_init, k_min, k_max, rounds)

    def observed_of(proposal, _):
      share = (proposal.k - k_min) / (k_max - k_min)
      gain = jnp.where(low_is_better, 1.0 - share, share)  # 0 to 1 per time.
      one = jnp.float32(1.0)
      return observe(proposal, (2 * one, 1.5 - gain, one))

    run = lambda key: rollout(controller, observed_of, jnp.zeros(rounds), key)
    keys = jax.random.split(jax.random.key(4), 32)
    _, (_, state) = jax.jit(jax.vmap(run))(keys)
    better = -1 if low_is_better else 1
    reach = 1 - rounds**-0.25
    last = np.mean(state.x[:, -rounds // 4 :])
    self.assertGreater(better * last, 0.75 * reach)

  def test_doctests(self):
    failed, attempted = doctest.testmod(bandits)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)


if __name__ == "__main__":
  absltest.main()
