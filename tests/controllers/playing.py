"""Rounds made up for controllers, and how to play them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.types import Observation

# Signs are -1, 0 and 1; these two stand for a round without one.
STAYED = 2  # The loss did not fall.
BROKEN = 3  # The loss is NaN.


def of_losses(
    k, k_probe, time, time_probe, loss_before, loss_after, loss_probe
):
  """An Observation of losses at w(m-1), w(m) and w'(m)."""
  with np.errstate(invalid="ignore"):  # losses may be infinite
    return Observation(
        k=k,
        k_probe=k_probe,
        time=time,
        time_probe=time_probe,
        loss=loss_before,
        fall=loss_before - loss_after,
        fall_probe=loss_before - loss_probe,
        time_silent=0.5 * time,
        elapsed=100.0 + time,
        lag=20.0 * (time - 3.0),
    )


def observe(k, k_probe, sign):
  """A round at k and k_probe whose estimated slope has this sign.

  Either loss falls by 1, so k' costs its own time, 4, and k costs 4 + sign.
  A round without a sign keeps the longer time: a controller that takes it for
  an estimate moves. Messages take half of the time; the lag is 20 rounds for
  each unit of time above 3.
  """
  sign = jnp.float32(sign)
  loss_after = jnp.select(
      [sign == STAYED, sign == BROKEN], jnp.float32([2.0, jnp.nan]), 1.0
  )
  loss_before, loss_probe = jnp.float32(2.0), jnp.float32(1.0)
  time, time_probe = 4.0 + sign, jnp.float32(4.0)
  return of_losses(
      k, k_probe, time, time_probe, loss_before, loss_after, loss_probe
  )


def rollout(controller, observed_of, inputs, key):
  """Plays a round per input in a scan; observed_of(proposal, input) is seen.

  A controller that needs no Observation is shown None.

  Returns:
    (first, after): (KProposal, state) for round 1, and [T, ...] after each.
  """

  def step(carry, x):
    (proposal, state), m = carry
    key_m = jax.random.fold_in(key, m)
    needs = controller.needs_observation
    observed = observed_of(proposal, x) if needs else None
    after = controller.update(key_m, observed, state)
    return (after, m + 1), after

  first = controller.init(jax.random.fold_in(key, 0))
  return first, jax.lax.scan(step, (first, 1), inputs)[1]


def crafted(proposal, sign):
  return observe(*proposal, sign)


@functools.cache
def player(rule, *settings):
  key = jax.random.key(0)
  return jax.jit(lambda s: rollout(rule(*settings), crafted, s, key))


def play(rule, settings, signs):
  """([T + 1] k, [T + 1] k_probe, [T] states after each round), in NumPy."""
  first, after = player(rule, *settings)(jnp.asarray(signs, jnp.int32))
  joined = [np.append(a, b) for a, b in zip(first[0], after[0], strict=True)]
  return *joined, jax.tree.map(np.asarray, after[1])
