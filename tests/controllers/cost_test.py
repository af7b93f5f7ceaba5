"""Normalised time and the cost's slope against the NumPy oracle."""

import collections
import doctest
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.controllers import cost
from tests import reference
from tests.controllers.playing import of_losses

cost_slope = jax.jit(cost.cost_slope)

# Multiples of 1/64 up to 16: float32 holds their differences and products
# exactly. The one rounding left is that of the quotient, which is right where
# the slope is 0 and else less than the slope's distance from 0. So the signs
# must agree, always.
dyadic = lambda low, high: st.integers(64 * low, 64 * high).map(
    lambda n: n / 64
)
NOT_FINITE = (math.nan, math.inf, -math.inf)


def slope_of(**values):
  observed = of_losses(**{n: jnp.float32(x) for n, x in values.items()})
  return jax.tree.map(np.asarray, cost_slope(observed))


def oracle(o):
  """(cost_probe, slope, sign, valid) of an observation given as a dict."""
  return reference.estimate(
      o["time"],
      o["time_probe"],
      o["loss_before"],
      o["loss_after"],
      o["loss_probe"],
      o["k"],
      o["k_probe"],
  )


@st.composite
def observations(draw):
  """Rounds whose losses fall, stay or rise; k' may be k. All finite."""
  fall = st.one_of(dyadic(-1, 0), dyadic(0, 1), dyadic(0, 12))
  loss = draw(dyadic(0, 16))
  loss_after = loss - draw(fall)
  k_probe = draw(dyadic(0, 16))
  return dict(
      k=k_probe + draw(dyadic(0, 16)),
      k_probe=k_probe,
      time=draw(dyadic(0, 16)),
      time_probe=draw(dyadic(0, 16)),
      loss_before=loss,
      loss_after=loss_after,
      loss_probe=draw(st.just(loss_after) | fall.map(lambda x: loss - x)),
  )


# k = 10, k' = 6; by k the loss falls from 3 to 1 in a time of 5, by k' from 3
# to 2 in 3. So k' would need 3 * 2 / 1 = 6, and the slope is (5 - 6) / 4.
WORKED = dict(
    k=10.0,
    k_probe=6.0,
    time=5.0,
    time_probe=3.0,
    loss_before=3.0,
    loss_after=1.0,
    loss_probe=2.0,
)


class RoundTimeTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(st.data())
  def test_equals_the_oracle(self, data):
    dim = data.draw(st.integers(1, 10**6), label="dim")
    k_up = data.draw(st.integers(0, dim), label="k_up")
    k_down = data.draw(st.integers(0, dim), label="k_down")
    comm_time = data.draw(st.floats(0, 1e3), label="comm_time")
    compute = data.draw(st.floats(0, 1e3), label="compute")
    got = cost.round_time(
        jnp.int32(2 * k_up),  # an index and a value each
        jnp.int32(2 * k_down),
        dim=dim,
        comm_time=comm_time,
        compute=compute,
    )
    want = reference.round_time(k_up, k_down, dim, comm_time, compute)
    self.assertEqual(got.dtype, jnp.float32)
    # Below 1e-30 a float32 product may underflow.
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-30)

  @parameterized.named_parameters(
      # No exchange: the computation alone.
      ("nothing_sent", 0, 0, 1.0, 1.0),
      # Indices double the values: half of D each way costs a dense exchange.
      ("as_dense", 100, 100, 1.0, 11.0),
      ("all_sent", 200, 200, 1.0, 21.0),
      # 2 * (30 + 10) of 400 values: a fifth of 10.
      ("two_ways", 30, 10, 1.0, 3.0),
      ("up_alone", 40, 0, 0.5, 2.5),
      ("down_alone", 0, 40, 0.0, 2.0),
  )
  def test_worked(self, k_up, k_down, compute, expected):
    """D = 200, beta = 10; the oracle too."""
    got = cost.round_time(
        2 * k_up, 2 * k_down, dim=200, comm_time=10.0, compute=compute
    )
    oracle = reference.round_time(k_up, k_down, 200, 10.0, compute)
    for time in (float(got), oracle):
      self.assertAlmostEqual(time, expected, places=5)

  def test_computation_takes_one_by_default(self):
    self.assertEqual(cost.round_time(0, 0, dim=9, comm_time=3.0), 1.0)

  def test_doctests(self):
    failed, attempted = doctest.testmod(cost)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)


class AddTimeTest(parameterized.TestCase):

  @parameterized.parameters(1.1, 6.7, 1.0312500238418579)
  def test_after_many_rounds(self, duration):
    """Law: of 1e5 rounds the sum is right to float32's last place, jitted."""
    count = 10**5
    rng = np.random.default_rng(0)
    durations = duration * rng.uniform(1, 1 + 1e-3, count).astype(np.float32)

    def add(carry, duration):
      time, plain = carry
      return (cost.add_time(*time, duration), plain + duration), None

    zero = jnp.float32(0.0)
    scan = jax.jit(lambda x: jax.lax.scan(add, ((zero, zero), zero), x)[0])
    (elapsed, _), plain = scan(durations)
    want = math.fsum(durations.tolist())
    np.testing.assert_allclose(elapsed, want, rtol=2**-23)
    self.assertGreater(abs(plain - want), 1e-5 * want, "an easy sum")


