"""A rule that weighs the time of messages against the lag of what waits."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl.controllers.rule import Rule
from agsfl.types import KController, KProposal


class BalanceState(NamedTuple):
  """State of `balance`; all [].

  Attributes:
    k: f32.
    rounds: i32, rounds done.
  """

  k: jax.Array
  rounds: jax.Array


def balance(
    k_init: float | jax.Array,
    k_min: float,
    k_max: float,
    num_rounds: int,
    budget: float | None = None,
) -> KController:
  """Weighs the time that messages take against the lag of what waits.

  What clients have not sent yet is progress that the weights do not show. It is
  sent later, whatever k is. So k does not decide how much a round gains, but
  how far the weights lag behind: d(k) rounds, about C / k. In a time T there
  are T / theta(k) rounds, and the weights are where they would be without any
  lag after

      T / theta(k) - d(k)   rounds.

  Let epsilon(k) = k theta'(k) / theta(k), the share of a round's time that
  grows with k. Let M = T / theta(k), the rounds of the whole run: those done
  and those for which there is time. The best constant k is where

      epsilon(k) M = d(k).

  Both sides can be measured in one round: d is `Observation.lag`, and epsilon
  is 1 - theta(0) / theta(k), as time is a constant plus a multiple of k. The
  rule:

      k <- P(k sqrt(d / (epsilon M))),   P onto [k_min, k_max].

  For small epsilon it is a step of Newton's method on the logarithms. It has no
  constant to choose, takes no samples and tries no second k. It does not depend
  on the unit of time. If D, k and the interval are scaled together while d and
  epsilon stay the same, its path is scaled too.

  What is proved, for d = C / k and theta(k) = c + g k: the condition is

      g T (k / theta(k))^2 = C,

  whose left side rises with k from 0 to T / g. So there is one best k if
  T > g C; if not, it is k_max. The rule is then k <- sqrt(C / (g T)) theta(k).
  This is a line in k whose slope is epsilon of the best k, less than 1, so it
  leads there from any k.

  What is not proved: that the loss depends only on rounds and lag. This is a
  model for small learning rates. A round of lag costs less than a round where
  gradients are larger at the weights that lag behind. It costs more where what
  waits is too old to be of use.

  The sign rules learn from the fall of the loss in single rounds. There a
  larger k is credited with what earlier rounds left. If a single round's fall
  grows as k^rho, they settle where epsilon = rho, at any T. In the model the
  best epsilon falls with T, as 1 / sqrt(T).

  Args:
    k_init: k_1, elements; its effect is gone after a few rounds.
    k_min, k_max: the interval, elements.
    num_rounds: rounds of the run.
    budget: T, in the unit of `Observation.time`, if the run ends after it.
      None: M is num_rounds, and T the time that they take with the k found.

  Returns:
    A controller that measures the lag.

  >>> from agsfl.types import Observation
  >>> controller = balance(1000.0, 10.0, 1e6, num_rounds=200)
  >>> _, state = controller.init(jax.random.key(0))
  >>> seen = dict(k=1000, k_probe=1000, time=1.25, time_probe=1.25,
  ...             loss=1, fall=0, fall_probe=0,
  ...             time_silent=1.0, elapsed=1.25, lag=5.0)
  >>> seen = Observation(**{name: jnp.float32(x) for name, x in seen.items()})
  >>> proposal, _ = controller.update(jax.random.key(1), seen, state)
  >>> round(float(proposal.k))  # epsilon M = 40
  354
  """

  def propose(state):
    return KProposal(state.k, state.k), state

  def init(key):
    del key
    return propose(BalanceState(jnp.float32(k_init), jnp.int32(0)))

  def update(key, observed, state):
    del key
    time, silent, lag = observed.time, observed.time_silent, observed.lag
    seen = jnp.stack((time, silent, observed.elapsed, lag))
    is_usable = jnp.all(jnp.isfinite(seen)) & (time > 0) & (lag >= 0)
    time = jnp.where(is_usable, time, 1.0)
    rounds = state.rounds + 1

    # M: the rounds that were, and those for which there is time.
    total = jnp.float32(num_rounds)
    if budget is not None:
      left = jnp.maximum(budget - observed.elapsed, 0.0) / time
      total = jnp.minimum(total, rounds.astype(jnp.float32) + left)

    # epsilon M. Messages that take no time may be of any length.
    cost = (1.0 - jnp.where(is_usable, silent, 0.0) / time) * total
    lag = jnp.where(is_usable, lag, 0.0)
    ratio = lag / jnp.where(cost > 0, cost, 1.0)
    k = jnp.clip(state.k * jnp.sqrt(ratio), k_min, k_max)
    k = jnp.where(cost > 0, k, k_max)
    k = jnp.where(is_usable, k, state.k)
    return propose(BalanceState(k, rounds))

  return KController(
      init, update, observes=False, probes=False, measures_lag=True
  )


RULES = {
    "balance": Rule(
        lambda k, k_min, k_max, settings: balance(
            k, k_min, k_max, settings.num_rounds, settings.budget
        ),
        uses_horizon=True,
        uses_budget=True,
    ),
}
