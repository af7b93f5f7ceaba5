"""All clients of a round: from the weights to their accumulated gradients."""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from agsfl.cohorts import numbers_of
from agsfl.data.federated import ClientData
from agsfl.feedback import Feedback
from agsfl.for_each_client import ForEachClient
from agsfl.training.client import Client, LocalResult
from agsfl.types import Cohort, PyTree, RoundState


class Accumulate(Protocol):
  """What clients compute before they send."""

  def __call__(
      self,
      data: ClientData,
      state: RoundState,
      cohort: Cohort | None,
      eta: jax.Array,
      /,
  ) -> tuple[jax.Array, LocalResult]:
    """Returns all a_i [n, D], and the rest of the results, stacked.

    Args:
      data, state: of the cohort.
      cohort: who takes part; None for all clients.
      eta: [] or [n] f32, the clients' learning rate.
    """


class _Shared(NamedTuple):
  """What all clients have."""

  key: jax.Array
  params: jax.Array
  round_index: jax.Array
  aggregate: jax.Array | None
  history: jax.Array | None


class _Own(NamedTuple):
  """What each client has, with an axis of clients.

  `residual` comes first: `one_by_one` writes the result into its memory. So the
  preview reads a copy.
  """

  residual: PyTree
  client: jax.Array
  start: jax.Array
  samples: jax.Array
  eta: jax.Array
  previewed: jax.Array | None
  last: jax.Array | None
  began: jax.Array | None


def batch_key(key: jax.Array, round_index: jax.Array) -> jax.Array:
  """The key of a round's minibatches; that of a client is folded in later."""
  return jax.random.split(jax.random.fold_in(key, round_index), 4)[0]


def build_accumulate(
    local_result: Client,
    feedback: Feedback,
    over_clients: ForEachClient,
) -> Accumulate:
  """The gradients of all clients, added to what they have not sent.

  Args:
    local_result: the work of one client.
    feedback: what a client does with what it has not sent.
    over_clients: how to run one client's work for all clients.

  Returns:
    The function.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1.
  """

  def one(shared, data, own):
    m, params = shared.round_index, shared.params
    if own.began is not None:
      # It took its weights after an earlier round.
      m = own.began + 1
      params = shared.history[own.began % len(shared.history)]
    key = batch_key(shared.key, m)

    # What it has not sent has waited, and shows where it would lead.
    waited = lambda residual: (
        residual if own.last is None
        else feedback.waited(residual, shared.round_index - own.last)
    )
    if own.previewed is not None:
      params = feedback.start(params, waited(own.previewed), own.eta)
    local = local_result(
        jax.random.fold_in(key, own.client),
        params, data, own.start, own.samples, own.eta,
    )
    gradient = jnp.where(own.samples > 0, local.gradient, 0.0)
    if feedback.stateless:
      accumulated = gradient - shared.aggregate
    elif feedback.sends_all:
      accumulated = gradient
    else:
      accumulated = waited(own.residual) + gradient
    # The rest is small; the gradient itself is in the sum.
    rest = local._replace(gradient=jnp.zeros(0, jnp.float32))
    return accumulated, rest

  def accumulate(data, state, cohort, eta):
    flights = None if cohort is None else cohort.flights
    count = data.counts
    if flights is not None:
      # Weights that are no longer stored give no gradient.
      count = jnp.where(flights.trust > 0, count, 0)
    shared = _Shared(
        key=state.key,
        params=state.params,
        round_index=state.round_index + 1,
        aggregate=state.feedback if feedback.stateless else None,
        history=None if flights is None else state.attendance.history,
    )
    own = _Own(
        residual=state.residual,
        client=numbers_of(data, cohort),
        start=data.starts,
        samples=count,
        eta=jnp.broadcast_to(eta, count.shape),
        previewed=state.residual
        if feedback.preview and feedback.has_residual else None,
        last=state.feedback
        if feedback.decay < 1 and feedback.has_residual else None,
        began=None if flights is None else flights.began,
    )
    return over_clients(one, (None, None, 0))(shared, data.shared, own)

  return accumulate
