"""Rules that play a given k."""

import math

import jax
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import controllers
from agsfl.errors import ConfigError
from tests import reference
from tests.controllers.playing import BROKEN, STAYED, play


class FixedTest(parameterized.TestCase):

  @parameterized.parameters(40, 12.5)
  def test_never_moves(self, k):
    """Law: k' = k = the k given, whatever the rounds show."""
    signs = [1, -1, 0, STAYED, BROKEN] * 4
    got, k_probe, _ = play(controllers.fixed, (k,), signs)
    np.testing.assert_array_equal(got, np.full(21, k))
    np.testing.assert_array_equal(k_probe, got)


class ReplayTest(parameterized.TestCase):

  @parameterized.parameters(
      ((40,),),
      ((40, 12.5, 90, 90, 1),),
      ([3.25, 1e6],),
      (np.linspace(5, 1, 25),),  # More than are played.
  )
  def test_equals_the_oracle(self, ks):
    """Law: the sequence, then its last; by itself and in a scan."""
    oracle = reference.Replay(ks)
    expected = np.float32([oracle.k, *(oracle.update() for _ in range(20))])
    scanned, k_probe, _ = play(controllers.replay, (tuple(ks),), [0] * 20)
    np.testing.assert_array_equal(scanned, expected)
    np.testing.assert_array_equal(k_probe, expected)
    controller, key = controllers.replay(ks), jax.random.key(0)
    proposal, state = controller.init(key)
    alone = [proposal.k]
    for _ in range(20):
      proposal, state = controller.update(key, None, state)
      alone.append(proposal.k)
    np.testing.assert_array_equal(alone, expected)

  @parameterized.parameters(
      ((), "sequence"),
      (5.0, "sequence"),
      (((1.0, 2.0),), "sequence"),
      ((3.0, 0.5, 0.0), "round 2 .* 0.5"),
      ((3.0, 2.0, math.nan), "round 3 .* nan"),
      ((math.inf,), "round 1 .* inf"),
      ((-4,), "round 1 .* -4"),
  )
  def test_refuses(self, ks, message):
    with self.assertRaisesRegex(ConfigError, message):
      controllers.replay(ks)


if __name__ == "__main__":
  absltest.main()
