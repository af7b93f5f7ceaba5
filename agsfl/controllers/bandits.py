"""Rules that learn k only from the reward of the k that they played.

"Differences from the authors' code" in experiments/paper/README.md lists how
the rules of that code differ.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.controllers.rule import Rule
from agsfl.errors import require
from agsfl.types import KController, KProposal

# Rewards are divided by this as long as none was above 0.
_TINY = float(np.finfo(np.float32).tiny)


def _fall_per_time(observed):
  """[] f32, the fall of the one-sample loss per unit of time.

  It is negative if the loss rose, and 0 if the fall is not finite.
  """
  usable = jnp.isfinite(observed.fall) & (observed.time != 0)
  rate = observed.fall / jnp.where(usable, observed.time, 1.0)
  return jnp.where(usable & jnp.isfinite(rate), rate, 0.0)


class Exp3State(NamedTuple):
  """State of `exp3`, for K arms.

  Attributes:
    log_weights: [K] f32, log w minus its maximum.
    arm: [] i32, the arm of the next round.
    probability: [] f32, with which this arm was drawn.
    largest: [] f32, the largest fall of the loss per time so far; 0 if none.
  """

  log_weights: jax.Array
  arm: jax.Array
  probability: jax.Array
  largest: jax.Array


def probabilities(log_weights: jax.Array, gamma: float) -> jax.Array:
  """The probabilities with which EXP3 draws its next arm.

  Args:
    log_weights: [K] log w, up to a constant.
    gamma: the share of uniform exploration, 0..1.

  Returns:
    [K] f32, p = (1 - gamma) w / sum(w) + gamma / K.

  Source: Auer, Cesa-Bianchi, Freund, Schapire, SIAM J. Comput. 2002, EXP3.

  >>> probabilities(jnp.log(jnp.array([3.0, 1.0])), 0.5).tolist()
  [0.625, 0.375]
  """
  share = (1.0 - gamma) * jax.nn.softmax(log_weights)
  return share + gamma / len(log_weights)


def exp3(
    k_min: float, k_max: float, horizon: int, num_arms: int | None = None
) -> KController:
  """EXP3: exponential weights over a set of k, from the played k's reward.

  An arm is an integer k. The next arm is drawn with `probabilities`. The played
  arm i, with reward x in [0, 1], gets log w_i += gamma (x / p_i) / K, where

      gamma = min(1, sqrt(K ln K / ((e - 1) T))).

  If K ln K >= (e - 1) T, gamma is 1 and all arms stay equally likely. So with
  an arm for every k of a large model, a run of usual length learns nothing.

  EXP3 needs rewards in [0, 1]. The reward here is the fall of the one-sample
  loss per unit of time, cut to [0, 1] after a division by the largest such fall
  of the run so far. This round counts for the largest fall too. So the first
  fall has reward 1. If the loss rose, or is not finite, the reward is 0.

  Args:
    k_min, k_max: elements; arms lie from ceil(k_min) to floor(k_max).
    horizon: T, the rounds that gamma is meant for; more may follow.
    num_arms: K. The arms are spaced evenly over that range, halves rounded up;
      with K = 1 the first integer is the arm. None, or a K above the number of
      integers: every integer is an arm.

  Returns:
    A controller that observes and does not probe.

  Raises:
    ConfigError: no integer lies in [k_min, k_max].

  Source: Auer, Cesa-Bianchi, Freund, Schapire, "The nonstochastic multiarmed
  bandit problem", SIAM J. Comput. 2002, EXP3 and its tuning of gamma; Han,
  Wang, Leung, ICDCS 2020, compare with it.
  """
  low, span = math.ceil(k_min), math.floor(k_max) - math.ceil(k_min)
  allowed = f"at least {low}, the first whole k from k_min on"
  require(span >= 0, "k_max", k_max, allowed)
  count = span + 1 if num_arms is None else min(num_arms, span + 1)  # K
  # Integer arithmetic rounds every half up. Arms are at least 1 apart, so they
  # stay different.
  gaps = max(count - 1, 1)
  arms = low + (2 * np.arange(count) * span + gaps) // (2 * gaps)
  arms = arms.astype(np.float32)
  spread = count * math.log(count) / ((math.e - 1.0) * horizon)
  gamma = min(1.0, math.sqrt(spread))

  def play(key, log_weights, largest):
    p = probabilities(log_weights, gamma)
    # "low" draws have 23 bits, which makes ties among very many arms.
    arm = jax.random.categorical(key, jnp.log(p), mode="high")
    arm = arm.astype(jnp.int32)
    k = jnp.asarray(arms)[arm]
    return KProposal(k, k), Exp3State(log_weights, arm, p[arm], largest)

  def init(key):
    return play(key, jnp.zeros(count, jnp.float32), jnp.float32(0.0))

  def update(key, observed, state):
    rate = _fall_per_time(observed)
    largest = jnp.maximum(state.largest, rate)
    reward = jnp.clip(rate / jnp.maximum(largest, _TINY), 0.0, 1.0)
    gain = gamma * (reward / state.probability) / count
    log_weights = state.log_weights.at[state.arm].add(gain)
    # float32 is finest near 0. With the likely arms there, no small gain is
    # lost.
    return play(key, log_weights - jnp.max(log_weights), largest)

  return KController(init, update, observes=True, probes=False)


class BanditState(NamedTuple):
  """State of `bandit`, on the interval scaled to [-1, 1]; all [] f32.

  Attributes:
    x: the point around which it plays.
    u: -1 or 1, the side of the next round, which plays x + radius u.
    largest: the largest change of the loss per time so far, up or down; 0 if
      none.
  """

  x: jax.Array
  u: jax.Array
  largest: jax.Array


def bandit(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    horizon: int,
    radius: float | None = None,
    step: float | None = None,
) -> KController:
  """Gradient descent on k with a gradient estimated from one cost per round.

  K is scaled to [-1, 1]: k = (k_min + k_max) / 2 + x B / 2. A round plays
  y = x + delta u with u drawn from {-1, 1}, and its cost c gives

      x <- P(x - eta (c / delta) u),   P onto [-(1 - delta), 1 - delta],

  so y stays in [-1, 1]. In one dimension (c / delta) u is the estimate of the
  cost's slope in x, and `step` is eta, the step on that estimate. Flaxman,
  Kalai and McMahan write the product as one, x - nu c u: nu = eta / delta, with
  the defaults T^(-1/2), their order.

  The cost must be bounded. Here it is minus the fall of the one-sample loss
  per unit of time, divided by the largest absolute value of this fall in the
  run so far. This round counts for the largest value too, so the cost lies in
  [-1, 1]. A round whose losses are not finite costs 0 and does not change x.

  Args:
    k_init: elements; x_1 is the nearest point of P's interval to it.
    k_min, k_max: the interval K, elements.
    horizon: T, the rounds that the defaults are meant for.
    radius: delta > 0, in halves of B; values above 1 mean 1. None: T^(-1/4).
    step: eta, in halves of B. None: T^(-3/4).

  Returns:
    A controller that observes and does not probe.

  Source: Flaxman, Kalai, McMahan, "Online convex optimization in the bandit
  setting: gradient descent without a gradient", SODA 2005; Han, Wang, Leung,
  ICDCS 2020, compare with it.
  """
  centre, half = (k_min + k_max) / 2.0, (k_max - k_min) / 2.0
  radius = min(1.0, horizon**-0.25 if radius is None else radius)  # delta
  step = horizon**-0.75 if step is None else step  # eta
  reach = 1.0 - radius

  def play(key, x, largest):
    side = jax.random.bernoulli(key, jnp.float32(0.5))
    u = 2.0 * side.astype(jnp.float32) - 1.0
    # Rounding may bring an end of K beyond K.
    k = jnp.clip(centre + half * (x + radius * u), k_min, k_max)
    return KProposal(k, k), BanditState(x, u, largest)

  def init(key):
    x = (k_init - centre) / half if half else 0.0
    return play(key, jnp.clip(jnp.float32(x), -reach, reach), jnp.float32(0.0))

  def update(key, observed, state):
    rate = _fall_per_time(observed)
    largest = jnp.maximum(state.largest, jnp.abs(rate))
    cost = -rate / jnp.maximum(largest, _TINY)
    x = state.x - step / radius * cost * state.u
    return play(key, jnp.clip(x, -reach, reach), largest)

  return KController(init, update, observes=True, probes=False)


RULES = {
    "exp3": Rule(
        lambda k, k_min, k_max, settings: exp3(
            k_min, k_max, settings.num_rounds, settings.exp3_arms
        ),
        uses_horizon=True,
    ),
    "bandit": Rule(
        lambda k, k_min, k_max, settings: bandit(
            k,
            k_min,
            k_max,
            settings.num_rounds,
            radius=settings.bandit_radius,
            step=settings.bandit_step,
        ),
        uses_horizon=True,
    ),
}
