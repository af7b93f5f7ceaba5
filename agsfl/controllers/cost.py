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
    comm_time: float | jax.Array,
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

  A float32 sum rounds every short duration in the same direction. After 1e5
  rounds it may be off by 0.1%. So a second float stores what the sum lost by
  rounding, and the next round adds it.

  Args:
    elapsed: [] f32.
    rest: [] f32; the exact time is elapsed + rest.
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
    value: [] f32, time per element; 0 if not valid.
    sign: [] f32, its sign, -1, 0 or 1; 0 if not valid.
    valid: [] bool, whether both losses fell and all numbers are finite.
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
    The slope; not valid if a loss did not fall, or a number is not finite.

  Source: Han, Wang, Leung, ICDCS 2020, Sec. IV, on estimating the sign.
  """
  fall, fall_probe = observed.fall, observed.fall_probe
  gap = observed.k - observed.k_probe
  given = jnp.stack((
      observed.k,
      observed.k_probe,
      observed.time,
      observed.time_probe,
      fall,
      fall_probe,
  ))
  usable = (
      (fall > 0) & (fall_probe > 0) & (gap != 0) & jnp.all(jnp.isfinite(given))
  )
  # If not usable, divide by 1: no NaN arises, and the result is not used.
  cost_probe = observed.time_probe * fall / jnp.where(usable, fall_probe, 1.0)
  slope = (observed.time - cost_probe) / jnp.where(usable, gap, 1.0)
  valid = usable & jnp.isfinite(slope)
  value = jnp.where(valid, slope, 0.0)
  return CostSlope(value, jnp.sign(value), valid)
