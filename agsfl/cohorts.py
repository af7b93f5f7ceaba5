"""The rows of a cohort: what a state has of each client that takes part."""

import jax
import jax.numpy as jnp

from agsfl.data.federated import ClientData
from agsfl.for_each_client import AXIS
from agsfl.types import Cohort, PyTree, RoundState


def numbers_of(data: ClientData, cohort: Cohort | None) -> jax.Array:
  """[n] i32, the numbers of the clients whose data these are."""
  if cohort is None:
    return jnp.arange(len(data.counts), dtype=jnp.int32)
  return cohort.clients


def axes_of(state: RoundState, specs: PyTree) -> list[int | None]:
  """The axis of clients of each array of a state, None if it has none."""
  axes: list[int | None] = []
  jax.tree.map(
      lambda x, spec: axes.append(spec.index(AXIS) if AXIS in spec else None),
      state,
      specs,
  )
  return axes


def take(state: RoundState, specs: PyTree, clients: jax.Array) -> RoundState:
  """The state of a cohort alone.

  Args:
    state: of all clients.
    specs: which of its arrays have an axis of clients, see `devices.specs_of`.
    clients: [n] i32; a number >= N gives zeros.

  Returns:
    The state, with n rows in place of N.
  """

  def of_cohort(x, spec):
    if AXIS not in spec:
      return x
    return jnp.take(x, clients, spec.index(AXIS), mode="fill", fill_value=0)

  return jax.tree.map(of_cohort, state, specs)


def put(
    state: RoundState, specs: PyTree, clients: jax.Array, cohort: RoundState
) -> RoundState:
  """The inverse of `take`, after a round of the cohort.

  Args:
    state: of all clients, before the round.
    specs: see `take`.
    clients: [n] i32, ascending; a number >= N is left out.
    cohort: the state of the cohort.

  Returns:
    The state of all clients.
  """

  def of_all(x, own, spec):
    if AXIS not in spec:
      return own
    places = (slice(None),) * spec.index(AXIS) + (clients,)
    return x.at[places].set(
        own, mode="drop", indices_are_sorted=True, unique_indices=True
    )

  return jax.tree.map(of_all, state, cohort, specs)
