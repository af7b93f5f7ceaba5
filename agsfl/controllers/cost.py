"""Normalised time, and the slope of its cost in k."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl.types import Observation


def round_time(
    volume_up: jax.Array,
    volume_down: jax.Array,
    *,
    dim: int,
    comm_time: float,
    compute: float = 1.0,
) -> jax.Array:
  """Normalised duration of a round, theta_m(k).

  Args:
    volume_up: [] numbers that each client sends; a sparse element is two, its
      index and its value.
    volume_down: [] numbers that the server sends.
    dim: D.
    comm_time: beta, the time to send D values up and down; the unit is the
      computation of one minibatch gradient at all clients.
    compute: the round's computation, same unit.

  Returns:
    [] f32, same unit.

  Source: Han, Wang, Leung, ICDCS 2020, normalised time of the experiments.

  >>> float(round_time(100, 100, dim=200, comm_time=10.0))
  6.0
  """
  volume = jnp.float32(volume_up) + jnp.float32(volume_down)
  return compute + comm_time * volume / (2.0 * dim)


def add_time(
    elapsed: jax.Array, rest: jax.Array, duration: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Adds a round's duration to the time of all rounds, in two floats.

  Where rounds are short beside their sum, a float32 sum rounds each the same
  way: after 1e5 rounds it may be off by 0.1%. So what a sum rounds off is kept
  for the next one.

  Args:
    elapsed: [] f32.
    rest: [] f32, the time is elapsed + rest.
    duration: [] f32, not negative.

  Returns:
    The new (elapsed, rest).

  Source: Kahan, "Further remarks on reducing truncation errors", CACM 1965.
  """
  term = duration + rest
  total = elapsed + term
  return total, term - (total - elapsed)


class CostSlope(NamedTuple):
  """An estimate of d tau_m / dk.

  Attributes:
    value: [] f32, time per element; NaN where not valid.
    sign: [] f32, its sign, -1, 0 or 1; 0 where not valid.
    valid: [] bool, both losses fell and all that it is made of is finite.
  """

  value: jax.Array
  sign: jax.Array
  valid: jax.Array


def cost_slope(observed: Observation) -> CostSlope:
  """Compares the round's time with what k' would have needed for its gain.

  tau^(k') = theta(k') * (L(w-) - L(w)) / (L(w-) - L(w')), and the slope is
  (theta(k) - tau^(k')) / (k - k').

  Args:
    observed: one round's losses and times, k > k'.

  Returns:
    The slope, not valid when a loss did not fall.

  Source: Han, Wang, Leung, ICDCS 2020, Sec. IV, on estimating the sign.
  """
  fall = observed.loss_before - observed.loss_after
  fall_probe = observed.loss_before - observed.loss_probe
  cost_probe = observed.time_probe * fall / fall_probe
  slope = (observed.time - cost_probe) / (observed.k - observed.k_probe)
  needed = (
      slope,
      observed.k,
      observed.k_probe,
      observed.time,
      observed.time_probe,
      observed.loss_before,
      observed.loss_after,
      observed.loss_probe,
  )
  finite = jnp.all(jnp.isfinite(jnp.stack(needed)))
  valid = (fall > 0) & (fall_probe > 0) & finite
  return CostSlope(
      value=jnp.where(valid, slope, jnp.nan),
      sign=jnp.where(valid, jnp.sign(slope), 0.0),
      valid=valid,
  )
