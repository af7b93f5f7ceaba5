"""Fairness in numbers, against Python's own statistics."""

import math
import statistics

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest

from agsfl.records import columns, fairness

# Shares such as 3 of 7, or none for a client without test samples.
_ACCURACIES = st.lists(
    st.just(math.nan)
    | st.integers(1, 40).flatmap(
        lambda count: st.integers(0, count).map(lambda right: right / count)
    ),
    max_size=45,
)


class FairnessTest(absltest.TestCase):

  def test_jain_index(self):
    """(1 + 2 + 3)^2 / (3 * 14); all alike 1; one of four alone 1/4."""
    self.assertAlmostEqual(fairness.jain_index(np.array([1, 2, 3])), 36 / 42)
    self.assertEqual(fairness.jain_index(np.array([5, 5, 5])), 1)
    self.assertEqual(fairness.jain_index(np.array([0, 7, 0, 0])), 0.25)
    self.assertEqual(fairness.jain_index(np.zeros(3)), 1)
    # Without care, rounding brings this one above 1.
    self.assertEqual(fairness.jain_index(np.full(3, 1 / 13)), 1)

  @hypothesis.given(_ACCURACIES)
  def test_spread(self, accuracies):
    """Law: it is that of the clients with test samples, by definition.

    The reader of rows takes all of these numbers.
    """
    got = fairness.spread(np.array(accuracies))
    self.assertEqual(tuple(got), fairness.SPREAD)
    known = sorted(x for x in accuracies if not math.isnan(x))
    if not known:
      self.assertTrue(all(math.isnan(x) for x in got.values()))
      return
    tenth = math.ceil(len(known) / 10)
    squares = len(known) * sum(x**2 for x in known)
    want = (
        statistics.fmean(known), statistics.pstdev(known),
        statistics.fmean(known[:tenth]), statistics.fmean(known[::-1][:tenth]),
        sum(known) ** 2 / squares if squares else 1,
    )
    np.testing.assert_allclose([*got.values()], want, atol=1e-12)
    self.assertTrue(all(map(columns.is_share, got.values())))


if __name__ == "__main__":
  absltest.main()