class CostSlopeTest(parameterized.TestCase):

  def assert_equals_oracle(self, observed):
    got = slope_of(**observed)
    cost_probe, slope, sign, valid = oracle(observed)
    # Law: validity and sign are the oracle's, and no sign is 0.
    self.assertEqual(got.valid, valid)
    self.assertEqual(got.sign, sign)
    if not valid:
      self.assertEqual(got.value, 0)
    else:
      # Law: the slope is the oracle's, to what cancellation leaves of it.
      scale = observed["time"] + cost_probe
      tolerance = 1e-6 * scale / (observed["k"] - observed["k_probe"])
      np.testing.assert_allclose(got.value, slope, rtol=1e-6, atol=tolerance)

  @hypothesis.settings(max_examples=400, deadline=None)
  @hypothesis.given(observations())
  def test_equals_the_oracle(self, observed):
    self.assert_equals_oracle(observed)

  @parameterized.named_parameters(
      ("down", {}, -0.25, -1),
      # k' would need 3 * 2 / 1.5 = 4: (5 - 4) / 4.
      ("up", dict(loss_probe=1.5), 0.25, 1),
      # k' would need 2.5 * 2 / 1 = 5. Flat, and an estimate all the same.
      ("flat", dict(time_probe=2.5), 0.0, 0),
      # k' gains more than k: it would need 3 * 2 / 3 = 2, (5 - 2) / 4.
      ("probe_better", dict(loss_probe=0.0), 0.75, 1),
  )
  def test_worked(self, change, value, sign):
    """By hand; the oracle too."""
    got = slope_of(**(WORKED | change))
    self.assertEqual((got.value, got.sign, got.valid), (value, sign, True))
    self.assertEqual(oracle(WORKED | change)[1:], (value, sign, True))

  @parameterized.named_parameters(
      ("after_stays", dict(loss_after=3.0)),
      ("after_rises", dict(loss_after=3.5)),
      ("probe_stays", dict(loss_probe=3.0)),
      ("probe_rises", dict(loss_probe=3.5)),
      ("both_stay", dict(loss_after=3.0, loss_probe=3.0)),
      # The quotient of two rises is positive, and yet no estimate.
      ("both_rise", dict(loss_after=3.5, loss_probe=4.0)),
      ("no_probe", dict(k_probe=10.0)),
      # 0 / 0: nothing differs.
      ("same_round", dict(k_probe=10.0, time_probe=5.0, loss_probe=1.0)),
  )
  def test_no_estimate(self, change):
    """By hand; the oracle too."""
    got = slope_of(**(WORKED | change))
    self.assertEqual((got.value, got.sign, got.valid), (0, 0, False))
    cost_probe, slope, *rest = oracle(WORKED | change)
    self.assertTrue(math.isnan(cost_probe) and math.isnan(slope))
    self.assertEqual(rest, [0, False])

  def test_overflow_is_no_estimate(self):
    """k' would need 3e38 * 2, which float32 cannot hold."""
    got = slope_of(**(WORKED | dict(time_probe=3e38)))
    self.assertEqual((got.value, got.sign, got.valid), (0, 0, False))

  @parameterized.parameters(*WORKED)
  def test_not_finite_is_no_estimate(self, field):
    """Law: whichever number is NaN or infinite, there is no estimate."""
    for x in NOT_FINITE:
      with self.subTest(x=x):
        self.assert_equals_oracle(WORKED | {field: x})
        self.assertFalse(slope_of(**(WORKED | {field: x})).valid)

  def test_what_it_does_not_need_may_be_nan(self):
    """Law: the slope is a matter of falls, times and k alone."""
    observed = of_losses(**WORKED)._replace(loss=jnp.nan)
    wider = collections.namedtuple("Wider", (*observed._fields, "norm"))
    got = cost_slope(wider(*observed, norm=jnp.nan))
    self.assertTrue(got.valid)
    self.assertEqual(got.value, -0.25)

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(
      observations(),
      st.dictionaries(
          st.sampled_from(("loss_before", "loss_after", "loss_probe")),
          st.sampled_from((math.nan, math.inf)),
          min_size=1,
      ),
  )
  def test_losses_not_finite(self, observed, broken):
    self.assert_equals_oracle(observed | broken)

  def test_under_vmap_and_in_float32(self):
    """Law: a batch of rounds is its rounds, one by one."""
    changes = ({}, dict(loss_probe=3.5), dict(loss_probe=1.5))
    rounds = [
        of_losses(**jax.tree.map(jnp.float32, WORKED | change))
        for change in changes
    ]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *rounds)
    got = jax.vmap(cost.cost_slope)(batch)
    np.testing.assert_array_equal(got.sign, [-1, 0, 1])
    np.testing.assert_array_equal(got.value, [-0.25, 0, 0.25])
    np.testing.assert_array_equal(got.valid, [True, False, True])
    dtypes = jax.tree.map(lambda x: x.dtype, got)
    self.assertEqual(dtypes, (jnp.float32, jnp.float32, jnp.bool_))


if __name__ == "__main__":
  absltest.main()
