"""Balance of time and lag: an oracle in NumPy, a model, and laws."""

import doctest
import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import controllers
from agsfl.controllers import balancing
from agsfl.types import Observation
from tests import reference
from tests.controllers.playing import rollout

ROUNDS = 200


def seen(time, silent, elapsed, lag):
  """An Observation of what the rule looks at; the rest is not measured."""
  of_rule = dict(
      time=time, time_silent=silent, elapsed=elapsed, lag=lag
  )
  return Observation(**{
      name: jnp.float32(of_rule.get(name, np.nan))
      for name in Observation._fields
  })


@functools.cache
def player(settings):
  rule = controllers.balance(*settings)
  shown = lambda _, x: seen(*x)
  return jax.jit(lambda rounds: rollout(rule, shown, rounds, jax.random.key(0)))


def play(settings, rounds):
  """[T + 1] k of a rule that is shown [T, 4] rounds; see `seen`."""
  first, (after, _) = player(settings)(jnp.float32(rounds))
  return np.append(first[0].k, after.k)


class ModelGame:
  """Rounds in which the lag is C / k, and time is affine in k.

  Attributes:
    compute, per_element: theta(k) = compute + per_element k.
    constant: C.
  """

  def __init__(self, compute, per_element, constant):
    self.compute, self.per_element = compute, per_element
    self.constant = constant

  def shown(self, proposal, _):
    """A round of a run that has just begun."""
    theta = self.compute + self.per_element * proposal.k
    return seen(theta, self.compute, theta, self.constant / proposal.k)

  def last(self, settings, rounds=ROUNDS):
    """k after some rounds."""
    rule = controllers.balance(*settings)
    _, (after, _) = rollout(
        rule, self.shown, jnp.zeros(rounds), jax.random.key(0)
    )
    return float(after.k[-1])

  def best(self, k_min, k_max, budget):
    """The constant k with most rounds after the lag, on a fine grid."""
    k = np.geomspace(k_min, k_max, 200_001)
    rounds = budget / (self.compute + self.per_element * k)
    return k[np.argmax(rounds - self.constant / k)]


class BalanceTest(parameterized.TestCase):

  def test_example(self):
    failed, attempted = doctest.testmod(balancing)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(
      st.sampled_from((
          (1000, 10, 1e6, 500, None),
          (60, 10, 110, 80, 300.0),
          (444062, 888.124, 444062, 5780, 3000.0),
          (5, 5, 5, 10, 4.0),
      )),
      st.integers(0, 2**32 - 1),
      st.sampled_from((0.0, 0.2)),
  )
  def test_oracle(self, settings, seed, strange):
    """Law: equals the oracle, whatever a round may show."""
    rng = np.random.default_rng(seed)
    silent = rng.uniform(0.5, 2, ROUNDS)
    theta = silent * rng.choice((1, 1.01, 1.5, 8), ROUNDS)
    lag = rng.lognormal(3, 2, ROUNDS)
    elapsed = np.cumsum(theta)
    rounds = np.stack([theta, silent, elapsed, lag], 1).astype(np.float32)
    rare = (0.0, -1.0, np.nan, np.inf, -np.inf)
    where = rng.random(rounds.shape) < strange
    rounds = np.where(where, rng.choice(rare, rounds.shape), rounds)
    oracle = reference.Balance(*settings)
    want = [oracle.k, *(oracle.update(*map(float, row)) for row in rounds)]
    got = play(settings, rounds)
    # float32 holds 1 - theta(0) / theta to 1e-7, of which 1% is left.
    np.testing.assert_allclose(got, want, rtol=1e-4)
    self.assertTrue(np.all(got >= np.float32(settings[1])))
    self.assertTrue(np.all(got <= np.float32(settings[2])))

  @parameterized.product(
      per_element=(2e-6, 2e-4, 2e-3),
      constant=(300.0, 25_000.0),
      start=(200.0, 3000.0, 100_000.0),
  )
  def test_finds_the_best_constant(self, per_element, constant, start):
    """Law: in the model it goes to the best k, from any first one."""
    game = ModelGame(1.0, per_element, constant)
    budget = 1e5
    k = game.last((start, 200.0, 100_000.0, 10**8, budget))
    np.testing.assert_allclose(k, game.best(200.0, 1e5, budget), rtol=0.01)

  def test_hand_worked(self):
    """Four rounds of at most 100, from k = 100 in [10, 1000]."""
    rounds = (
        # epsilon = 1/5, M = 100: 100 sqrt(5 / 20) = 50.
        (1.25, 1.0, 0.0, 5.0),
        # Nothing was sent, so the lag is not known.
        (9.0, 1.0, 0.0, -1.0),
        # epsilon = 1/2: 50 sqrt(200 / 50) = 100.
        (2.0, 1.0, 0.0, 200.0),
        # No lag at all: k_min. Then messages that take no time: k_max.
        (2.0, 1.0, 0.0, 0.0),
        (1.0, 1.0, 0.0, 0.0),
    )
    k = play((100.0, 10.0, 1000.0, 100, None), rounds)
    np.testing.assert_allclose(k, (100, 50, 50, 100, 10, 1000), rtol=1e-6)

  def test_hand_worked_budget(self):
    """12 units of time: after 2 rounds of 2 there is time for 4 more."""
    rounds = ((2.0, 1.0, 2.0, 3.0), (2.0, 1.0, 4.0, 12.0))
    # M = 1 + 10 / 2 = 6: 100 sqrt(3 / 3). M = 2 + 8 / 2 = 6: 100 sqrt(12 / 3).
    k = play((100.0, 10.0, 1000.0, 100, 12.0), rounds)
    np.testing.assert_allclose(k, (100, 100, 200), rtol=1e-6)

  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(st.integers(0, 2**32 - 1), st.sampled_from((3, 64, 1000)))
  def test_has_no_scale(self, seed, scale):
    """Law: with D, k and time in other units, the path is scaled too."""
    rng = np.random.default_rng(seed)
    silent = rng.uniform(0.5, 2, ROUNDS)
    theta = silent * rng.uniform(1.01, 3, ROUNDS)
    lag = rng.lognormal(3, 2, ROUNDS)
    rounds = np.stack([theta, silent, np.cumsum(theta), lag], 1)
    k = play((70.0, 10.0, 1e5, 500, 300.0), rounds)
    settings = (70.0 * scale, 10.0 * scale, 1e5 * scale, 500, 300.0 * 8)
    scaled = play(settings, rounds * (8, 8, 8, 1))
    np.testing.assert_allclose(scaled, scale * k, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
