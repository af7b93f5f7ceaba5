"""Descent on k: the NumPy oracle, rounds worked by hand, and regret."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import controllers
from agsfl.types import Observation
from tests import reference
from tests.controllers.playing import (
    BROKEN,
    STAYED,
    observe,
    of_losses,
    play,
    rollout,
)

ROUNDS = 300
# (k_init, k_min, k_max, growth, window), the last two for the moving
# interval. The first is FEMNIST's, k_min = 0.002 D, with the defaults.
SETTINGS = (
    (444062, 888.124, 444062, 1.5, 20),
    (60, 10, 110, 1.25, 2),
    (2, 2, 500, 2.0, 1),
    (90.5, 20, 90.5, 1.05, 3),
    (1500, 1000, 10**6, 1.1, 4),
    # Hardly any room for k and for k' below it, and none at all.
    (2, 2, 3, 1.5, 3),
    (5, 5, 5, 1.5, 1),
)

# Oracle and rule.
SIGN = ("SignDescent", "sign_descent")
INTERVAL = ("SignInterval", "sign_interval")
MOVING = (
    controllers.sign_descent,
    controllers.sign_interval,
    controllers.sign_log,
    controllers.value_descent,
)


@st.composite
def games(draw):
  """Settings, stuck_rounds, and chances that lead k somewhere, now and then."""
  settings = draw(st.sampled_from(SETTINGS))
  return settings, draw(st.sampled_from((None, 2))), dict(
      goal=draw(st.floats(0, 1)),
      wrong=draw(st.sampled_from((0.0, 0.1, 0.3))),
      none=draw(st.sampled_from((0.0, 0.2, 0.6))),
      seed=draw(st.integers(0, 2**32 - 1)),
  )


def drive(oracle, goal, wrong, none, seed):
  """Plays the oracle towards a goal in [0, 1].

  Chance makes some signs wrong, some 0, and leaves some out.

  Returns:
    [T] the signs it was given, [T + 1, 4] its k, probe and interval.
  """

  def row():
    low = getattr(oracle, "k_low", oracle.k_min)
    high = getattr(oracle, "k_high", oracle.k_max)
    return oracle.k, oracle.probe(), low, high

  rng = np.random.default_rng(seed)
  # Squared, so that low goals, where intervals shrink, are frequent.
  goal = oracle.k_min + goal**2 * (oracle.k_max - oracle.k_min)
  signs, rows = [], [row()]
  for _ in range(ROUNDS):
    sign = int(np.sign(oracle.k - goal)) * (-1 if rng.random() < wrong else 1)
    sign = 0 if rng.random() < 0.1 else sign
    sign = rng.choice((STAYED, BROKEN)) if rng.random() < none else sign
    oracle.update(sign, sign in (-1, 0, 1))
    signs.append(int(sign))
    rows.append(row())
  return np.array(signs), np.array(rows)


def near_tie(settings, stuck, signs, restarts):
  """Whether a new width is so near its limit that float32 may err on it."""
  *interval, growth, window = settings
  for off in (1 - 1e-4, 1 + 1e-4):
    oracle = reference.SignInterval(*interval, growth * off, window, stuck)
    for sign in signs:
      oracle.update(sign, sign in (-1, 0, 1))
    if oracle.restarts != restarts:
      return True
  return False


def random_rounds(seed, none):
  """[ROUNDS] observations; a share `none` has no slope, in any of five ways."""
  rng = np.random.default_rng(seed)
  draw = lambda low, high: rng.uniform(low, high, ROUNDS)
  k_probe = rng.integers(1, 100, ROUNDS)
  k = k_probe + rng.integers(1, 20, ROUNDS)
  before = draw(1, 4)
  after, probe = before - draw(0.1, 1), before - draw(0.1, 1)
  way = np.where(rng.random(ROUNDS) < none, rng.integers(1, 6, ROUNDS), 0)
  after = np.select(
      [way == 1, way == 2, way == 3],
      [before + 1, before, np.nan],
      after,
  )
  probe = np.select([way == 4, way == 5], [before + 1, -np.inf], probe)
  rounds = (k, k_probe, draw(1, 10), draw(1, 10), before, after, probe)
  return of_losses(*(x.astype(np.float32) for x in rounds))


@functools.cache
def shower(rule, *settings):
  key = jax.random.key(0)
  given = lambda _, observed: observed
  return jax.jit(lambda seen: rollout(rule(*settings), given, seen, key))


def show(rule, settings, rounds):
  """([T + 1] k, [T + 1] k_probe) where a rule is shown these observations."""
  first, after = shower(rule, *settings)(jax.tree.map(jnp.asarray, rounds))
  return [np.append(a, b) for a, b in zip(first[0], after[0], strict=True)]


def value_oracle(settings, rounds):
  """([T + 1, 2] k and k', [T] whether there was a slope) by the oracle."""
  oracle = reference.ValueDescent(*settings)
  rows, slopes = [(oracle.k, oracle.probe())], []
  columns = zip(*rounds[:7], strict=True)  # those that descents look at
  for k, k_probe, time, time_probe, loss, *falls in columns:
    losses = (float(loss), *(float(loss) - float(fall) for fall in falls))
    _, slope, _, valid = reference.estimate(
        time, time_probe, *losses, k, k_probe
    )
    oracle.update(slope, valid)
    rows.append((oracle.k, oracle.probe()))
    slopes.append(valid)
  return rows, slopes


class OracleTest(parameterized.TestCase):

  def assert_laws(self, rule, settings, signs, rows, rises):
    _, k_min, k_max, *_ = settings
    k, k_probe, states = play(rule, settings, signs)
    low = getattr(states, "k_low", np.full(ROUNDS, k_min))
    high = getattr(states, "k_high", np.full(ROUNDS, k_max))
    # Law: equals the oracle. float32 holds k_max to 6e-8, and errors add up.
    for got, want in zip((k, k_probe, low, high), rows.T, strict=True):
      np.testing.assert_allclose(
          got, want[-len(got) :], rtol=1e-5, atol=1e-5 * k_max
      )
    # Law: k stays in K.
    self.assertTrue(np.all((k >= np.float32(k_min)) & (k <= k_max)))
    # Law: max(1, k_min / 10) <= k' <= k - 1.
    floor = np.float32(max(1.0, 0.1 * k_min))
    self.assertTrue(np.all((k_probe >= floor) & (k_probe <= k - 1)))
    # Law: a round without a sign leaves k, but where it is stuck.
    without = (signs > 1) & ~np.isin(np.arange(ROUNDS) + 1, rises)
    np.testing.assert_array_equal(k[1:][without], k[:-1][without])
    return states

  @parameterized.parameters(
      (reference.SignDescent, controllers.sign_descent),
      (reference.SignLog, controllers.sign_log),
  )
  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(game=games())
  def test_one_interval(self, make, rule, game):
    settings, stuck, chance = game
    settings = *settings[:3], stuck
    oracle = make(*settings)
    signs, rows = drive(oracle, **chance)
    self.assert_laws(rule, settings, signs, rows, oracle.rises)

  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(games(), st.integers(2, 1000))
  def test_sign_log_has_no_scale(self, game, scale):
    """Law: if k and its interval are scaled, so is the path of k."""
    settings, _, chance = game
    settings = settings[:3]
    signs, _ = drive(reference.SignLog(*settings), **chance)
    larger = tuple(scale * k for k in settings)
    k, *_ = play(controllers.sign_log, settings, signs)
    scaled, *_ = play(controllers.sign_log, larger, signs)
    np.testing.assert_allclose(scaled, scale * k, rtol=1e-4)

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(games())
  def test_sign_interval(self, game):
    settings, stuck, chance = game
    oracle = reference.SignInterval(*settings, stuck)
    signs, rows = drive(oracle, **chance)
    hypothesis.assume(not near_tie(settings, stuck, signs, oracle.restarts))
    rule = controllers.sign_interval
    states = self.assert_laws(
        rule, (*settings, stuck), signs, rows, oracle.rises
    )
    # Law: new instances begin after the same rounds.
    restarts = 1 + np.flatnonzero(states.rounds == 0)
    np.testing.assert_array_equal(restarts, oracle.restarts)

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
      st.sampled_from(SETTINGS),
      st.integers(0, 2**32 - 1),
      st.sampled_from((0.0, 0.2, 0.6)),
  )
  def test_value_descent(self, settings, seed, none):
    settings = settings[:3]
    rounds = random_rounds(seed, none)
    rows, slopes = value_oracle(settings, rounds)
    k, k_probe = show(controllers.value_descent, settings, rounds)
    # Law: equals the oracle; a slope's float32 error grows with the step.
    for got, want in zip((k, k_probe), np.transpose(rows), strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-5, atol=3e-5 * settings[2])
    # Law: a round without a slope leaves k.
    without = ~np.array(slopes)
    np.testing.assert_array_equal(k[1:][without], k[:-1][without])

  @parameterized.parameters(*SETTINGS[:5])
  def test_the_games_restart(self, *settings):
    """What `test_sign_interval` compares does happen."""
    oracle = reference.SignInterval(*settings)
    drive(oracle, goal=0.1, wrong=0.0, none=0.2, seed=0)
    self.assertNotEmpty(oracle.restarts)

  @parameterized.product(rule=MOVING, settings=SETTINGS)
  def test_any_observation(self, rule, settings):
    """Law: no number that a round may show drives k out of K, or to NaN."""
    rng = np.random.default_rng(0)
    rare = (0.0, -1.0, 1e-40, 3e38, -3e38, np.nan, np.inf, -np.inf)
    shape = (len(Observation._fields), ROUNDS)
    values = rng.uniform(0, 4, shape)
    values = np.where(rng.random(shape) < 0.1, rng.choice(rare, shape), values)
    given = Observation(*jnp.asarray(values, jnp.float32))
    controller, key = rule(*settings[:3]), jax.random.key(0)
    _, (proposal, _) = rollout(controller, lambda _, x: x, given, key)
    k, k_probe = np.asarray(proposal)
    _, k_min, k_max, *_ = settings
    self.assertTrue(np.all((k >= np.float32(k_min)) & (k <= k_max)))
    # XLA may compute k - 1 of a k that is not yet rounded: by its last bit.
    self.assertTrue(np.all((k_probe >= 1) & (k_probe <= k - 1 + np.spacing(k))))


