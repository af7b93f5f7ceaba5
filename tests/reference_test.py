"""Checks the NumPy reference against hand-worked and golden numbers."""

import numpy as np
from absl.testing import absltest, parameterized

from tests import golden, reference


def _members(mask):
  """The indices at which a [D] bool mask is True, as a list."""
  return [int(j) for j in np.flatnonzero(mask)]


class LargestTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # |a| = 1, 3, 2: descending is 1, 2, 0.
      ('signs', [1, -3, 2], 2, [1, 2]),
      # |a| = 2, 2, 3, 2: index 2 leads, then the twos by index.
      ('ties', [2, -2, 3, 2], 3, [2, 0, 1]),
      # Zeros follow, by index; -0 is as large as 0.
      ('zeros', [0.0, -0.0, 5, 0.0], 3, [2, 0, 1]),
      ('none', [1, 2], 0, []),
      # There are no more than D.
      ('all', [1, 2], 5, [1, 0]),
      ('infinite', [1, -np.inf], 1, [1]),
  )
  def test_order(self, a_i, q, expected):
    self.assertEqual(reference.largest(np.float32(a_i), q), expected)

  def test_many_ties(self):
    # 0, 1, 2, 0, 1, 2, ...: first the hundred twos by index, then the ones,
    # then the zeros. (Few enough ties keep their order in any sort.)
    a_i = np.float32(np.arange(300) % 3)
    expected = [*range(2, 300, 3), *range(1, 300, 3), *range(0, 300, 3)]
    self.assertEqual(reference.largest(a_i, 300), expected)

  def test_denormals(self):
    # 2^-149 is the least float32 above zero, so |a| = 0, 1, 2, 0 times it.
    a_i = np.array([0, 1, 2, 0], np.int32).view(np.float32)
    a_i[2] = -a_i[2]
    self.assertEqual(reference.largest(a_i, 3), [2, 1, 0])

  def test_nan_is_refused(self):
    with self.assertRaises(ValueError):
      reference.largest(np.float32([1, np.nan]), 1)

  def test_union(self):
    # Orders: 0 1 2, and 2 0 1.
    a = np.float32([[3, 2, 1], [2, 1, 3]])
    self.assertEqual(reference.union_at_depth(a, 0), set())
    self.assertEqual(reference.union_at_depth(a, 1), {0, 2})
    self.assertEqual(reference.union_at_depth(a, 2), {0, 1, 2})


