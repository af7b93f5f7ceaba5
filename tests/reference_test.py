"""Checks the NumPy reference against hand-worked and golden numbers."""

import math

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

  @parameterized.product(clients=[1, 3, 8], k=[1, 5, 17, 24], tied=[0, 1])
  def test_properties(self, clients, k, tied):
    # What the paper promises of any input: exactly k go down, each client
    # contributes at least floor(k / N), and no gradient is lost.
    rng = np.random.default_rng([clients, k, tied])
    a = rng.standard_normal((clients, 24)).astype(np.float32)
    if tied:
      a = np.round(a)
    counts = rng.integers(1, 100, clients)
    got = reference.fab(a, counts, k)
    self.assertEqual(got.mask.sum(), k)
    self.assertGreaterEqual(got.client_mask.sum(axis=1).min(), k // clients)
    self.assertGreaterEqual(got.kappa, k // clients)
    self.assertFalse((got.client_mask & ~got.mask).any())
    np.testing.assert_array_equal(got.sent + got.residual, a)
    self.assertEqual(got.residual.dtype, a.dtype)
    self.assertEqual(got.sent.dtype, a.dtype)
    self.assertEqual(got.aggregate.dtype, np.float64)
    weights = counts / counts.sum()
    np.testing.assert_allclose(got.aggregate, weights @ got.sent, atol=1e-12)


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
    # What round 1 kept, [[0, 2, 0, -1], [0, 0, 1, 0]], goes out in round 2
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


class TimeTest(parameterized.TestCase):

  @parameterized.named_parameters(
      # 1 + 10 * (10 + 10) / 200.
      ('one_in_twenty', dict(k_up=5, k_down=5, dim=100, beta=10), 2),
      # 1 + 10 * (20 + 60) / 200.
      ('uneven', dict(k_up=10, k_down=30, dim=100, beta=10), 5),
      # All elements with their indices cost twice the dense exchange.
      ('all', dict(k_up=100, k_down=100, dim=100, beta=10), 21),
      ('free', dict(k_up=5, k_down=5, dim=100, beta=0), 1),
      # 1.25 + 0.5 * (8 + 8) / 16.
      ('compute', dict(k_up=4, k_down=4, dim=8, beta=0.5, compute=1.25), 1.75),
  )
  def test_round_time(self, arguments, expected):
    self.assertAlmostEqual(reference.round_time(**arguments), expected, 12)

  @parameterized.named_parameters(
      # k lowers the loss by 2 in time 3, the probe by 1 in time 2, so it
      # would need 2 * 2 / 1 = 4 for what k did. Slope (3 - 4) / (10 - 5): more
      # elements are cheaper, the sign is negative.
      ('up', 8, 9, 4, -0.2, -1),
      # k lowers it by 1, the probe by 1.5: 2 * 1 / 1.5 = 4 / 3. Slope
      # (3 - 4 / 3) / 5 = 1 / 3: fewer elements are cheaper.
      ('down', 9, 8.5, 4 / 3, 1 / 3, 1),
      # k by 1.5, the probe by 1: 2 * 1.5 / 1 = 3, just what k takes.
      ('level', 8.5, 9, 3, 0, 0),
  )
  def test_estimate(self, after, probe, cost, slope, sign):
    got = reference.estimate(3, 2, 10, after, probe, 10, 5)
    self.assertAlmostEqual(got[0], cost, 12)
    self.assertAlmostEqual(got[1], slope, 12)
    self.assertEqual(got[2:], (sign, True))

  @parameterized.named_parameters(
      ('k_raises_the_loss', dict(loss_after=11)),
      ('k_leaves_the_loss', dict(loss_after=10)),
      ('probe_raises_the_loss', dict(loss_probe=11)),
      ('probe_leaves_the_loss', dict(loss_probe=10)),
      ('both_raise_the_loss', dict(loss_after=12, loss_probe=11)),
      ('before_is_nan', dict(loss_before=math.nan)),
      ('before_is_infinite', dict(loss_before=math.inf)),
      ('after_is_nan', dict(loss_after=math.nan)),
      # The difference is then +inf: positive, yet no estimate.
      ('after_is_minus_infinite', dict(loss_after=-math.inf)),
      ('probe_is_infinite', dict(loss_probe=math.inf)),
      ('probe_is_minus_infinite', dict(loss_probe=-math.inf)),
      ('time_is_nan', dict(theta=math.nan)),
      ('probe_time_is_infinite', dict(theta_probe=math.inf)),
      ('probe_is_k', dict(k_probe=10)),
      # 10 - (10 - 2e-15) is some 1.8e-15, and 1e300 * 2 / 1.8e-15 overflows.
      ('cost_overflows', dict(theta_probe=1e300, loss_probe=10 - 2e-15)),
  )
  def test_no_estimate(self, change):
    arguments = dict(
        theta=3,
        theta_probe=2,
        loss_before=10,
        loss_after=8,
        loss_probe=9,
        k=10,
        k_probe=5,
    )
    self.assertTrue(reference.estimate(**arguments)[3])
    cost, slope, sign, valid = reference.estimate(**(arguments | change))
    self.assertTrue(math.isnan(cost))
    self.assertTrue(math.isnan(slope))
    self.assertEqual((sign, valid), (0, False))

  @parameterized.parameters(
      (3.25, 0.0, 3),
      (3.25, 0.5, 3),  # 3.75
      (3.25, 0.75, 4),  # 4 exactly
      (3.25, 0.875, 4),
      (3.0, 0.0, 3),
      # The float sum would be 4: an integer has to stay.
      (3.0, 1 - 2.0**-53, 3),
      # A float32 sum would be 444062 + 1.
      (np.float32(444062), np.float32(1 - 2.0**-24), 444062),
  )
  def test_stochastic_round(self, k, u, expected):
    self.assertEqual(reference.stochastic_round(k, u), expected)

  def test_stochastic_round_is_unbiased(self):
    # Of u = 0, 1/100, ..., 99/100 the quarter from 75/100 up lifts 3.25 to 4.
    got = [reference.stochastic_round(3.25, i / 100) for i in range(100)]
    self.assertEqual(got.count(4), 25)
    self.assertEqual(got.count(3), 75)


class SignDescentTest(absltest.TestCase):

  def test_script(self):
    # K = [20, 120], B = 100, delta_m = 100 / sqrt(2 m); the probe is
    # k - delta_m / 2, at least max(1, 0.1 * 20) = 2.
    rounds = [
        # probe before, sign, valid, k after
        # m = 1: delta 70.710678. 70 - 35.355339; 70 - 70.71 < 20.
        (34.644661, 1, True, 20),
        # m = 2: delta 50. 20 - 25 < 2; 20 + 50.
        (2, -1, True, 70),
        # m = 3: delta 40.824829. 70 - 20.412415; no sign, k stays.
        (49.587585, 0, False, 70),
        # m = 4, for the round without a sign counted: delta 35.355339.
        # 70 - 17.677670; 70 - 35.355339.
        (52.322330, 1, True, 34.644661),
        # m = 5: delta 31.622777. 34.644661 - 15.811388; the slope was 0.
        (18.833273, 0, True, 34.644661),
        # m = 6: delta 28.867513. 34.644661 - 14.433757; plus delta.
        (20.210904, -1, True, 63.512174),
        # m = 7: delta 26.726124. 63.512174 - 13.363062; a sign that is not
        # valid is no sign.
        (50.149112, 1, False, 63.512174),
        # m = 8: delta 25. 63.512174 - 12.5; plus 25.
        (51.012174, -1, True, 88.512174),
        # m = 9: delta 23.570226. 88.512174 - 11.785113; plus delta.
        (76.727061, -1, True, 112.082400),
        # m = 10: delta 22.360680. 112.082400 - 11.180340; 134.44 > 120.
        (100.902060, -1, True, 120),
    ]
    control = reference.SignDescent(70, 20, 120)
    for m, (probe, sign, valid, k) in enumerate(rounds, start=1):
      with self.subTest(m=m):
        self.assertAlmostEqual(control.probe(), probe, 5)
        self.assertAlmostEqual(control.update(sign, valid), k, 5)
        self.assertAlmostEqual(control.k, k, 5)

  def test_probe_is_one_below_k(self):
    # B = 1, delta_1 / 2 = 0.354 < 1: the probe is 10.5 - 1.
    self.assertEqual(reference.SignDescent(10.5, 10, 11).probe(), 9.5)

  def test_probe_bounds_that_cross(self):
    # At least 1, at most 1.25 - 1: the upper bound goes before.
    self.assertEqual(reference.SignDescent(1.25, 1, 9).probe(), 0.25)

  def test_start_outside_is_refused(self):
    with self.assertRaises(ValueError):
      reference.SignDescent(9, 10, 20)
    with self.assertRaises(ValueError):
      reference.SignInterval(21, 10, 20)


class StuckTest(absltest.TestCase):

  def test_script(self):
    # B = 96, delta_2 = 48, delta_3 = 96 / sqrt(6) = 39.191836.
    control = reference.SignDescent(10, 4, 100, stuck_rounds=2)
    ks = [control.update(0, False) for _ in range(2)]
    self.assertEqual(ks, [10, 58])
    # One round without, one with a sign of 0, one without: not in a row; the
    # one after it is the second, m = 6: 58 + 96 / sqrt(12) = 85.712813.
    ks = [control.update(0, valid) for valid in (False, True, False, False)]
    self.assertEqual(ks[:3], [58] * 3)
    self.assertAlmostEqual(ks[3], 85.712813, 5)
    self.assertEqual(control.rises, [2, 6])

  def test_a_rise_is_judged(self):
    # B = 96, delta_2 = 48: 10 + 48, which fills a window of 1: [38.67, 87] is
    # 48.33 long, more than 39.76. Again in round 4, delta 96 / sqrt(8): 91.94,
    # and [61.29, 100] is 38.71 long.
    control = reference.SignInterval(10, 4, 100, window=1, stuck_rounds=2)
    ks = [control.update(0, False) for _ in range(4)]
    self.assertAlmostEqual(ks[-1], 91.941125, 5)
    self.assertEqual(control.rises, [2, 4])
    self.assertEqual(control.restarts, [4])
    self.assertAlmostEqual(control.k_low, 61.294083, 5)


class SignIntervalTest(absltest.TestCase):

  def _run(self, control, rounds):
    """Plays rounds of (probe or None, sign, valid, k, k_low, k_high)."""
    for m, row in enumerate(rounds, start=1):
      probe, sign, valid, k, low, high = row
      with self.subTest(m=m):
        if probe is not None:
          self.assertAlmostEqual(control.probe(), probe, 5)
        self.assertAlmostEqual(control.update(sign, valid), k, 5)
        self.assertAlmostEqual(control.k, k, 5)
        self.assertAlmostEqual(control.k_low, low, 5)
        self.assertAlmostEqual(control.k_high, high, 5)

  def test_script(self):
    # Original [6, 106]: B = 100, and a new interval may have at most
    # (sqrt(2) - 1) B = 41.421356.
    first = (6, 106)
    # Second [6, 46.5]: B = 40.5, a new one at most 16.775649.
    second = (6, 46.5)
    # Third [12.538150, 28.210837]: B = 15.672687.
    third = (12.538150, 28.210837)
    rounds = [
        # 1: delta 100 / sqrt(2) = 70.710678; 56 - 70.71 < 6.
        (20.644661, 1, True, 6, *first),
        # 2: delta 50; 6 + 50. The probe, 6 - 25, becomes 1 (0.1 * 6 < 1).
        (1, -1, True, 56, *first),
        # 3: no sign.
        (None, 0, False, 56, *first),
        # 4: delta 100 / sqrt(8) = 35.355339. The window 6, 56, 20.64 is full
        # (round 3 is not in it): [max(4, 6), 84], 78 > 41.42, no restart.
        (None, 1, True, 20.644661, *first),
        # 5: delta 100 / sqrt(10) = 31.622777, to -10.98 < 6.
        (None, 1, True, 6, *first),
        # 6: delta 28.867513, below 6.
        (None, 1, True, 6, *first),
        # 7: no sign.
        (None, 0, False, 6, *first),
        # 8: delta 100 / sqrt(16) = 25; 6 + 25. Window 6, 6, 31: [max(4, 6),
        # 46.5], 40.5 <= 41.42, and length 8 >= 0: restart. (Had the window
        # kept the 56 of round 2, it would not.)
        (None, -1, True, 31, *second),
        # 9, the instance's 1: delta 40.5 / sqrt(2) = 28.637825; the probe is
        # 31 - 14.318912; 31 - 28.64 < 6.
        (16.681088, 1, True, 6, *second),
        # 10, its 2: delta 20.25, below 6.
        (1, 1, True, 6, *second),
        # 11, its 3: below 6 again. Window 6, 6, 6: [6, 9], 3 <= 16.78, but
        # length 3 < 8: no restart.
        (None, 1, True, 6, *second),
        # 12, its 4: no sign.
        (None, 0, False, 6, *second),
        # 13, its 5: delta 40.5 / sqrt(10) = 12.807225; 6 + delta.
        (None, -1, True, 18.807225, *second),
        # 14, its 6: a slope of 0 is a sign, and enters the window.
        (None, 0, True, 18.807225, *second),
        # 15, its 7: no sign.
        (None, 0, False, 18.807225, *second),
        # 16, its 8: again 0. Window three times 18.807225: [18.807225 / 1.5,
        # 18.807225 * 1.5] = third, 15.67 <= 16.78, length 8 >= 8: restart.
        (None, 0, True, 18.807225, *third),
        # 17, the instance's 1: delta 15.672687 / sqrt(2) = 11.082264; the
        # probe is 18.807225 - 5.541132; 18.81 - 11.08 = 7.72 < 12.54.
        (13.266093, 1, True, 12.538150, *third),
        # 18, its 2: delta 7.836344; plus delta.
        (None, -1, True, 20.374494, *third),
    ]
    control = reference.SignInterval(56, 6, 106, growth=1.5, window=3)
    self.assertEqual((control.k_low, control.k_high), first)
    self._run(control, rounds)
    self.assertEqual(control.restarts, [8, 16])

  def test_interval_may_move_out_of_the_one_before(self):
    # Original [10, 1010], B = 1000, at most 414.2; alpha 1.25, window 2.
    first = (10, 1010)
    second = (80, 437.5)
    third = (64, 100)
    none = (None, 0, False)
    rounds = [
        # 1: delta 707.106781 leads from there to 100.
        (None, 1, True, 100, *first),
        # 2 to 7: no sign.
        *[(*none, 100, *first)] * 6,
        # 8: delta 250. Window 100, 350: [80, 437.5], 357.5 <= 414.2: restart.
        (None, -1, True, 350, *second),
        # 9, the instance's 1: delta 357.5 / sqrt(2) = 252.790674.
        (223.604663, 1, True, 97.209326, *second),
        # 10, its 2: delta 178.75. The probe is 97.209326 - 89.375, above
        # max(1, 0.1 * 10): the bound goes by the original 10, not by 80.
        # 97.2 - 178.75 < 80. Window 97.2, 80: [64, 121.5], 57.5 <= 148.1, but
        # length 2 < 8.
        (7.834326, 1, True, 80, *second),
        # 11 to 14, its 3 to 6: no sign.
        *[(*none, 80, *second)] * 4,
        # 15 and 16, its 7 and 8: below 80. Window 80, 80: [64, 100], bounded
        # by the original 10 and not by the current 80; 36 <= 148.1 and
        # length 8 >= 8: restart.
        (None, 1, True, 80, *second),
        (None, 1, True, 80, *third),
        # 17, the instance's 1: delta 36 / sqrt(2) = 25.455844; 54.5 < 64.
        (67.272078, 1, True, 64, *third),
    ]
    control = reference.SignInterval(
        100 + 1000 / math.sqrt(2), 10, 1010, growth=1.25, window=2
    )
    self._run(control, rounds)
    self.assertEqual(control.restarts, [8, 16])

  def test_upper_bound_and_current_length(self):
    # Original [100, 300], B = 200, at most 82.84; alpha 1.1, window 1.
    second = (272.727273, 300)
    rounds = [
        # 1: delta 141.42, to 300. Window 300: [272.727273, min(330, 300)],
        # 27.27 <= 82.84: restart.
        (None, -1, True, 300, *second),
        # 2: 300 again, so the same interval again, and length 1 >= 1. But it
        # is 27.27 long, and by the current B = 27.27 may be 11.30.
        (None, -1, True, 300, *second),
    ]
    control = reference.SignInterval(250, 100, 300, growth=1.1, window=1)
    self._run(control, rounds)
    self.assertEqual(control.restarts, [1])

  def test_no_empty_interval(self):
    # alpha 1 and a k that stays at 10: B' = 0 twice, no restart.
    control = reference.SignInterval(10, 10, 110, growth=1, window=2)
    self._run(control, [(None, 1, True, 10, 10, 110)] * 4)
    self.assertEmpty(control.restarts)

  def test_first_window_of_twenty(self):
    # By default 20 signs are judged, 1.5 is the factor. All positive: k falls
    # to 6 in round 1 and stays: [6, 9] after round 20. A round without a sign
    # before that delays it by one.
    for blanks in (0, 1):
      with self.subTest(blanks=blanks):
        control = reference.SignInterval(56, 6, 106)
        for _ in range(blanks):
          control.update(0, False)
        for _ in range(20):
          self.assertEmpty(control.restarts)
          control.update(1, True)
        self.assertEqual(control.restarts, [20 + blanks])
        self.assertEqual((control.k_low, control.k_high), (6, 9))

  def test_as_sign_descent_while_nothing_is_judged(self):
    # One instance that is never judged is Alg. 2.
    rng = np.random.default_rng(0)
    one = reference.SignDescent(50, 2, 300)
    other = reference.SignInterval(50, 2, 300, window=1000)
    for _ in range(60):
      self.assertEqual(one.probe(), other.probe())
      sign, valid = int(rng.integers(-1, 2)), bool(rng.integers(2))
      self.assertEqual(one.update(sign, valid), other.update(sign, valid))


if __name__ == '__main__':
  absltest.main()
