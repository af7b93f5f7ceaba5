"""One round of federated learning, in the order in which it happens."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agsfl import platforms
from agsfl.controllers.cost import add_time, cost_slope, round_time
from agsfl.data.federated import ClientData
from agsfl.errors import refused
from agsfl.for_each_client import ForEachClient
from agsfl.training.client import LocalTraining, build_client
from agsfl.training.fast import faster
from agsfl.training.models import sample_losses
from agsfl.types import (
  KController,
  Loss,
  Model,
  Observation,
  PyTree,
  RoundInfo,
  RoundState,
  Selection,
  Sparsifier,
)

# A user's own number for each round: (state after it, RoundInfo) -> [].
Metric = Callable[[RoundState, RoundInfo], jax.Array]


class RoundInit(Protocol):
  """The state before round 1."""

  def __call__(self, key: jax.Array, num_clients: int, /) -> RoundState:
    """Takes the root key of all draws, and N."""


class RoundStep(Protocol):
  """One round."""

  def __call__(
      self, data: ClientData, state: RoundState, /
  ) -> tuple[RoundState, RoundInfo]:
    """Returns the state after the round, and what a reader wants to know."""


class Round(NamedTuple):
  """A simulation as two pure functions.

  Attributes:
    init: (root key, N) -> RoundState.
    step: (ClientData, RoundState) -> (RoundState, RoundInfo).
  """

  init: RoundInit
  step: RoundStep


class Trial(NamedTuple):
  """What sending k elements leads to; a round tries k and k'.

  Attributes:
    selection: what is sent.
    sparsifier, server: their new states.
    params: [D] f32, the new weights.
  """

  selection: Selection
  sparsifier: PyTree
  server: PyTree
  params: jax.Array


def build_round(
    model: Model,
    sparsifier: Sparsifier,
    controller: KController,
    *,
    server: optax.GradientTransformation,
    batch_size: int,
    comm_time: float | jax.Array,
    learning_rate: float | jax.Array = 1.0,
    training: LocalTraining | None = None,
    loss: Loss = sample_losses,
    metrics: Mapping[str, Metric] | None = None,
    for_each_client: ForEachClient | None = None,
) -> Round:
  """Composes a round of gradient sparsification.

  Every draw depends only on the root key, the round and the client. So results
  do not depend on the devices, on the way over the clients, or on where a run
  was resumed. If a gradient is not finite, the round selects with k = 0:
  nothing is sent, and `RoundInfo.finite` is False. Clients without samples
  take no part.

  Args:
    model: the network.
    sparsifier: what is sent.
    controller: how k changes.
    server: applies b to the weights; in the paper plain SGD, `optax.sgd`. It
      sees them as one vector [D], see `Model.sizes`.
    batch_size: samples per minibatch.
    comm_time: beta, see `cost.round_time`. It goes into the state at `init`.
    learning_rate: eta of the clients' local steps; only `training` uses it. It
      goes into the state at `init`.
    training: what clients do between two messages; None for one gradient.
    loss: of samples; the gradient is that of its mean.
    metrics: by name (state after the round, RoundInfo) -> a number [].
    for_each_client: how to run one client's work for all clients, such as
      `jax.vmap`; None for the fastest way on this platform.

  Returns:
    The round.

  Raises:
    ConfigError: an optimiser cannot work on a vector [D].

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1 and Sec. IV.
  """
  _check_optimizer("server", server, model.dim)
  if training is not None:
    _check_optimizer("training", training.optimizer, model.dim)
  over_clients = for_each_client or platforms.for_each_client()
  local_result = build_client(model, batch_size, training, loss)
  logits_of = faster(model.apply)
  compute = 1.0 if training is None else float(training.steps)
  if controller.observes:
    compute += 1.0 / batch_size  # one more sample per client

  def init(key, num_clients):
    key_model, key_controller = jax.random.split(jax.random.fold_in(key, 0))
    params = model.init(key_model)
    proposal, controller_state = controller.init(key_controller)
    return RoundState(
        key=key,
        learning_rate=jnp.float32(learning_rate),
        comm_time=jnp.float32(comm_time),
        params=params,
        residual=jnp.zeros((num_clients, model.dim), jnp.float32),
        sparsifier=sparsifier.init(num_clients, model.dim),
        server=server.init(params),
        controller=controller_state,
        proposal=proposal,
        round_index=jnp.int32(0),
        elapsed=jnp.float32(0.0),
        elapsed_rest=jnp.float32(0.0),
    )

  def accumulate(key, data, state):
    """All a_i [N, D], all losses [N], and one sample h of each client."""

    def one(key, params, data, rate, residual, client, start, count):
      key = jax.random.fold_in(key, client)
      local = local_result(key, params, data, start, count, rate)
      gradient = jnp.where(count > 0, local.gradient, 0.0)
      return residual + gradient, local.loss, (local.sample, local.label)

    clients = jnp.arange(data.counts.shape[0], dtype=jnp.int32)
    shared, own = (None,) * 4, (0,) * 4
    return over_clients(one, (*shared, *own))(
        key, state.params, data.replace(starts=None, counts=None),
        state.learning_rate,
        state.residual, clients, data.starts, data.counts,
    )

  def send(key, accumulated, weights, state, k):
    """Clients send k elements, the server takes its step."""
    selection, sparsifier_state = sparsifier.select(
        key, accumulated, weights, k, state.sparsifier
    )
    updates, server_state = server.update(
        selection.aggregate, state.server, state.params
    )
    params = optax.apply_updates(state.params, updates)
    return Trial(selection, sparsifier_state, server_state, params)

  def residuals_after(accumulated, selection):
    """[N, D], what was not sent, or sent but not used by the server."""
    # Every row waits for b; otherwise XLA copies [N, D]. Where b is not a
    # number, the elements stay at the clients.
    mask = selection.mask & ~jnp.isnan(selection.aggregate)
    of_client = lambda mask, accumulated, own: (
        sparsifier.split(accumulated, mask, own).residual
    )
    return over_clients(of_client, (None, 0, 0))(
        mask, accumulated, selection.clients
    )

  def theta(selection, state):
    """The round's normalised time with this selection."""
    return round_time(
        selection.volume_up,
        selection.volume_down,
        dim=model.dim,
        comm_time=state.comm_time,
        compute=compute,
    )

  def observe(samples, weights, state, played, probe):
    """Times and falls of the one-sample loss for k and k'."""
    features, labels = samples
    losses_at = lambda params: loss(logits_of(params, features), labels)
    before = losses_at(state.params)

    # Subtract sample by sample: the means are large and differ by little.
    def fall_to(params):
      return jnp.sum(weights * (before - losses_at(params)))

    fall = fall_to(played.params)
    return Observation(
        k=played.selection.k_up.astype(jnp.float32),
        k_probe=probe.selection.k_up.astype(jnp.float32),
        time=theta(played.selection, state),
        time_probe=theta(probe.selection, state),
        loss=jnp.sum(weights * before),
        fall=fall,
        fall_probe=fall_to(probe.params) if controller.probes else fall,
    )

  def step(data, state):
    round_index = state.round_index + 1
    key = jax.random.fold_in(state.key, round_index)
    key_batch, key_select, key_rounding, key_update = jax.random.split(key, 4)

    # Alg. 1: every client adds its gradient to what it has not sent yet.
    accumulated, losses, samples = accumulate(key_batch, data, state)
    counts = data.counts.astype(jnp.float32)
    weights = counts / jnp.float32(jnp.sum(data.counts))  # C_i / C
    finite = over_clients(lambda a: jnp.all(jnp.isfinite(a)))(accumulated)
    all_finite = jnp.all(finite)

    # Sec. IV: one draw rounds both k and k' to whole numbers.
    uniform = jax.random.uniform(key_rounding, dtype=jnp.float32)

    def try_k(k):
      k = jnp.where(all_finite, stochastic_round(k, uniform), 0)
      return send(key_select, accumulated, weights, state, k)

    # One vmap over k and k', so that a sparsifier can share work between them.
    ks = [state.proposal.k]
    if controller.probes:
      ks.append(state.proposal.k_probe)
    trials = jax.vmap(try_k)(jnp.stack(ks))
    played, probe = (jax.tree.map(lambda x, i=i: x[i], trials) for i in (0, -1))

    # Alg. 2 and 3: the next k follows from what k and k' cost.
    observed = None
    if controller.observes:
      observed = observe(samples, weights, state, played, probe)
    proposal, controller_state = controller.update(
        key_update, observed, state.controller
    )

    # Alg. 1: what the server used leaves the residuals; time passes.
    selection = played.selection
    elapsed, rest = add_time(
        state.elapsed, state.elapsed_rest, theta(selection, state)
    )
    new_state = state.replace(
        params=played.params,
        residual=residuals_after(accumulated, selection),
        sparsifier=played.sparsifier,
        server=played.server,
        controller=controller_state,
        proposal=proposal,
        round_index=round_index,
        elapsed=elapsed,
        elapsed_rest=rest,
    )

    # What a reader wants to know.
    sign, has_sign = jnp.float32(0.0), jnp.bool_(False)
    if controller.probes and observed is not None:
      slope = cost_slope(observed)
      sign, has_sign = slope.sign, slope.valid
    info = RoundInfo(
        round_index=round_index,
        elapsed=elapsed,
        k=state.proposal.k,
        k_probe=state.proposal.k_probe,
        k_up=selection.k_up,
        k_down=selection.k_down,
        volume_up=selection.volume_up,
        volume_down=selection.volume_down,
        minibatch_loss=jnp.sum(weights * losses),
        sign=sign,
        has_sign=has_sign,
        contributed=selection.contributed,
        finite=all_finite,
        metrics={},
    )
    if metrics:
      info = info._replace(metrics={
          name: metric(new_state, info) for name, metric in metrics.items()
      })
    return new_state, info

  return Round(init, step)


