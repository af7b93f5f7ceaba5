"""Learning-rate schedules by round, by name."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from agsfl.names import ScheduleName

# Round m [] i32, from 1 -> [] f32, by which eta is multiplied in this round.
Schedule = Callable[[jax.Array], jax.Array]


class Schedules(NamedTuple):
  """The schedules of a run.

  Attributes:
    client: of the clients' learning rate, in their local steps.
    server: of the server's learning rate.
  """

  client: Schedule
  server: Schedule


def _constant(rounds, drops, drop_factor):
  return optax.constant_schedule(1.0)


def _cosine(rounds, drops, drop_factor):
  """Source: Loshchilov and Hutter, "SGDR", ICLR 2017, without restarts."""
  return optax.cosine_decay_schedule(1.0, rounds)


def _linear(rounds, drops, drop_factor):
  return optax.linear_schedule(1.0, 0.0, rounds)


def _step(rounds, drops, drop_factor):
  # Drop j comes at the first t with t >= j T / (drops + 1). optax gives 1
  # before it, and the factor from it on.
  return optax.piecewise_constant_schedule(1.0, {
      -(-drop * rounds // (drops + 1)): drop_factor
      for drop in range(1, drops + 1)
  })


# (T, drops, drop_factor) -> the factor at t = 0, 1, ...
SCHEDULES: dict[ScheduleName, Callable[[int, int, float], Schedule]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
    "step": _step,
}


def build_schedule(
    name: ScheduleName,
    *,
    warmup_rounds: int = 0,
    horizon: int = 1,
    drops: int = 1,
    drop_factor: float = 0.1,
) -> Schedule:
  """The factor of a learning rate in each round.

  In the W rounds of warm-up, round m has the factor m / W. A later round has,
  with t = m - W - 1 and T = H - W:

  - constant: 1.
  - cosine: (1 + cos(pi t / T)) / 2.
  - linear: 1 - t / T.
  - step: drop_factor to the power floor(t (drops + 1) / T), at most `drops`.

  So round W + 1 has the factor 1. Cosine and linear are above 0 up to round H,
  and 0 in all rounds after it.

  Args:
    name: a key of `SCHEDULES`.
    warmup_rounds: W.
    horizon: H, above W; constant does not use it.
    drops: of step, below T.
    drop_factor: of step.

  Returns:
    Round m [] i32, from 1 -> the factor [] f32.
  """
  factor = SCHEDULES[name](horizon - warmup_rounds, drops, drop_factor)
  if warmup_rounds:
    warmup = optax.linear_schedule(0.0, 1.0, warmup_rounds)
    # At its boundary the second schedule begins with t = 0.
    factor = optax.join_schedules(
        [lambda t: warmup(t + 1), factor], [warmup_rounds]
    )

  def factor_of(round_index):
    # optax mixes types, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      return jnp.asarray(factor(round_index - 1), jnp.float32)

  return factor_of
