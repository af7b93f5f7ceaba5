"""How k moves from round to round: the rules, as (init, update) pairs."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.controllers.cost import cost_slope
from agsfl.types import KController, KProposal


def fixed(k: float) -> KController:
  """The same k in every round; nothing is measured."""
  proposal = lambda: KProposal(jnp.float32(k), jnp.float32(k))

  def init(key):
    del key
    return proposal(), ()

  def update(key, observed, state):
    del key, observed
    return proposal(), state

  return KController(init, update, observes=False, probes=False)


def _count_without(valid, without, stuck_rounds):
  """Rounds in a row without a slope, and whether k is stuck by now.

  Args:
    valid: [] bool, whether this round has a slope.
    without: [] i32, rounds in a row before it that had none.
    stuck_rounds: so many are too many and counting begins anew; None: never.

  Returns:
    (the new `without`, stuck [] bool).
  """
  without = jnp.where(valid, 0, without + 1)
  if stuck_rounds is None:
    return without, jnp.bool_(False)
  stuck = without >= stuck_rounds
  return jnp.where(stuck, 0, without), stuck


def _propose(k, step_length, k_min):
  """k beside its probe k' = k - delta / 2.

  The probe stays one element below k and above a tenth of k_min, as in the
  authors' code; the paper leaves those ends open.
  """
  floor = max(1.0, 0.1 * k_min)
  return KProposal(k, jnp.clip(k - step_length / 2.0, floor, k - 1.0))


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


def _descent(k_init, k_min, k_max, slope_of, stuck_rounds=None):
  """k_{m+1} = P_K(k_m - delta_m slope_of(CostSlope)), as a KController."""
  width = k_max - k_min  # B

  def step_length(rounds):  # delta_m, m = rounds + 1
    return width / jnp.sqrt(2.0 * (rounds + 1.0))

  def init(key):
    del key
    state = DescentState(jnp.float32(k_init), jnp.int32(0), jnp.int32(0))
    return _propose(state.k, step_length(state.rounds), k_min), state

  def update(key, observed, state):
    del key
    slope = cost_slope(observed)
    without, stuck = _count_without(slope.valid, state.without, stuck_rounds)
    towards = jnp.where(stuck, -1.0, slope_of(slope))
    k = jnp.clip(state.k - step_length(state.rounds) * towards, k_min, k_max)
    state = DescentState(k, state.rounds + 1, without)
    return _propose(k, step_length(state.rounds), k_min), state

  return KController(init, update, observes=True, probes=True)


def sign_descent(
    k_init: float,
    k_min: float,
    k_max: float,
    stuck_rounds: int | None = None,
) -> KController:
  """Descent on k by the sign of the estimated slope of the cost.

  k_{m+1} = P_K(k_m - delta_m s_m) with delta_m = B / sqrt(2 m). A round
  without a usable sign leaves k where it is and still counts for m.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.
    stuck_rounds: the last of so many rounds in a row without a sign raises k
      by delta_m, where the losses perhaps do fall. None: k stays, as in the
      paper; in the authors' code it is the twelfth such round.

  Returns:
    A controller that probes.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 2.
  """
  sign_of = lambda slope: slope.sign
  return _descent(k_init, k_min, k_max, sign_of, stuck_rounds)


def value_descent(k_init: float, k_min: float, k_max: float) -> KController:
  """Descent on k by the value of the estimated slope of the cost.

  `sign_descent` with the slope itself, time per element, in the place of its
  sign: k_{m+1} = P_K(k_m - delta_m slope_m), delta_m = B / sqrt(2 m). So how
  far k moves depends on the unit of time and on how steep the cost is, which
  the sign leaves out. A round without a usable slope leaves k where it is and
  still counts for m.

  Args:
    k_init: k_1, elements.
    k_min, k_max: the interval K, elements; 2 <= k_min <= k_max.

  Returns:
    A controller that probes.

  Source: Han, Wang, Leung, ICDCS 2020, the value-based descent of the
  experiments.
  """
  value_of = lambda slope: jnp.where(slope.valid, slope.value, 0.0)
  return _descent(k_init, k_min, k_max, value_of)


class IntervalState(NamedTuple):
  """State of `sign_interval`.

  Attributes:
    k: [] f32.
    k_low, k_high: [] f32, the current instance's interval.
    rounds: [] i32, rounds done in this instance, m - m0.
    without: [] i32, rounds in a row without a sign.
    previous_rounds: [] i32, length of the instance before it.
    window_low, window_high: [] f32, range of k in the current window.
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
    k_init: float,
    k_min: float,
    k_max: float,
    growth: float = 1.5,
    window: int = 20,
    stuck_rounds: int | None = None,
) -> KController:
  """Sign descent that begins anew on smaller intervals as k settles.

  After `window` updates the range of k over them, widened by `growth`, is
  taken as a new interval if it is at most sqrt(2) - 1 times as wide as the
  current one and this instance lasted as many rounds as the one before it.
  Rounds without a usable sign count for the step length, not for the window.

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
    width = state.k_high - state.k_low
    return width / jnp.sqrt(2.0 * (state.rounds + 1.0))

  def init(key):
    del key
    state = IntervalState(
        k=jnp.float32(k_init),
        k_low=jnp.float32(k_min),
        k_high=jnp.float32(k_max),
        rounds=jnp.int32(0),
        without=jnp.int32(0),
        previous_rounds=jnp.int32(0),
        window_low=jnp.float32(jnp.inf),
        window_high=jnp.float32(-jnp.inf),
        window_count=jnp.int32(0),
    )
    return _propose(state.k, step_length(state), k_min), state

  def update(key, observed, state):
    del key
    slope = cost_slope(observed)
    without, stuck = _count_without(slope.valid, state.without, stuck_rounds)
    sign = jnp.where(stuck, -1.0, slope.sign)
    moves = slope.valid | stuck
    k = state.k - step_length(state) * sign
    k = jnp.clip(k, state.k_low, state.k_high)
    rounds = state.rounds + 1
    low = jnp.where(moves, jnp.minimum(state.window_low, k), state.window_low)
    high = jnp.where(
        moves, jnp.maximum(state.window_high, k), state.window_high
    )
    count = state.window_count + moves
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
    state = IntervalState(
        k=k,
        k_low=jnp.where(restart, new_low, state.k_low),
        k_high=jnp.where(restart, new_high, state.k_high),
        rounds=jnp.where(restart, 0, rounds),
        without=without,
        previous_rounds=jnp.where(restart, rounds, state.previous_rounds),
        window_low=jnp.where(review, jnp.inf, low),
        window_high=jnp.where(review, -jnp.inf, high),
        window_count=jnp.where(review, 0, count),
    )
    return _propose(k, step_length(state), k_min), state

  return KController(init, update, observes=True, probes=True)


class ReplayState(NamedTuple):
  """State of `replay`: [] i32, where in the sequence the next round stands."""

  index: jax.Array


def replay(ks: Sequence[float]) -> KController:
  """Plays a recorded sequence of k; nothing is measured.

  Args:
    ks: [T] elements, k of rounds 1..T; each later round plays the last.

  Returns:
    A controller that neither observes nor probes.

  Raises:
    ValueError: `ks` is not a sequence of at least one number, or one of its
      numbers is not finite and at least 1.

  Source: Han, Wang, Leung, ICDCS 2020, the experiments that use the k learned
  at one communication time at another.
  """
  ks = np.asarray(ks, np.float32)
  if ks.ndim != 1 or not ks.size:
    raise ValueError(f"ks must be a sequence of numbers, has shape {ks.shape}")
  wrong = np.flatnonzero(~(np.isfinite(ks) & (ks >= 1)))
  if wrong.size:
    at = wrong[0]
    raise ValueError(f"ks[{at}] must be finite and at least 1, is {ks[at]}")

  def propose(index):
    k = jnp.asarray(ks)[index]
    return KProposal(k, k), ReplayState(index)

  def init(key):
    del key
    return propose(jnp.int32(0))

  def update(key, observed, state):
    del key, observed
    return propose(jnp.minimum(state.index + 1, len(ks) - 1))

  return KController(init, update, observes=False, probes=False)
