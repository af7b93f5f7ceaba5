"""One round of federated learning, composed of the other files' parts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agsfl.controllers.cost import add_time, cost_slope, round_time
from agsfl.data.federated import ClientData
from agsfl.over_clients import map_clients, update_clients
from agsfl.sparsifiers import topk
from agsfl.training.client import LocalTraining, build_client
from agsfl.training.models import sample_losses
from agsfl.types import (
  KController,
  Model,
  Observation,
  RoundInfo,
  RoundState,
  Sparsifier,
)


class Round(NamedTuple):
  """A simulation as two pure functions.

  Attributes:
    init: (root_key, num_clients) -> RoundState.
    step: (root_key, ClientData, RoundState) -> (RoundState, RoundInfo). Where
      clients are split over mesh axes, each device gives and gets its own, and
      all samples.
  """

  init: Callable[[jax.Array, int], RoundState]
  step: Callable[..., tuple[RoundState, RoundInfo]]


def build_round(
    model: Model,
    sparsifier: Sparsifier,
    controller: KController,
    *,
    server: optax.GradientTransformation,
    batch_size: int,
    comm_time: float,
    client_chunk: int | None,
    training: LocalTraining | None = None,
    axes: tuple[str, ...] = (),
) -> Round:
  """Composes a round of gradient sparsification.

  Every draw comes from the root key, the round and the client, so results do
  not depend on chunking, devices or where a run was resumed. A round whose
  gradients are not all finite selects with k = 0: nothing is sent, and
  `RoundInfo.finite` is False. Clients without samples take no part.

  Args:
    model: the network.
    sparsifier: what is sent.
    controller: how k moves.
    server: applies b to the weights; the paper's is plain SGD, `optax.sgd`.
    batch_size: samples per minibatch.
    comm_time: beta, see `cost.round_time`.
    client_chunk: see `map_clients`.
    training: what clients do between exchanges; None for one gradient.
    axes: mesh axes over which clients are split, the sparsifier's too; () for
      none.

  Returns:
    The round.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1 and Sec. IV.
  """
  local_result = build_client(model, batch_size, training)
  over_clients = lambda x: lax.psum(jnp.sum(x), axes)
  compute = 1.0 if training is None else float(training.steps)
  if controller.observes:
    compute += 1.0 / batch_size  # one more sample per client

  def theta(selection):
    return round_time(
        selection.volume_up,
        selection.volume_down,
        dim=model.dim,
        comm_time=comm_time,
        compute=compute,
    )

  def init(root_key, num_clients):
    key_model, key_controller = jax.random.split(
        jax.random.fold_in(root_key, 0)
    )
    params = model.init(key_model)
    proposal, controller_state = controller.init(key_controller)
    return RoundState(
        params=params,
        residual=jnp.zeros((num_clients, model.dim), params.dtype),
        sparsifier=sparsifier.init(num_clients, model.dim),
        server=server.init(params),
        controller=controller_state,
        proposal=proposal,
        round_index=jnp.int32(0),
        elapsed=jnp.float32(0.0),
        elapsed_rest=jnp.float32(0.0),
    )

  def accumulate_all(key, data, state):
    """Every client's accumulated gradient, and what else it computed."""

    def accumulate(residual, client, start, count):
      key_client = jax.random.fold_in(key, client)
      local = local_result(key_client, state.params, data, start, count)
      gradient = jnp.where(count > 0, local.gradient, 0.0)
      return residual + gradient, local._replace(gradient=None)  # a_i

    num_here = data.counts.shape[0]
    clients = num_here * lax.axis_index(axes) + jnp.arange(num_here)
    return update_clients(
        accumulate,
        state.residual,
        (clients, data.starts, data.counts),
        client_chunk,
    )

  def residuals(accumulated, selection):
    """What stays at each client."""

    def one(accumulated, of_client):
      result = sparsifier.split(accumulated, selection.mask, of_client)
      return result.residual, None

    return update_clients(
        one, accumulated, (selection.clients,), client_chunk
    )[0]

  def apply(state, selection):
    """The server's step: w(m), and the optimiser's state."""
    updates, server_state = server.update(
        selection.aggregate, state.server, state.params
    )
    return optax.apply_updates(state.params, updates), server_state

  def observe(weights, local, params, selections, moved):
    """Times and one-sample losses for k and k'."""

    def loss_at(params):
      logits = model.apply(params, local.image)
      return over_clients(weights * sample_losses(logits, local.label))

    selection, probe = selections[0], selections[-1]
    loss_after = loss_at(moved[0])
    return Observation(
        k=selection.k_up.astype(jnp.float32),
        k_probe=probe.k_up.astype(jnp.float32),
        time=theta(selection),
        time_probe=theta(probe),
        loss_before=loss_at(params),
        loss_after=loss_after,
        loss_probe=loss_at(moved[1]) if controller.probes else loss_after,
    )

  def step(root_key, data: ClientData, state: RoundState):
    round_index = state.round_index + 1
    key = jax.random.fold_in(root_key, round_index)
    key_batch, key_select, key_rounding, key_update = jax.random.split(key, 4)
    accumulated, local = accumulate_all(key_batch, data, state)
    weights = data.counts / over_clients(data.counts)  # C_i / C
    finite = map_clients(
        lambda a: jnp.all(jnp.isfinite(a)), (accumulated,), client_chunk
    )
    all_finite = over_clients(~finite) == 0
    uniform = jax.random.uniform(key_rounding)

    def select(k):
      k = jnp.where(all_finite, topk.stochastic_round(k, uniform), 0)
      return sparsifier.select(
          key_select, accumulated, weights, k, state.sparsifier
      )

    ks = [state.proposal.k]
    if controller.probes:
      ks.append(state.proposal.k_probe)
    # vmap over k: a sparsifier can share work between the two.
    chosen = jax.vmap(select)(jnp.stack(ks))
    chosen = [jax.tree.map(lambda x, i=i: x[i], chosen) for i in range(len(ks))]
    selections = [selection for selection, _ in chosen]
    moved = [apply(state, selection) for selection in selections]
    sign, observed = jnp.float32(jnp.nan), None
    if controller.observes:
      observed = observe(
          weights, local, state.params, selections, [w for w, _ in moved]
      )
    if controller.probes:
      slope = cost_slope(observed)
      sign = jnp.where(slope.valid, slope.sign, jnp.nan)
    proposal, controller_state = controller.update(
        key_update, observed, state.controller
    )
    selection, sparsifier_state = chosen[0]
    params, server_state = moved[0]
    elapsed, rest = add_time(
        state.elapsed, state.elapsed_rest, theta(selection)
    )
    new_state = RoundState(
        params=params,
        residual=residuals(accumulated, selection),
        sparsifier=sparsifier_state,
        server=server_state,
        controller=controller_state,
        proposal=proposal,
        round_index=round_index,
        elapsed=elapsed,
        elapsed_rest=rest,
    )
    info = RoundInfo(
        round_index=round_index,
        elapsed=elapsed,
        k=state.proposal.k,
        k_probe=state.proposal.k_probe,
        k_up=selection.k_up,
        k_down=selection.k_down,
        minibatch_loss=over_clients(weights * local.loss),
        sign=sign,
        contributed=selection.contributed,
        finite=all_finite,
    )
    return new_state, info

  return Round(init, step)
