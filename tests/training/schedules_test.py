"""Learning rates by round: each factor as its formula, and at its ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.training import schedules


def textbook(name, m, warmup, horizon, drops, drop_factor):
  """The factor of round m, from 1, in plain Python."""
  if m <= warmup:
    return m / warmup
  t, rounds = m - warmup - 1, horizon - warmup
  if name == "constant":
    return 1.0
  if name == "cosine":
    return (1 + math.cos(math.pi * min(1, t / rounds))) / 2
  if name == "linear":
    return max(0, 1 - t / rounds)
  return drop_factor ** min(drops, t * (drops + 1) // rounds)


class SchedulesTest(parameterized.TestCase):

  @parameterized.product(
      name=tuple(schedules.SCHEDULES), warmup=(0, 1, 5), drops=(1, 2, 6)
  )
  def test_is_the_formula(self, name, warmup, drops):
    """Law: every round's factor, also after the horizon, traced."""
    horizon = 17
    factor_of = schedules.build_schedule(
        name, warmup_rounds=warmup, horizon=horizon, drops=drops,
        drop_factor=0.25,
    )
    rounds = np.arange(1, horizon + 5, dtype=np.int32)
    want = [
        textbook(name, int(m), warmup, horizon, drops, 0.25) for m in rounds
    ]
    got = jax.jit(jax.vmap(factor_of))(rounds)
    np.testing.assert_allclose(got, want, atol=1e-6)

  def test_by_hand(self):
    """Warm-up of 4 rounds; drops at a third and two thirds of 9 rounds."""
    for name, settings, want in (
        ("constant", {"warmup_rounds": 4}, [0.25, 0.5, 0.75, 1, 1, 1]),
        (
            "step", {"horizon": 9, "drops": 2, "drop_factor": 0.5},
            [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25],
        ),
        ("linear", {"horizon": 4}, [1, 0.75, 0.5, 0.25, 0, 0]),
        ("cosine", {"horizon": 2}, [1, 0.5, 0, 0]),
    ):
      factor_of = schedules.build_schedule(name, **settings)
      got = [float(factor_of(jnp.int32(m))) for m in range(1, len(want) + 1)]
      np.testing.assert_allclose(got, want, atol=1e-7, err_msg=name)

  @parameterized.parameters(*schedules.SCHEDULES)
  def test_wider_types_change_nothing(self, name):
    """Law: float32 with 64-bit types allowed, and strict promotion."""
    factor_of = schedules.build_schedule(name, warmup_rounds=2, horizon=9)
    outcome = lambda: [jax.jit(factor_of)(jnp.int32(m)) for m in (1, 5, 9)]
    want = outcome()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      got = outcome()
    for mine, other in zip(got, want, strict=True):
      self.assertEqual(mine.dtype, jnp.float32)
      np.testing.assert_allclose(mine, other, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