class ScriptTest(absltest.TestCase):
  """Rounds worked by hand, played by the oracle and by the rule.

  Steps are rational where m is 2, 8, 18, ...
  """

  def check(self, name, settings, script):
    """Plays rows of (sign, k after the round, k' for the round or None).

    Returns:
      The oracle, and the rule's states after each round.
    """
    oracle = getattr(reference, name[0])(*settings)
    rule = getattr(controllers, name[1])
    signs = [sign for sign, *_ in script]
    k, k_probe, states = play(rule, settings, signs)
    for m, (sign, after, probe) in enumerate(script):
      with self.subTest(m=m + 1):
        if probe is not None:
          self.assertAlmostEqual(oracle.probe(), probe, 5)
          np.testing.assert_allclose(k_probe[m], probe, rtol=1e-5)
        oracle.update(sign if abs(sign) < 2 else 0, abs(sign) < 2)
        self.assertAlmostEqual(oracle.k, after, 5)
        np.testing.assert_allclose(k[m + 1], after, rtol=1e-5)
    return oracle, states

  def check_interval(self, settings, script):
    """The same with the interval after each round at a row's end."""
    rows = [(sign, k, probe) for sign, k, probe, *_ in script]
    oracle, states = self.check(INTERVAL, settings, rows)
    low, high = zip(*(row[3:] for row in script), strict=True)
    np.testing.assert_allclose(states.k_low, low, rtol=1e-5)
    np.testing.assert_allclose(states.k_high, high, rtol=1e-5)
    began = 1 + np.flatnonzero(states.rounds == 0)
    np.testing.assert_array_equal(began, oracle.restarts)
    return oracle, states

  def test_sign_descent(self):
    """K = [10, 110], so B = 100 and delta is 50, 25 and 100 / 6."""
    script = (
        # The first step is 100 / sqrt(2).
        (STAYED, 60, 60 - 50 / math.sqrt(2)),
        (1, 10, 35),  # m = 2; k' is half a step below k.
        *[(STAYED, 10, None)] * 5,
        (-1, 35, 1),  # m = 8; 10 - 12.5, but at least 1.
        (0, 35, None),  # A sign of 0 is one, and moves nothing.
        *[(BROKEN, 35, None)] * 8,
        (-1, 35 + 100 / 6, 35 - 100 / 12),  # m = 18.
    )
    self.check(SIGN, (60, 10, 110), script)

  def test_bounds_of_the_probe(self):
    # B = 100, so delta / 2 is 35.4: at least a tenth of k_min = 50.
    self.check(SIGN, (50, 50, 150), [(STAYED, 50, 50 - 50 / math.sqrt(2))])
    self.check(SIGN, (90, 90, 990), [(STAYED, 90, 9)])
    # B = 1, so delta / 2 is 0.35: at most k - 1.
    self.check(SIGN, (10.5, 10, 11), [(STAYED, 10.5, 9.5)])
    # At least 1, at most 1.25 - 1: the upper bound wins.
    self.check(SIGN, (1.25, 1, 9), [(STAYED, 1.25, 0.25)])

  def test_stuck(self):
    """K = [10, 110], two rounds: a sign of 0 ends a row, a rise begins one."""
    script = (
        (STAYED, 20, None),
        (BROKEN, 70, None),  # m = 2: 20 + 50.
        *[(STAYED, 70, None), (0, 70, None)] * 2,
        (STAYED, 70, None),
        (STAYED, 95, None),  # m = 8: 70 + 25.
        *[(STAYED, 95, None), (0, 95, None)] * 4,
        (STAYED, 95, None),
        (STAYED, 110, None),  # m = 18: 95 + 100 / 6, cut to 110.
        (STAYED, 110, None),
    )
    oracle, states = self.check(SIGN, (20, 10, 110, 2), script)
    np.testing.assert_array_equal(states.without[:4], [1, 0, 1, 0])
    self.assertEqual(oracle.rises, [2, 8, 18])

  def test_a_rise_is_an_update_of_its_instance(self):
    """K = [4, 100], B = 96, default growth, reviews of 1 update."""
    whole, second = (4, 100), (61.294083, 100)
    script = (
        (STAYED, 10, None, *whole),
        # m = 2: 10 + 48. [38.67, 87] is 48.33 wide, more than 39.76.
        (STAYED, 58, None, *whole),
        (STAYED, 58, None, *whole),
        # m = 4: 58 + 96 / sqrt(8). [61.29, 100] is 38.71 wide.
        (STAYED, 91.941125, None, *second),
    )
    oracle, _ = self.check_interval((10, 4, 100, 1.5, 1, 2), script)
    self.assertEqual(oracle.rises, [2, 4])
    self.assertEqual(oracle.restarts, [4])

  def test_value_descent(self):
    """K = [10, 110], so delta is 50, 25, 100 / 6 and 12.5 in four rounds."""
    rose = (9, 8, 1, 1, 2, 3, 1)
    nan = (9, 8, 1, 1, 2, math.nan, 1)
    flat = (9, 8, 1, 1, 2, 1, 2)  # The probe's loss did not fall.
    rounds = (  # k, k', their times, losses before, with k and with k'
        nan,
        # m = 2: falls 1 and 0.5, so k' would have needed 6 * 1 / 0.5 = 12 and
        # the slope is (10 - 12) / 20 = -0.1: 60 + 50 * 0.1 = 65.
        (60, 40, 10, 6, 3, 2, 2.5),
        *[rose] * 5,
        # m = 8: the slope is (10 - 8) / 5 = 0.4: 65 - 25 * 0.4 = 55.
        (65, 60, 10, 8, 2, 1, 1),
        *[flat] * 9,
        # m = 18: the slope is 30: 55 - 500, cut to 10.
        (55, 54, 40, 10, 2, 1, 1),
        *[nan] * 13,
        # m = 32: the slope is (2 - 10) / 2 = -4: 10 + 12.5 * 4 = 60.
        (10, 8, 2, 10, 2, 1, 1),
    )
    expected = [60] * 2 + [65] * 6 + [55] * 10 + [10] * 14 + [60]
    probes = [60 - 25, 65 - 12.5, 55 - 100 / 12, 10 - 6.25]  # k - delta / 2
    seen = of_losses(*np.transpose(rounds).astype(np.float32))
    rule = controllers.value_descent
    for k, k_probe in (
        show(rule, (60, 10, 110), seen),
        np.transpose(value_oracle((60, 10, 110), seen)[0]),
    ):
      np.testing.assert_allclose(k, expected, rtol=1e-6)
      np.testing.assert_allclose(k_probe[[1, 7, 17, 31]], probes, rtol=1e-6)

  def test_sign_interval(self):
    """K = [10, 110], growth 1.25, reviews of 2 updates, from k = 60."""
    none = BROKEN
    first, second, third = (10, 110), (10, 43.75), (10, 22.65625)
    script = (
        # Instance 1: B = 100, a new width may be at most 41.42.
        (0, 60, None, *first),  # A sign of 0 is an update.
        # m = 2, delta = 50. Review of {60, 10}: [8, 75] cut to [10, 75] is 65
        # wide: too wide.
        (1, 10, 35, *first),
        (0, 10, None, *first),  # The first update of a new window.
        *[(none, 10, None, *first)] * 4,  # Not updates; m goes on.
        # m = 8, delta = 25. Review of {10, 35}: [10, 43.75], 33.75 wide; and
        # the first instance is long enough in any case. 10 - 12.5 is cut to 1.
        (-1, 35, 1, *second),
        # Instance 2: B = 33.75, width at most 13.98, and at least 8 rounds.
        (none, 35, None, *second),
        (1, 18.125, 35 - 16.875 / 2, *second),  # m = 2, delta = 16.875.
        # Review of {18.125, 18.125}: [14.5, 22.65625] is 8.2 wide, yet the
        # instance is but 3 rounds old: too short.
        (0, 18.125, None, *second),
        (0, 18.125, None, *second),  # The first update of a new window.
        *[(none, 18.125, None, *second)] * 3,
        # m = 8, delta = 8.4375, to 9.6875 cut to 10. Review of {18.125, 10}:
        # [10, 22.65625] is 12.66 wide, and 8 rounds are as long as before.
        (1, 10, None, *third),
        # Instance 3: B = 12.65625.
        (none, 10, None, *third),
        # m = 2, delta = 6.328125.
        (-1, 16.328125, 10 - 6.328125 / 2, *third),
    )
    oracle, _ = self.check_interval((60, 10, 110, 1.25, 2), script)
    self.assertEqual(oracle.restarts, [8, 16])

  def test_interval_may_move_out_of_the_one_before(self):
    """K = [10, 1010], growth 1.25, reviews of 2: width at most 414.2."""
    first, second, third = (10, 1010), (80, 437.5), (64, 100)
    script = (
        (1, 100, None, *first),  # delta = 1000 / sqrt(2) leads there.
        *[(STAYED, 100, None, *first)] * 6,
        # m = 8, delta = 250. Review of {100, 350}: 357.5 wide.
        (-1, 350, None, *second),
        # Instance 2: delta = 357.5 / sqrt(2) = 252.790674.
        (1, 97.209326, 223.604663, *second),
        # m = 2, delta = 178.75. The probe, 97.209326 - 89.375, is above
        # max(1, 0.1 * 10): the bound goes by the whole interval's 10, not by
        # 80. Review of {97.2, 80}: [64, 121.5], but 2 rounds are too few.
        (1, 80, 7.834326, *second),
        *[(STAYED, 80, None, *second)] * 4,
        # Review of {80, 80}: [64, 100], bounded by 10 and not by 80.
        (1, 80, None, *second),
        (1, 80, None, *third),
        # Instance 3: delta = 36 / sqrt(2) = 25.455844; 54.5 is cut to 64.
        (1, 64, 67.272078, *third),
    )
    settings = (100 + 1000 / math.sqrt(2), 10, 1010, 1.25, 2)
    self.check_interval(settings, script)

  def test_the_limit_is_of_the_current_width(self):
    """K = [100, 300], growth 1.1, reviews of 1: width at most 82.84."""
    second = (272.727273, 300)
    script = (
        # delta = 141.42, to 300. [272.727273, min(330, 300)] is 27.27 wide.
        (-1, 300, None, *second),
        # The same interval again; but now a width may be 11.30 at most.
        (-1, 300, None, *second),
    )
    oracle, _ = self.check_interval((250, 100, 300, 1.1, 1), script)
    self.assertEqual(oracle.restarts, [1])

  def test_no_empty_interval(self):
    """With growth 1, and k that stays at 10, B' is 0: no new instance."""
    script = [(1, 10, None, 10, 110)] * 4
    oracle, _ = self.check_interval((10, 10, 110, 1, 2), script)
    self.assertEmpty(oracle.restarts)

  def test_twenty_updates_by_default(self):
    """k falls to 6 at once; [6, 9] after 20 signs, rounds without not counted.
    """
    for without in (0, 1):
      script = [(STAYED, 56, None, 6, 106)] * without
      script += [(1, 6, None, 6, 106)] * 19 + [(1, 6, None, 6, 9)]
      with self.subTest(without=without):
        self.check_interval((56, 6, 106), script)

  def test_one_instance_is_alg_2(self):
    """Law: without reviews `sign_interval` is `sign_descent`."""
    signs = np.random.default_rng(0).integers(-1, 4, 60)
    one = play(controllers.sign_descent, (50, 2, 300), signs)
    other = play(controllers.sign_interval, (50, 2, 300, 1.5, 1000), signs)
    for got, want in zip(other[:2], one[:2], strict=True):
      np.testing.assert_allclose(got, want, rtol=1e-6)


