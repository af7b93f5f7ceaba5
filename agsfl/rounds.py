"""One round of federated learning, composed of the other files' parts."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl import topk
from agsfl.client import build_client
from agsfl.cost import cost_slope, round_time
from agsfl.data import ClientData
from agsfl.models import sample_losses
from agsfl.over_clients import map_clients
from agsfl.types import (
    KController,
    Model,
    Observation,
    PyTree,
    RoundInfo,
    RoundState,
    Sparsifier,
)

# Rounds per call of one program, by platform; where none is given, all that
# lie between two evaluations, which is not measured yet.
ROUNDS_PER_CALL = {"cpu": 1}


class Round(NamedTuple):
  """A simulation as two pure functions.

  Attributes:
    init: (root_key, num_clients) -> RoundState.
    step: (root_key, ClientData, RoundState) -> (RoundState, RoundInfo). Where
      clients are split over mesh axes, each device gives and gets its own.
  """

  init: Callable[[jax.Array, int], RoundState]
  step: Callable[..., tuple[RoundState, RoundInfo]]


def build_round(
    model: Model,
    sparsifier: Sparsifier,
    controller: KController,
    *,
    learning_rate: float,
    batch_size: int,
    comm_time: float,
    client_chunk: int | None,
    axes: tuple[str, ...] = (),
) -> Round:
  """Composes a round of gradient sparsification.

  Every draw comes from the root key, the round and the client, so results do
  not depend on chunking, devices or where a run was resumed. A round whose
  gradients are not all finite selects with k = 0: it changes no weight, and
  `RoundInfo.finite` is False. Clients without samples take no part.

  Args:
    model: the network.
    sparsifier: what is sent.
    controller: how k moves.
    learning_rate: eta.
    batch_size: samples per client and round.
    comm_time: beta, see `cost.round_time`.
    client_chunk: see `map_clients`.
    axes: mesh axes over which clients are split, the sparsifier's too; () for
      none.

  Returns:
    The round.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1 and Sec. IV.
  """
  local_result = build_client(model, batch_size)
  # Online learning evaluates one more sample per client.
  compute = 1.0 + (1.0 / batch_size if controller.probes else 0.0)

  def theta(selection):
    return round_time(
        selection.k_up,
        selection.k_down,
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
        controller=controller_state,
        proposal=proposal,
        round_index=jnp.int32(0),
        elapsed=jnp.float32(0.0),
    )

  def step(root_key, data: ClientData, state: RoundState):
    round_index = state.round_index + 1
    key = jax.random.fold_in(root_key, round_index)
    key_batch, key_select, key_rounding, key_update = jax.random.split(key, 4)

    def accumulate(client, residual, images, labels, count):
      key_client = jax.random.fold_in(key_batch, client)
      local = local_result(key_client, state.params, images, labels, count)
      gradient = jnp.where(count > 0, local.gradient, 0.0)
      accumulated = residual + gradient  # a_i
      finite = jnp.all(jnp.isfinite(accumulated))
      return accumulated, finite, local._replace(gradient=None)

    num_here = data.counts.shape[0]
    clients = num_here * lax.axis_index(axes) + jnp.arange(num_here)
    accumulated, finite, local = map_clients(
        accumulate,
        (clients, state.residual, data.images, data.labels, data.counts),
        client_chunk,
    )
    over_clients = lambda x: lax.psum(jnp.sum(x), axes)
    weights = data.counts / over_clients(data.counts)  # C_i / C
    all_finite = over_clients(~finite) == 0

    uniform = jax.random.uniform(key_rounding)

    def select(k):
      k = jnp.where(all_finite, topk.stochastic_round(k, uniform), 0)
      return sparsifier.select(
          key_select, accumulated, weights, k, state.sparsifier
      )

    def move(selection):
      return state.params - learning_rate * selection.aggregate

    def loss_at(params):
      logits = model.apply(params, local.image)
      return over_clients(weights * sample_losses(logits, local.label))

    ks = [state.proposal.k]
    if controller.probes:
      ks.append(state.proposal.k_probe)
    # vmap over k: a sparsifier can share work between the two.
    chosen = jax.vmap(select)(jnp.stack(ks))
    selection, sparsifier_state = jax.tree.map(lambda x: x[0], chosen)
    params = move(selection)
    time = theta(selection)
    sign = jnp.float32(jnp.nan)
    proposal, controller_state = state.proposal, state.controller
    if controller.probes:
      probe, _ = jax.tree.map(lambda x: x[1], chosen)
      observed = Observation(
          k=selection.k_down.astype(jnp.float32),
          k_probe=probe.k_down.astype(jnp.float32),
          time=time,
          time_probe=theta(probe),
          loss_before=loss_at(state.params),
          loss_after=loss_at(params),
          loss_probe=loss_at(move(probe)),
      )
      slope = cost_slope(observed)
      sign = jnp.where(slope.valid, slope.sign, jnp.nan)
      proposal, controller_state = controller.update(
          key_update, observed, state.controller
      )


    def split(accumulated, part):
      result = sparsifier.split(accumulated, selection.mask, part)
      return result.residual, jnp.sum(result.mask)

    residual, contributed = map_clients(
        split, (accumulated, selection.clients), client_chunk
    )
    new_state = RoundState(
        params=params,
        residual=residual,
        sparsifier=sparsifier_state,
        controller=controller_state,
        proposal=proposal,
        round_index=round_index,
        elapsed=state.elapsed + time,
    )
    info = RoundInfo(
        round_index=round_index,
        elapsed=new_state.elapsed,
        k=state.proposal.k,
        k_probe=state.proposal.k_probe,
        k_up=selection.k_up,
        k_down=selection.k_down,
        minibatch_loss=over_clients(weights * local.loss),
        sign=sign,
        contributed=contributed,
        finite=all_finite,
    )
    return new_state, info

  return Round(init, step)


def build_chunk(step: Callable, length: int) -> Callable:
  """Rounds in a row as one program, without a return to the host.

  Args:
    step: of a `Round`.
    length: rounds at most.

  Returns:
    (root_key, ClientData, RoundState, num_rounds [] i32 <= length, time_budget
    [] f32) -> (RoundState, RoundInfo with a leading axis `length`, [] i32
    rounds done). It ends early after a round that spends the budget or whose
    gradients were not finite; infos past the rounds done are zeros.
  """

  def chunk(root_key, data, state, num_rounds, time_budget):
    _, shapes = jax.eval_shape(step, root_key, data, state)
    infos = jax.tree.map(
        lambda one: jnp.zeros((length, *one.shape), one.dtype), shapes
    )

    def goes_on(carry):
      state, _, done, finite = carry
      return finite & (done < num_rounds) & (state.elapsed < time_budget)

    def one_round(carry):
      state, infos, done, _ = carry
      state, info = step(root_key, data, state)
      infos = jax.tree.map(
          lambda rows, row: rows.at[done].set(row), infos, info
      )
      return state, infos, done + 1, info.finite

    carry = (state, infos, jnp.int32(0), jnp.bool_(True))
    state, infos, done, _ = lax.while_loop(goes_on, one_round, carry)
    return state, infos, done

  return chunk


class Sweep(NamedTuple):
  """Simulations side by side as two pure functions; each is one lane.

  Attributes:
    init: (root_keys [S], settings, num_clients) -> RoundState with a leading
      axis S.
    step: (root_keys [S], settings, ClientData, RoundState) -> (RoundState,
      RoundInfo), all but the data with a leading axis S.
  """

  init: Callable[..., RoundState]
  step: Callable[..., tuple[RoundState, RoundInfo]]


def build_sweep(
    build: Callable[[PyTree], Round], lane_chunk: int | None
) -> Sweep:
  """Seeds and numeric settings as lanes of one program.

  Args:
    build: one lane's settings, traced numbers, -> its Round. Learning rate and
      comm_time may come from them; all that decides a shape may not.
    lane_chunk: lanes per vmapped piece, see `over_clients.map_clients`.

  Returns:
    The sweep.
  """

  def init(root_keys, settings, num_clients):
    one = lambda key, setting: build(setting).init(key, num_clients)
    return jax.vmap(one)(root_keys, settings)

  def step(root_keys, settings, data, states):
    one = lambda key, setting, state: build(setting).step(key, data, state)
    return map_clients(one, (root_keys, settings, states), lane_chunk)

  return Sweep(init, step)