def _check_optimizer(name, optimizer, dim):
  """Refuses an optimiser that needs more than the weights as one vector."""
  weights = jax.ShapeDtypeStruct((dim,), jnp.float32)
  with refused(
      name,
      "must be an optax optimiser that works on one vector [D] of weights; a "
      "mask or label for each array becomes a vector with "
      "np.repeat(of_each_array, model.sizes)",
      (AttributeError, TypeError, ValueError),
  ):
    jax.eval_shape(lambda w: optimizer.update(w, optimizer.init(w), w), weights)


def stochastic_round(k: jax.Array, uniform: jax.Array) -> jax.Array:
  """Rounds k to floor(k) or ceil(k) without bias: E = k.

  If k' <= k - 1 and both use the same `uniform`, k' stays below k.
  The draw is compared with the fraction of k, not added to k: near k = 444,062
  the float32 sum k + u would be rounded up too often.

  Args:
    k: [] f32, not negative.
    uniform: [] f32 from [0, 1).

  Returns:
    [] i32.
  """
  whole = jnp.floor(k)
  return whole.astype(jnp.int32) + (uniform < k - whole).astype(jnp.int32)


class RunRounds(Protocol):
  """Several rounds as one program."""

  def __call__(
      self,
      data: ClientData,
      state: RoundState,
      num_rounds: jax.Array,
      time_budget: jax.Array,
      /,
  ) -> tuple[RoundState, RoundInfo, jax.Array]:
    """num_rounds [] i32, time_budget [] f32 -> state, infos, rounds done."""


