"""How k moves: the NumPy oracle, a worked script, laws and regret."""

import functools
import inspect
import math

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.controllers import bandits
from agsfl.controllers import descent as controllers
from agsfl.types import Observation
from tests import reference

# Signs are -1, 0 and 1; these two stand for a round without one.
STAYED = 2  # The loss did not fall.
BROKEN = 3  # The loss is NaN.

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

# A row more for a controller more.
CONTROLLERS = (
    ("fixed", controllers.fixed(40)),
    ("sign_descent", controllers.sign_descent(60, 10, 110)),
    ("sign_interval", controllers.sign_interval(60, 10, 110, 1.25, 2, 2)),
    ("value_descent", controllers.value_descent(60, 10, 110)),
    ("replay", controllers.replay([40, 12.5, 90])),
    ("exp3", bandits.exp3(10, 110, 100, num_arms=7)),
    ("exp3_one_k", bandits.exp3(40, 40, 100)),
    ("bandit", bandits.bandit(60, 10, 110, 100)),
)
MOVING = (
    controllers.sign_descent,
    controllers.sign_interval,
    controllers.value_descent,
)


def observe(k, k_probe, sign):
  """A round at k and k_probe whose estimated slope has this sign.

  Either loss falls by 1, so k' costs its own time, 4, and k costs 4 + sign.
  A round without a sign keeps the longer time: a controller that takes it for
  an estimate moves.
  """
  sign = jnp.float32(sign)
  loss_after = jnp.select([sign == STAYED, sign == BROKEN], [2.0, jnp.nan], 1.0)
  loss_before, loss_probe = jnp.float32(2.0), jnp.float32(1.0)
  time, time_probe = 4.0 + sign, jnp.float32(4.0)
  return Observation(
      k, k_probe, time, time_probe, loss_before, loss_after, loss_probe
  )


def rollout(controller, observed_of, inputs, key):
  """Plays a round per input in a scan; observed_of(proposal, input) is seen.

  A controller that does not observe is shown None.

  Returns:
    (first, after): (KProposal, state) for round 1, and [T, ...] after each.
  """

  def step(carry, x):
    (proposal, state), m = carry
    key_m = jax.random.fold_in(key, m)
    observed = observed_of(proposal, x) if controller.observes else None
    after = controller.update(key_m, observed, state)
    return (after, m + 1), after

  first = controller.init(jax.random.fold_in(key, 0))
  return first, jax.lax.scan(step, (first, 1), inputs)[1]


def crafted(proposal, sign):
  return observe(*proposal, sign)


@functools.cache
def player(rule, *settings):
  key = jax.random.key(0)
  return jax.jit(lambda s: rollout(rule(*settings), crafted, s, key))


def play(rule, settings, signs):
  """([T + 1] k, [T + 1] k_probe, [T] states after each round), in NumPy."""
  first, after = player(rule, *settings)(jnp.asarray(signs, jnp.int32))
  joined = [np.append(a, b) for a, b in zip(first[0], after[0], strict=True)]
  return *joined, jax.tree.map(np.asarray, after[1])


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
  return Observation(*(x.astype(np.float32) for x in rounds))


@functools.cache
def shower(rule, *settings):
  key = jax.random.key(0)
  given = lambda _, observed: observed
  return jax.jit(lambda seen: rollout(rule(*settings), given, seen, key))


def show(rule, settings, rounds):
  """([T + 1] k, [T + 1] k_probe) where a rule is shown these observations."""
  first, after = shower(rule, *settings)(jax.tree.map(jnp.asarray, rounds))
  return [np.append(a, b) for a, b in zip(first[0], after[0], strict=True)]


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

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(games())
  def test_sign_descent(self, game):
    settings, stuck, chance = game
    settings = *settings[:3], stuck
    oracle = reference.SignDescent(*settings)
    signs, rows = drive(oracle, **chance)
    rule = controllers.sign_descent
    self.assert_laws(rule, settings, signs, rows, oracle.rises)

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
    oracle = reference.ValueDescent(*settings)
    rows, slopes = [(oracle.k, oracle.probe())], []
    for k, k_probe, time, time_probe, *losses in zip(*rounds, strict=True):
      _, slope, _, valid = reference.estimate(
          time, time_probe, *losses, k, k_probe
      )
      oracle.update(slope, valid)
      rows.append((oracle.k, oracle.probe()))
      slopes.append(valid)
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
    self.assertTrue(np.all((k_probe >= 1) & (k_probe <= k - 1)))