class FabTest(parameterized.TestCase):

  def test_overlap_and_fill(self):
    # Orders of magnitude:
    #   client 0: 0 (9), 2 (7), 3 (5), 5 (2), 4 (1), 1 (0)
    #   client 1: 0 (8), 4 (6), 5 (4), 3 (3.5), 1 (3), 2 (0)
    # Unions: depth 1 {0}, depth 2 {0, 2, 4}, depth 3 {0, 2, 3, 4, 5}. With
    # k = 4 depth 2 still fits (3 members), depth 3 does not (5): kappa = 2.
    # One place is left for the third entries, 3 (|5|) or 5 (|4|): it is 3.
    a = np.float32([[9, 0, -7, 5, 1, 2], [8, 3, 0, 3.5, -6, 4]])
    got = reference.fab(a, [1, 3], 4)
    self.assertEqual(got.kappa, 2)
    self.assertEqual(_members(got.mask), [0, 2, 3, 4])
    # Uplinks (first four of each order): {0, 2, 3, 5} and {0, 3, 4, 5}. So 3,
    # the third entry of client 0, is used from client 1 as well, where it is
    # the fourth; client 0's 4 was not sent, and 5 was sent in vain.
    self.assertEqual(_members(got.client_mask[0]), [0, 2, 3])
    self.assertEqual(_members(got.client_mask[1]), [0, 3, 4])
    # b_0 = (9 + 3 * 8) / 4 = 8.25    b_2 = -7 / 4 = -1.75
    # b_3 = (5 + 3 * 3.5) / 4 = 3.875    b_4 = 3 * -6 / 4 = -4.5
    np.testing.assert_array_equal(
        got.aggregate, [8.25, 0, -1.75, 3.875, -4.5, 0]
    )
    np.testing.assert_array_equal(
        got.residual, [[0, 0, 0, 0, 1, 2], [0, 3, 0, 0, 0, 4]]
    )
    np.testing.assert_array_equal(
        got.sent, [[9, 0, -7, 5, 0, 0], [8, 0, 0, 3.5, -6, 0]]
    )

  def test_ties(self):
    # Orders, ties by lower index:
    #   client 0: 0 (5), 2 (2), 3 (2), then the zeros 1, 4, 5
    #   client 1: 0 (5), 1 (2), 5 (2), then the zeros 2, 3, 4
    #   client 2: 4 (4), 5 (2), 2 (1), then the zeros 0, 1, 3
    # Unions: depth 1 {0, 4}, depth 2 {0, 1, 2, 4, 5}. With k = 4: kappa = 1,
    # and two places for the second entries 2, 1, 5, each of magnitude 2: the
    # lower indices, 1 and 2.
    a = np.float32([
        [5, 0, 2, -2, 0, 0],
        [-5, 2, 0, 0, 0, 2],
        [0, 0, 1, 0, 4, -2],
    ])
    got = reference.fab(a, [1, 1, 2], 4)
    self.assertEqual(got.kappa, 1)
    self.assertEqual(_members(got.mask), [0, 1, 2, 4])
    # Uplinks: {0, 2, 3, 1}, {0, 1, 5, 2}, {4, 5, 2, 0}; the last of each is a
    # zero, and counts as sent.
    self.assertEqual(_members(got.client_mask[0]), [0, 1, 2])
    self.assertEqual(_members(got.client_mask[1]), [0, 1, 2])
    self.assertEqual(_members(got.client_mask[2]), [0, 2, 4])
    # b_0 = (5 - 5 + 2 * 0) / 4 = 0, though 0 is in J.
    # b_1 = (0 + 2) / 4    b_2 = (2 + 0 + 2 * 1) / 4    b_4 = 2 * 4 / 4
    np.testing.assert_array_equal(got.aggregate, [0, 0.5, 1, 0, 2, 0])
    np.testing.assert_array_equal(
        got.residual,
        [[0, 0, 0, -2, 0, 0], [0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, -2]],
    )

  @parameterized.named_parameters(
      # Second entries: 1 (|1|), 1 (|-5|), 2 (|3|). Coordinate 1 counts with 5,
      # not with the 1 of the client met first, and beats 3.
      ('largest', [[9, 1, 0], [9, -5, 0], [9, 0, 3]], [0, 1]),
      # Second entries: 1 (|2|), 1 (|2|), 2 (|3|). Coordinate 1 counts with 2,
      # not with the sum 4, and loses to 3.
      ('no_sum', [[9, 2, 0], [9, 2, 0], [9, 0, 3]], [0, 2]),
  )
  def test_fill_entry_of_several_clients(self, a, expected):
    # Depth 1 is {0}, depth 2 {0, 1, 2}: with k = 2 one place is to be filled.
    got = reference.fab(np.float32(a), [1, 1, 1], 2)
    self.assertEqual(got.kappa, 1)
    self.assertEqual(_members(got.mask), expected)

  def test_one_client_is_plain_top_k(self):
    # Order 3 (4), 0 (3), 4 (2), 1 (1), 2 (0). The union at depth q has q
    # members, so kappa = k = 3; b is a itself, whatever the count.
    got = reference.fab(np.float32([[3, -1, 0, -4, 2]]), [7], 3)
    self.assertEqual(got.kappa, 3)
    self.assertEqual(_members(got.mask), [0, 3, 4])
    np.testing.assert_array_equal(got.mask, got.client_mask[0])
    np.testing.assert_array_equal(got.aggregate, [3, 0, 0, -4, 2])
    np.testing.assert_array_equal(got.residual, [[0, -1, 0, 0, 0]])

  @parameterized.parameters(3, 4)
  def test_everything(self, k):
    # k = D = 3, or more, which means D: every union fits, so kappa = D, all
    # is sent, and b is the weighted mean:
    # (1 + 3 * 5) / 4, (0 + 3 * 0) / 4, (-2 + 3 * 2) / 4.
    got = reference.fab(np.float32([[1, 0, -2], [5, 0, 2]]), [1, 3], k)
    self.assertEqual(got.kappa, 3)
    self.assertTrue(got.mask.all())
    self.assertTrue(got.client_mask.all())
    np.testing.assert_array_equal(got.aggregate, [4, 0, 1])
    np.testing.assert_array_equal(got.residual, np.zeros((2, 3)))

  def test_fewer_places_than_clients(self):
    # The first entries 0 (3), 1 (5), 2 (4) are three already, so with k = 2
    # kappa = 0 and the first entries compete: 1 and 2 win.
    got = reference.fab(np.float32(np.diag([3, -5, 4])), [1, 1, 1], 2)
    self.assertEqual(got.kappa, 0)
    self.assertEqual(_members(got.mask), [1, 2])
    # Uplinks {0, 1}, {1, 0}, {2, 0}: the second of each is a zero. Client 0
    # contributes only the zero at 1 and keeps its 3.
    self.assertEqual(_members(got.client_mask[0]), [1])
    self.assertEqual(_members(got.client_mask[1]), [1])
    self.assertEqual(_members(got.client_mask[2]), [2])
    np.testing.assert_array_equal(
        got.residual, [[3, 0, 0], [0, 0, 0], [0, 0, 0]]
    )
    np.testing.assert_allclose(got.aggregate, [0, -5 / 3, 4 / 3])

  def test_nothing(self):
    a = np.float32([[1, 2], [3, 4]])
    got = reference.fab(a, [1, 1], 0)
    self.assertEqual(got.kappa, 0)
    self.assertFalse(got.mask.any())
    np.testing.assert_array_equal(got.residual, a)


class GoldenTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.golden = golden.load_or_skip(self)

  def test_all_cases_are_covered(self):
    self.assertLen({key.split('/')[0] for key in self.golden}, golden.NUM_CASES)

  @parameterized.parameters(*range(golden.NUM_CASES))
  def test_fab(self, case):
    def item(name):
      return self.golden[f'{case:03d}/{name}']

    got = reference.fab(item('grads'), item('counts'), item('k'))
    np.testing.assert_array_equal(got.mask, item('fab_mask'))
    np.testing.assert_array_equal(got.client_mask, item('fab_client_mask'))
    np.testing.assert_allclose(
        got.aggregate, item('fab_aggregate'), rtol=0, atol=1e-6
    )


class RoundTest(absltest.TestCase):

  def test_gs_round(self):
    # a = gradients + residual = [[4, 2, 0, -1], [2, 0, 1, 3]].
    # Orders 0 1 3 2 and 3 0 2 1; unions: depth 1 {0, 3}, depth 2 {0, 1, 3}.
    # With k = 2: J = {0, 3}. Uplinks {0, 1} and {3, 0}: client 0's -1 at 3
    # was not sent. b_0 = (4 + 3 * 2) / 4 = 2.5, b_3 = 3 * 3 / 4 = 2.25.
    # w = 1 - 0.5 b.
    params, residual = reference.gs_round(
        gradients=np.float32([[4, 1, 0, -1], [2, 0, 1, 1]]),
        residual=np.float32([[0, 1, 0, 0], [0, 0, 0, 2]]),
        counts=[1, 3],
        params=np.ones(4, np.float32),
        k=2,
        learning_rate=0.5,
    )
    np.testing.assert_array_equal(params, [-0.25, 1, 1, -0.125])
    np.testing.assert_array_equal(residual, [[0, 2, 0, -1], [0, 0, 1, 0]])
    self.assertEqual(params.dtype, np.float64)
    self.assertEqual(residual.dtype, np.float32)

  def test_two_rounds_with_no_new_gradient(self):
    # What round 1 left, [[0, 2, 0, -1], [0, 0, 1, 0]], goes out in round 2
    # even with no gradient. Orders 1 3 0 2 and 2 0 1 3; depth 1 is {1, 2},
    # depth 2 {0, 1, 2, 3}. J = {1, 2}. Uplinks {1, 3} and {2, 0}.
    # b_1 = 2 / 4, b_2 = 3 * 1 / 4.
    params, residual = reference.gs_round(
        gradients=np.zeros((2, 4), np.float32),
        residual=np.float32([[0, 2, 0, -1], [0, 0, 1, 0]]),
        counts=[1, 3],
        params=np.float32([-0.25, 1, 1, -0.125]),
        k=2,
        learning_rate=0.5,
    )
    np.testing.assert_array_equal(params, [-0.25, 0.75, 0.625, -0.125])
    np.testing.assert_array_equal(residual, [[0, 0, 0, -1], [0, 0, 0, 0]])


if __name__ == '__main__':
  absltest.main()