# Convex costs over distance d = k - k*, |derivative| <= G = 3, minimum 0.
G = 3.0
COSTS = dict(
    kink=lambda d: G * np.abs(d),
    smooth=lambda d: G * (np.sqrt(25.0 + d**2) - 5.0),
    lopsided=lambda d: np.where(d > 0, G * d, -G / 4 * d),
)
M = 10**4
K_MIN, K_MAX = 10, 110
B = K_MAX - K_MIN
BEST = np.array([10.0, 11.7, 60.0, 110.0], np.float32)


@functools.cache
def paths(k_init, wrong, seeds):
  """[len(BEST), seeds, M] k, each sign wrong with probability `wrong`."""
  rule = controllers.sign_descent(k_init, K_MIN, K_MAX)

  def path(best, key):
    def observed_of(proposal, flip):
      sign = jnp.sign(proposal.k - best)
      return observe(*proposal, jnp.where(flip, -sign, sign))

    flips = jax.random.bernoulli(key, wrong, (M,))
    first, after = rollout(rule, observed_of, flips, key)
    return jnp.append(first[0].k, after[0].k)[:M]

  over_seeds = jax.vmap(path, (None, 0))
  keys = jax.random.split(jax.random.key(1), seeds)
  k = jax.jit(jax.vmap(over_seeds, (0, None)))(BEST, keys)
  return np.asarray(k, np.float64)


class RegretTest(parameterized.TestCase):

  @parameterized.product(
      cost=tuple(COSTS), k_init=(10, 60, 110), wrong=(0.0, 0.25)
  )
  def test_sign_descent(self, cost, k_init, wrong):
    """Law: R(m) <= G H B sqrt(2 m) for every m up to M, on average.

    A sign that is wrong with probability p is (1 - 2 p) of the exact one in
    expectation, so H = 1 / (1 - 2 p).
    """
    k = paths(k_init, wrong, 1 if wrong == 0 else 20)
    self.assertTrue(np.all(k[..., 0] == k_init))
    tau = COSTS[cost](k - BEST[:, None, None])
    regret = np.cumsum(tau, axis=-1).mean(1)
    bound = G * B * np.sqrt(2 * np.arange(1, M + 1)) / (1 - 2 * wrong)
    np.testing.assert_array_less(regret, np.broadcast_to(bound, regret.shape))


if __name__ == "__main__":
  absltest.main()
