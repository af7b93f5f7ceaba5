"""Rules whose k is known before the run."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.controllers.rule import Rule
from agsfl.errors import refuse
from agsfl.types import KController, KProposal


class FixedState(NamedTuple):
  """State of `fixed`.

  Attributes:
    k: [] f32, elements.
  """

  k: jax.Array


def fixed(k: float | jax.Array) -> KController:
  """The same k in every round; nothing is measured.

  Args:
    k: elements.

  Returns:
    A controller that neither observes nor probes.
  """

  def init(key):
    del key
    state = FixedState(jnp.float32(k))
    return KProposal(state.k, state.k), state

  def update(key, observed, state):
    del key, observed
    return KProposal(state.k, state.k), state

  return KController(init, update, observes=False, probes=False)


class ReplayState(NamedTuple):
  """State of `replay`.

  Attributes:
    ks: [T] f32, elements, the sequence.
    place: [] i32, the index of the next round's k.
  """

  ks: jax.Array
  place: jax.Array


def replay(ks: Sequence[float]) -> KController:
  """Plays a recorded sequence of k; nothing is measured.

  Args:
    ks: [T] elements, k of rounds 1..T; later rounds play the last one.

  Returns:
    A controller that neither observes nor probes.

  Raises:
    ConfigError: `ks` is not a sequence of at least one number, or one of its
      numbers is below 1 or not finite.

  Source: Han, Wang, Leung, ICDCS 2020, the experiments that learn k at one
  communication time and use it at another.
  """
  sequence = np.asarray(ks, np.float32)
  if sequence.ndim != 1 or not sequence.size:
    refuse(
        "replay", f"k must be a sequence of numbers, has shape {sequence.shape}"
    )
  wrong = np.flatnonzero(~(np.isfinite(sequence) & (sequence >= 1)))
  if wrong.size:
    at = wrong[0]
    refuse(
        "replay", f"k of round {at + 1} must be at least 1, is {sequence[at]}"
    )

  def propose(state):
    k = state.ks[state.place]
    return KProposal(k, k), state

  def init(key):
    del key
    return propose(ReplayState(jnp.asarray(sequence), jnp.int32(0)))

  def update(key, observed, state):
    del key, observed
    last = state.ks.shape[0] - 1
    return propose(state._replace(place=jnp.minimum(state.place + 1, last)))

  return KController(init, update, observes=False, probes=False)


RULES = {
    "fixed": Rule(lambda k, k_min, k_max, settings: fixed(k), learns=False),
    "replay": Rule(
        lambda k, k_min, k_max, settings: replay(settings.recorded_ks),
        learns=False,
    ),
}
