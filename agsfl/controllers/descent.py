"""Descent on k by the slope of the cost, estimated with a smaller k'.

"Differences from the authors' code" in experiments/paper/README.md lists how
the rules of that code differ.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl.controllers.cost import CostSlope, cost_slope
from agsfl.controllers.rule import Rule
from agsfl.types import KController, KProposal


def _step_length(width, rounds):
  """delta_m = B / sqrt(2 m) of the next round, m = rounds + 1."""
  return width / jnp.sqrt(2.0 * (rounds.astype(jnp.float32) + 1.0))


def _count_without(valid, without, stuck_rounds):
  """Counts rounds in a row without a slope.

  Args:
    valid: [] bool, whether this round has a slope.
    without: [] i32, rounds in a row before it that had none.
    stuck_rounds: after so many in a row k is stuck, and the count begins again;
      None: never.

  Returns:
    (the new `without` [] i32, whether k is stuck [] bool).
  """
  without = jnp.where(valid, 0, without + 1)
  if stuck_rounds is None:
    return without, jnp.bool_(False)
  stuck = without >= stuck_rounds
  return jnp.where(stuck, 0, without), stuck


def _propose(k, k_probe, k_min):
  """k and its probe, within the bounds that `sign_descent` names."""
  floor = max(1.0, 0.1 * k_min)
  return KProposal(k, jnp.clip(k_probe, floor, k - 1.0))


class DescentState(NamedTuple):
  """State of a descent on one interval.

  Attributes:
    k: [] f32.
    rounds: [] i32, rounds done.
    without: [] i32, rounds in a row without a slope.
  """

  k: jax.Array
  rounds: jax.Array
  without: jax.Array


def _in_elements(k, step):
  """k minus the step."""
  return k - step


def _in_shares(k, step):
  """k times exp(-step), so log k minus the step."""
  return k * jnp.exp(-step)


def _descent(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    slope_of: Callable[[CostSlope], jax.Array],
    stuck_rounds: int | None = None,
    less: Callable[[jax.Array, jax.Array], jax.Array] = _in_elements,
    width: float | None = None,
) -> KController:
  """k_{m+1} = P_K(k_m - delta_m slope_of(CostSlope)), as a KController.

  Args:
    k_init, k_min, k_max, stuck_rounds: see `sign_descent`.
    slope_of: what delta_m is multiplied with.
    less: (k, step) -> k minus the step, on the scale of the descent.
    width: B of delta_m on this scale; None: k_max - k_min.
  """
  if width is None:
    width = k_max - k_min

  def propose(state):
    delta = _step_length(width, state.rounds)
    return _propose(state.k, less(state.k, delta / 2.0), k_min), state

  def init(key):
    del key
    k = jnp.float32(k_init)
    return propose(DescentState(k, jnp.int32(0), jnp.int32(0)))

  def update(key, observed, state):
    del key
    slope = cost_slope(observed)
    without, stuck = _count_without(slope.valid, state.without, stuck_rounds)
    towards = jnp.where(stuck, -1.0, slope_of(slope))
    delta = _step_length(width, state.rounds)
    k = jnp.clip(less(state.k, delta * towards), k_min, k_max)
    return propose(DescentState(k, state.rounds + 1, without))

  return KController(init, update, observes=True, probes=True)


def sign_descent(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    stuck_rounds: int | None = None,
) -> KController:
  """Descent on k by the sign of the estimated slope of the cost.

  k_{m+1} = P_K(k_m - delta_m s_m) with delta_m = B / sqrt(2 m). A round
  without a usable sign leaves k where it is and still counts for m.

  The probe is k' = k - delta / 2 with the delta of the same round. The paper
  leaves its bounds open: here k' is at least 1 and k_min / 10, and at most
  k - 1.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.
    stuck_rounds: after so many rounds in a row without a sign k rises by
      delta_m, because with more elements the losses may fall. None: k stays, as
      in the paper.

  Returns:
    A controller that probes.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 2.
  """
  sign_of = lambda slope: slope.sign
  return _descent(k_init, k_min, k_max, sign_of, stuck_rounds)


def value_descent(
    k_init: float | jax.Array, k_min: float, k_max: float
) -> KController:
  """Descent on k by the value of the estimated slope of the cost.

  Like `sign_descent`, with the slope itself (time per element) in place of its
  sign: k_{m+1} = P_K(k_m - delta_m slope_m), delta_m = B / sqrt(2 m). So the
  step of k depends on the unit of time and on how steep the cost is. A round
  without a usable slope leaves k where it is and still counts for m.

  The probe is k' = k - delta / 2, as with the sign.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.

  Returns:
    A controller that probes.

  Source: Han, Wang, Leung, ICDCS 2020, the value-based descent of the
  experiments.
  """
  value_of = lambda slope: slope.value
  return _descent(k_init, k_min, k_max, value_of)


def sign_log(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    stuck_rounds: int | None = None,
) -> KController:
  """Descent on log k by the sign of the estimated slope of the cost.

  `sign_descent` with log k in place of k: log k moves by delta_m = B / sqrt(2
  m), where B = log(k_max / k_min). So a step is a share of k. The probe is k' =
  k exp(-delta / 2), with the bounds of `sign_descent`.

  The paper's bound of the regret holds with this B, and with G a bound of the
  slope in log k, if the cost is convex in log k. As with `sign_descent`, the
  cost of a single round credits a large k with what earlier rounds left.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.
    stuck_rounds: see `sign_descent`.

  Returns:
    A controller that probes.

  Source: Alg. 2 of Han, Wang, Leung, ICDCS 2020, on another scale.
  """
  sign_of = lambda slope: slope.sign
  width = math.log(k_max / k_min)  # B
  return _descent(
      k_init, k_min, k_max, sign_of, stuck_rounds, _in_shares, width
  )


class IntervalState(NamedTuple):
  """State of `sign_interval`.

  Attributes:
    k: [] f32.
    k_low, k_high: [] f32, the current instance's interval.
    rounds: [] i32, rounds done in this instance, m - m0.
    without: [] i32, rounds in a row without a sign.
    previous_rounds: [] i32, rounds of the previous instance.
    window_low, window_high: [] f32, range of k in the current window; k_max
      and k_min before its first update, so that any k replaces them.
    window_count: [] i32, updates in the current window.
  """

  k: jax.Array
  k_low: jax.Array
  k_high: jax.Array
  rounds: jax.Array
  without: jax.Array
  previous_rounds: jax.Array
  window_low: jax.Array
  window_high: jax.Array
  window_count: jax.Array


def sign_interval(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    growth: float = 1.5,
    window: int = 20,
    stuck_rounds: int | None = None,
) -> KController:
  """Sign descent that begins again on smaller intervals as k settles.

  Every `window` updates there is a review. It widens the range of k over these
  updates by `growth`. The result becomes the new interval if it is at most
  sqrt(2) - 1 times as wide as the current one, and if this instance has lasted
  at least as many rounds as the previous one. Rounds without a usable sign
  count for the step length, but not for the window.

  The bounds of k' are those of `sign_descent`, with the whole interval's k_min.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.
    growth: alpha > 1.
    window: M_u, updates between reviews.
    stuck_rounds: see `sign_descent`; such a rise is an update.

  Returns:
    A controller that probes.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 3.
  """
  shrink = math.sqrt(2.0) - 1.0

  def step_length(state):  # delta_m = B / sqrt(2 (m - m0))
    return _step_length(state.k_high - state.k_low, state.rounds)

  def propose(state):
    k_probe = state.k - step_length(state) / 2.0
    return _propose(state.k, k_probe, k_min), state

  def init(key):
    del key
    return propose(IntervalState(
        k=jnp.float32(k_init),
        k_low=jnp.float32(k_min),
        k_high=jnp.float32(k_max),
        rounds=jnp.int32(0),
        without=jnp.int32(0),
        previous_rounds=jnp.int32(0),
        window_low=jnp.float32(k_max),
        window_high=jnp.float32(k_min),
        window_count=jnp.int32(0),
    ))

  def update(key, observed, state):
    del key
    # Alg. 2 on the current interval.
    slope = cost_slope(observed)
    without, stuck = _count_without(slope.valid, state.without, stuck_rounds)
    sign = jnp.where(stuck, -1.0, slope.sign)
    k = state.k - step_length(state) * sign
    k = jnp.clip(k, state.k_low, state.k_high)
    rounds = state.rounds + 1

    # Alg. 3: the window collects every k that came from a sign.
    moves = slope.valid | stuck
    low = jnp.where(moves, jnp.minimum(state.window_low, k), state.window_low)
    high = jnp.where(
        moves, jnp.maximum(state.window_high, k), state.window_high
    )
    count = state.window_count + moves.astype(jnp.int32)

    # When it is full, its range, widened by alpha, may become the interval.
    review = count == window
    new_low = jnp.maximum(low / growth, k_min)
    new_high = jnp.minimum(high * growth, k_max)
    new_width = new_high - new_low
    restart = (
        review
        & (new_width > 0)
        & (new_width <= shrink * (state.k_high - state.k_low))
        & (rounds >= state.previous_rounds)
    )
    return propose(IntervalState(
        k=k,
        k_low=jnp.where(restart, new_low, state.k_low),
        k_high=jnp.where(restart, new_high, state.k_high),
        rounds=jnp.where(restart, 0, rounds),
        without=without,
        previous_rounds=jnp.where(restart, rounds, state.previous_rounds),
        window_low=jnp.where(review, k_max, low),
        window_high=jnp.where(review, k_min, high),
        window_count=jnp.where(review, 0, count),
    ))

  return KController(init, update, observes=True, probes=True)


RULES = {
    "sign": Rule(
        lambda k, k_min, k_max, settings: sign_descent(
            k, k_min, k_max, settings.stuck_rounds
        )
    ),
    "sign_log": Rule(
        lambda k, k_min, k_max, settings: sign_log(
            k, k_min, k_max, settings.stuck_rounds
        )
    ),
    "sign_interval": Rule(
        lambda k, k_min, k_max, settings: sign_interval(
            k, k_min, k_max, stuck_rounds=settings.stuck_rounds
        )
    ),
    "value": Rule(
        lambda k, k_min, k_max, settings: value_descent(k, k_min, k_max)
    ),
}
