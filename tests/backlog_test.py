"""How far the weights lag behind, against queues in NumPy."""

import doctest

import numpy as np
from absl.testing import absltest, parameterized

from agsfl import backlog


class Queue:
  """Coordinates that take turns: each round sends the k oldest.

  Attributes:
    residual: [D] what each has accumulated.
    ages: [D] rounds since each was sent.
  """

  def __init__(self, dim, k):
    self.residual, self.ages = np.zeros(dim), np.zeros(dim)
    self._turn, self._k = 0, k

  def round(self, gradient):
    """(accumulated, residual) of one round."""
    accumulated = self.residual + gradient
    sent = (self._turn + np.arange(self._k)) % len(accumulated)
    self._turn += self._k
    self.residual = accumulated.copy()
    self.residual[sent] = 0
    self.ages += 1
    self.ages[sent] = 0
    return accumulated, self.residual


def lag_of(accumulated, residual, weights=(1.0,), turns=1.0):
  energies = lambda rows: np.array([
      backlog.energy(np.float32(row)) for row in np.atleast_2d(rows)
  ])
  return float(backlog.lag(
      np.float32(weights), energies(accumulated), energies(residual), turns
  ))


class LagTest(parameterized.TestCase):

  def test_examples(self):
    failed, attempted = doctest.testmod(backlog)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)

  @parameterized.parameters(1, 511, 512, 513, 100_003)
  def test_energy(self, dim):
    """Law: the sum of squares, to a few parts in ten million."""
    values = np.random.default_rng(0).lognormal(0, 2, dim).astype(np.float32)
    want = np.sum(np.square(values.astype(np.float64)))
    np.testing.assert_allclose(backlog.energy(values), want, rtol=5e-7)

  @parameterized.parameters(100, 400)
  def test_noise_waits_as_long_as_it_is_old(self, k):
    """Law, Little's: of noise it is the mean age, within a few per cent."""
    rng, queue = np.random.default_rng(0), Queue(4000, k)
    lags = []
    for m in range(9 * 4000 // k):
      rows = queue.round(rng.normal(size=4000))
      if m >= 2 * 4000 // k:
        lags.append(lag_of(*rows))
    # An element that is sent in its first round has age 0.
    np.testing.assert_allclose(np.mean(lags), queue.ages.mean(), rtol=0.05)

  @parameterized.parameters(10, 50)
  def test_equal_gradients(self, k):
    """Law: of equal gradients it is two thirds of the mean age."""
    queue = Queue(4000, k)
    for _ in range(3 * 4000 // k):
      rows = queue.round(np.ones(4000))
    want = 2 / 3 * queue.ages.mean()
    np.testing.assert_allclose(lag_of(*rows), want, rtol=0.02)

  def test_nothing_waits_or_nothing_leaves(self):
    ones, zeros = np.ones(7), np.zeros(7)
    self.assertEqual(lag_of(ones, zeros), 0.0)
    self.assertEqual(lag_of(ones, ones), -1.0)
    self.assertEqual(lag_of(zeros, zeros), -1.0)

  def test_weights_and_turns(self):
    """Three clients, of which the last does not count."""
    before = np.diag([2.0, 3.0, 5.0])  # energies 4, 9, 25
    after = np.diag([1.0, 2.0, 5.0])  # energies 1, 4, 25
    # (1 + 3 * 4) / (3 + 3 * 5), and every client has its turn each 5 rounds.
    got = lag_of(before, after, weights=(1.0, 3.0, 0.0), turns=5.0)
    self.assertAlmostEqual(got, 5 * 13 / 18, places=5)


if __name__ == "__main__":
  absltest.main()