def rounds_in_a_row(step: RoundStep, length: int) -> RunRounds:
  """Many rounds without a return to the host.

  Args:
    step: of a `Round`.
    length: the most rounds of one call.

  Returns:
    (ClientData, RoundState, num_rounds [] i32 <= length, time_budget [] f32)
    -> (RoundState, RoundInfo with a leading axis `length`, [] i32 rounds
    done). It ends early after a round that reaches the budget, or whose
    gradients were not finite. The infos of rounds that did not run are zeros.
  """

  def run(data, state, num_rounds, time_budget):
    _, shapes = jax.eval_shape(step, data, state)
    infos = jax.tree.map(
        lambda one: jnp.zeros((length, *one.shape), one.dtype), shapes
    )

    def goes_on(carry: Any):
      state, _, done, finite = carry
      return finite & (done < num_rounds) & (state.elapsed < time_budget)

    def one_round(carry: Any):
      state, infos, done, _ = carry
      state, info = step(data, state)
      infos = jax.tree.map(
          lambda rows, row: rows.at[done].set(row), infos, info
      )
      return state, infos, done + 1, info.finite

    carry = (state, infos, jnp.int32(0), jnp.bool_(True))
    state, infos, done, _ = lax.while_loop(goes_on, one_round, carry)
    return state, infos, done

  return run