class ScriptTest(absltest.TestCase):
  """Rounds worked by hand; steps are rational where m is 2, 8, 18, ..."""

  def test_sign_descent(self):
    """K = [10, 110], so B = 100 and delta is 50, 25 and 100 / 6."""
    none = STAYED
    signs = [none, 1, *[none] * 5, -1, *[none] * 9, -1]  # m = 2, 8 and 18.
    k, k_probe, _ = play(controllers.sign_descent, (60, 10, 110), signs)
    expected = [60] * 2 + [10] * 6 + [35] * 10 + [35 + 100 / 6]
    np.testing.assert_allclose(k, expected, rtol=1e-6)
    # Half a step below k: 60 - 25, 10 - 12.5 but at least 1, 35 - 100 / 12.
    np.testing.assert_allclose(
        k_probe[[1, 7, 17]], [35, 1, 35 - 100 / 12], rtol=1e-6
    )
    # The first step is 100 / sqrt(2).
    self.assertAlmostEqual(k_probe[0], 60 - 50 / math.sqrt(2), places=4)

  def test_stuck(self):
    """K = [10, 110], two rounds: a sign of 0 ends a row, a rise begins one."""
    none, nan = STAYED, BROKEN
    signs = [
        *[none, nan],  # m = 2: 20 + 50.
        *[none, 0, none, 0],
        *[none, none],  # m = 8: 70 + 25.
        *[none, 0] * 4,
        *[none, none],  # m = 18: 95 + 100 / 6, cut to 110.
        none,
    ]
    settings = 20, 10, 110, 2
    k, _, states = play(controllers.sign_descent, settings, signs)
    expected = [20] * 2 + [70] * 6 + [95] * 10 + [110] * 2
    np.testing.assert_allclose(k, expected, rtol=1e-6)
    np.testing.assert_array_equal(states.without[:4], [1, 0, 1, 0])

  def test_a_rise_is_an_update_of_its_instance(self):
    """K = [10, 110], growth 1.25, reviews of 2 updates, two rounds, k = 55."""
    # m = 2: 55 + 50. With the 0 that makes {105, 105}: [84, 110], a new
    # instance, whose m = 2 rises by 26 / 2, cut to 110.
    signs = [STAYED, STAYED, 0, STAYED, STAYED]
    settings = 55, 10, 110, 1.25, 2, 2
    k, _, states = play(controllers.sign_interval, settings, signs)
    np.testing.assert_allclose(k, [55, 55, 105, 105, 105, 110], rtol=1e-6)
    np.testing.assert_array_equal(states.rounds, [1, 2, 0, 1, 2])

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
    rounds = Observation(*np.transpose(rounds).astype(np.float32))
    k, k_probe = show(controllers.value_descent, (60, 10, 110), rounds)
    expected = [60] * 2 + [65] * 6 + [55] * 10 + [10] * 14 + [60]
    np.testing.assert_allclose(k, expected, rtol=1e-6)
    # k - delta / 2 in those four rounds.
    np.testing.assert_allclose(
        k_probe[[1, 7, 17, 31]],
        [60 - 25, 65 - 12.5, 55 - 100 / 12, 10 - 6.25],
        rtol=1e-6,
    )

  def test_sign_interval(self):
    """K = [10, 110], growth 1.25, reviews of 2 updates, from k = 60."""
    none = BROKEN
    script = (  # (sign, k after the round, whether an instance began)
        # Instance 1 on [10, 110]: B = 100, a new width may be at most 41.42.
        (0, 60, False),  # A sign of 0 is an update.
        # m = 2, delta = 50. Review of {60, 10}: [8, 75] cut to [10, 75] is 65
        # wide: too wide.
        (1, 10, False),
        (0, 10, False),  # The first update of a new window.
        *[(none, 10, False)] * 4,  # Not updates; m goes on.
        # m = 8, delta = 25. Review of {10, 35}: [10, 43.75], 33.75 wide; and
        # the first instance is long enough in any case.
        (-1, 35, True),
        # Instance 2 on [10, 43.75]: B = 33.75, width at most 13.98, and at
        # least 8 rounds long.
        (none, 35, False),
        (1, 18.125, False),  # m = 2, delta = 16.875.
        # Review of {18.125, 18.125}: [14.5, 22.65625] is 8.2 wide, yet the
        # instance is but 3 rounds old: too short.
        (0, 18.125, False),
        (0, 18.125, False),  # The first update of a new window.
        *[(none, 18.125, False)] * 3,
        # m = 8, delta = 8.4375, to 9.6875 cut to 10. Review of {18.125, 10}:
        # [10, 22.65625] is 12.66 wide, and 8 rounds are as long as before.
        (1, 10, True),
        # Instance 3 on [10, 22.65625]: B = 12.65625.
        (none, 10, False),
        (-1, 16.328125, False),  # m = 2, delta = 6.328125.
    )
    signs, ks, began = zip(*script, strict=True)
    k, k_probe, states = play(
        controllers.sign_interval, (60, 10, 110, 1.25, 2), signs
    )
    np.testing.assert_allclose(k[1:], ks, rtol=1e-6)
    np.testing.assert_array_equal(states.rounds == 0, began)
    # After rounds 7, 8 and 16: the three instances' intervals.
    low, high = states.k_low[[6, 7, 15]], states.k_high[[6, 7, 15]]
    np.testing.assert_allclose(low, [10, 10, 10], rtol=1e-6)
    np.testing.assert_allclose(high, [110, 43.75, 22.65625], rtol=1e-6)
    # k - delta / 2 for rounds 2, 8, 10 and 18: 10 - 12.5 is cut to 1.
    np.testing.assert_allclose(
        k_probe[[1, 7, 9, 17]],
        [35, 1, 35 - 16.875 / 2, 10 - 6.328125 / 2],
        rtol=1e-6,
    )


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


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(*CONTROLLERS)
  def test_form(self, controller):
    names = lambda f: list(inspect.signature(f).parameters)
    self.assertEqual(names(controller.init), ["key"])
    self.assertEqual(names(controller.update), ["key", "observed", "state"])
    self.assertIsInstance(controller.observes, bool)
    self.assertIsInstance(controller.probes, bool)
    # Law: whatever tries k' looks at what it gave.
    self.assertGreaterEqual(controller.observes, controller.probes)
    proposal, _ = controller.init(jax.random.key(0))
    for k in proposal:
      self.assertEqual((k.shape, k.dtype), ((), jnp.float32))
    # Law: k' < k where the round needs it, else k' = k.
    self.assertEqual(proposal.k_probe < proposal.k, controller.probes)
    self.assertLessEqual(proposal.k_probe, proposal.k)

  @parameterized.named_parameters(*CONTROLLERS)
  def test_jit_scan_and_vmap_agree(self, controller):
    """Law: a seed's rounds are the same alone, in a scan and in a batch."""
    signs = jnp.array([0, 1, STAYED, -1, BROKEN, 1, 1, -1, 0, 1])
    play = lambda key: rollout(controller, crafted, signs, key)
    keys = jax.random.split(jax.random.key(2), 3)
    both = jax.jit(jax.vmap(play))(keys)
    for seed, key in enumerate(keys):
      alone = jax.jit(play)(key)
      mine = jax.tree.map(lambda x, seed=seed: x[seed], both)
      chex.assert_trees_all_equal_shapes_and_dtypes(alone, mine)
      chex.assert_trees_all_close(alone, mine, rtol=1e-6, atol=1e-7)

  @parameterized.named_parameters(*CONTROLLERS)
  def test_one_trace_for_fifty_k(self, controller):
    """In jit, and under vmap over seeds; types stay as they are."""

    def fifty(wrap, keys, lift):
      chex.clear_trace_counter()
      update = jax.jit(wrap(chex.assert_max_traces(controller.update, 1)))
      first = jax.jit(wrap(controller.init))(keys)
      after = first
      for k in range(10, 60):
        observed = None
        if controller.observes:
          observed = observe(jnp.float32(k), jnp.float32(k - 1), k % 5 - 1)
        after = update(keys, jax.tree.map(lift, observed), after[1])
      chex.assert_trees_all_equal_shapes_and_dtypes(first, after)

    key = jax.random.key(3)
    fifty(lambda f: f, key, jnp.asarray)
    fifty(jax.vmap, jax.random.split(key, 4), lambda x: jnp.full(4, x))

  @parameterized.parameters(40, 12.5)
  def test_fixed_never_moves(self, k):
    """Law: k' = k = the k given, whatever the rounds show."""
    signs = [1, -1, 0, STAYED, BROKEN] * 4
    got, k_probe, _ = play(controllers.fixed, (k,), signs)
    np.testing.assert_array_equal(got, np.full(21, k))
    np.testing.assert_array_equal(k_probe, got)

  @parameterized.parameters(
      ((40,),),
      ((40, 12.5, 90, 90, 1),),
      ([3.25, 1e6],),
      (np.linspace(5, 1, 25),),  # More than are played.
  )
  def test_replay(self, ks):
    """Law: the sequence, then its last; alone, in jit and in a scan."""
    oracle = reference.Replay(ks)
    expected = np.float32([oracle.k, *(oracle.update() for _ in range(20))])
    controller, key = controllers.replay(ks), jax.random.key(0)
    scanned, k_probe, _ = play(controllers.replay, (tuple(ks),), [0] * 20)
    for update in (controller.update, jax.jit(controller.update)):
      proposal, state = controller.init(key)
      alone = [proposal.k]
      for _ in range(20):
        proposal, state = update(key, None, state)
        alone.append(proposal.k)
      np.testing.assert_array_equal(alone, expected)
    np.testing.assert_array_equal(scanned, expected)
    np.testing.assert_array_equal(k_probe, expected)

  @parameterized.parameters(
      ((), "sequence"),
      (5.0, "sequence"),
      (((1.0, 2.0),), "sequence"),
      ((3.0, 0.5, 0.0), r"ks\[1\].* 0.5"),
      ((3.0, 2.0, math.nan), r"ks\[2\].* nan"),
      ((math.inf,), r"ks\[0\].* inf"),
      ((-4,), r"ks\[0\].* -4"),
  )
  def test_replay_refuses(self, ks, message):
    with self.assertRaisesRegex(ValueError, message):
      controllers.replay(ks)


if __name__ == "__main__":
  absltest.main()
