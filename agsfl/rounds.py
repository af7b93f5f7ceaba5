"""One round of federated learning, in the order in which it happens."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from agsfl import backlog, clocks, cohorts, devices, platforms
from agsfl.attendance import Attendance
from agsfl.controllers.cost import add_time, cost_slope, round_time
from agsfl.data.federated import ClientData
from agsfl.delivery import (
  EVERYTHING_ARRIVES,
  Delivery,
  Work,
  all_sent,
  arrivals_of,
  k_of_clients,
  largest,
  meet,
  pass_seconds,
  seconds_of,
  traffic,
  volumes_up,
)
from agsfl.errors import refuse, refused
from agsfl.feedback import AS_IN_THE_PAPER, Feedback
from agsfl.for_each_client import EVERYWHERE, ForEachClient
from agsfl.gradients import build_accumulate
from agsfl.synced import missed
from agsfl.tasks import cross_entropy, losses_of
from agsfl.training.augmentation import Augment
from agsfl.training.client import LocalTraining, build_client, work_of
from agsfl.training.fast import faster
from agsfl.training.schedules import Schedules
from agsfl.types import (
  Cohort,
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

_NOT_MEASURED: Any = np.float32(np.nan)

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
    """Returns the state after the round, and the round's record for readers."""


class Draw(Protocol):
  """Who takes part in the next round."""

  def __call__(
      self, data: ClientData, state: RoundState, /
  ) -> tuple[Cohort | None, RoundState]:
    """Returns the cohort, None for all; and the state, which may note it."""


class Play(Protocol):
  """A round of its cohort."""

  def __call__(
      self, data: ClientData, state: RoundState, cohort: Cohort | None, /
  ) -> tuple[RoundState, RoundInfo]:
    """Data and state have the rows of the cohort only, in its order."""


class Close(Protocol):
  """The end of a round, for all clients."""

  def __call__(
      self, data: ClientData, state: RoundState, info: RoundInfo, /
  ) -> RoundState:
    """Returns the state from which the next cohort can be drawn."""


class Round(NamedTuple):
  """A simulation as pure functions.

  `step` is the whole round. If the whole state does not fit the device, use its
  three parts: draw a cohort, play the round with the cohort's rows, and close
  it.

  Attributes:
    init: (root key, N) -> RoundState.
    step: (ClientData, RoundState) -> (RoundState, RoundInfo).
    draw: (ClientData, RoundState) -> (Cohort or None, RoundState).
    play: (ClientData, RoundState, Cohort or None) -> (RoundState, RoundInfo).
    close: (ClientData, RoundState, RoundInfo) -> RoundState.
    specs: which arrays of the state have an axis of clients, as
      `devices.specs_of` says.
  """

  init: RoundInit
  step: RoundStep
  draw: Draw
  play: Play
  close: Close
  specs: PyTree


class Trial(NamedTuple):
  """What sending k elements leads to; a round tries k and k'.

  Attributes:
    selection: what is sent.
    sparsifier, server: their new states.
    params: [D] f32, the new weights.
    feedback: see `Feedback.after`.
  """

  selection: Selection
  sparsifier: PyTree
  server: PyTree
  params: jax.Array
  feedback: PyTree


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
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    metrics: Mapping[str, Metric] | None = None,
    for_each_client: ForEachClient | None = None,
    attendance: Attendance | None = None,
    feedback: Feedback = AS_IN_THE_PAPER,
    delivery: Delivery = EVERYTHING_ARRIVES,
    schedules: Schedules | None = None,
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
    learning_rate: eta of the clients' local steps; only `training` and
      `feedback` use it. It goes into the state at `init`.
    training: what clients do between two messages; None for one gradient.
    loss: of samples; the gradient is that of its mean.
    augment: of the features of each minibatch; None leaves them as they are.
    metrics: by name (state after the round, RoundInfo) -> a number []. With
      `attendance` this state has the rows of the round's clients only.
    for_each_client: how to run one client's work for all clients, such as
      `jax.vmap`; None for the fastest way on this platform.
    attendance: who takes part in a round; None for all clients.
    feedback: what clients do with what they have not sent.
    delivery: how messages are coded, and when they arrive.
    schedules: factors of the learning rates by round; None for 1.

  Returns:
    The round.

  Raises:
    ConfigError: an optimiser cannot work on a vector [D], or the controller
      measures the lag of clients without residuals.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1 and Sec. IV.
  """
  _check_optimizer("server", server, model.dim)
  if training is not None:
    _check_optimizer("training", training.optimizer, model.dim)
  if controller.measures_lag and not feedback.has_residual:
    refuse(
        "controller",
        "must not measure the lag where clients keep no residuals",
    )
  over_clients = for_each_client or platforms.for_each_client()
  local_result = build_client(model, batch_size, training, loss, augment)
  accumulate = build_accumulate(local_result, feedback, over_clients)
  outputs_of = faster(model.apply)
  # The controller needs one more sample per client.
  observing = 1.0 / batch_size if controller.observes else 0.0

  def init(key, num_clients):
    key_model, key_controller = jax.random.split(jax.random.fold_in(key, 0))
    params = model.init(key_model)
    proposal, controller_state = controller.init(key_controller)
    of_all = num_clients, model.dim
    return RoundState(
        key=key,
        learning_rate=jnp.float32(learning_rate),
        comm_time=jnp.float32(comm_time),
        params=params,
        residual=jnp.zeros(of_all, jnp.float32)
        if feedback.has_residual else (),
        sparsifier=sparsifier.init(*of_all),
        server=server.init(params),
        controller=controller_state,
        proposal=proposal,
        round_index=jnp.int32(0),
        elapsed=jnp.float32(0.0),
        elapsed_rest=jnp.float32(0.0),
        feedback=feedback.init(*of_all),
        seconds=(jnp.float32(0.0),) * 2 if delivery.in_seconds else (),
        attendance=() if attendance is None else attendance.init(params),
    )

  # What the attendance knows of all clients is small, and not split.
  specs = devices.specs_of(lambda n: init(jax.random.key(0), n))
  specs = specs.replace(
      attendance=jax.tree.map(lambda _: EVERYWHERE, specs.attendance)
  )
  # After this the server sends all weights; stateless clients also need b.
  most_behind = 2 * model.dim if feedback.stateless else model.dim
  always_hears = attendance is None and delivery.is_certain

  def send(key, view, work, meeting, state, k, can_send):
    """Clients send k elements, the server takes its step."""
    selection, sparsifier_state = sparsifier.select(
        key, view, meeting.weights, k, state.sparsifier
    )
    if delivery.ends_together:
      messages = own_messages(view, work, meeting, k)
      selection = all_sent(selection, messages, meeting.weights)
    b = feedback.step(selection.aggregate, state.feedback)
    if meeting.damping is not None:
      b = meeting.damping * b
    updates, server_state = server.update(b, state.server, state.params)
    round_index = state.round_index + 1
    if schedules is not None:
      updates = schedules.server(round_index) * updates
    params = optax.apply_updates(state.params, updates)
    if not always_hears:
      # A server that hears nobody takes no step, not even of its momentum.
      params, server_state = jax.tree.map(
          lambda new, old: jnp.where(can_send, new, old),
          (params, server_state),
          (state.params, state.server),
      )
    return Trial(
        delivery.coded(selection, model.dim),
        sparsifier_state,
        server_state,
        params,
        feedback.after(state.feedback, b, round_index),
    )

  def own_messages(view, work, meeting, k):
    """[n, D], the k_i largest entries of each client."""
    most = k_of_clients(delivery, work, meeting.waits_for, k)
    return over_clients(largest)(view, most)

  def residuals_after(accumulated, view, work, meeting, selection):
    """[n, D], what was not sent, or sent but not used by the server."""
    if not feedback.has_residual:
      return ()
    # Every row waits for b; otherwise XLA copies [n, D]. Where b is not a
    # number, the elements stay at the clients.
    mask = selection.mask & ~jnp.isnan(selection.aggregate)
    if delivery.ends_together:
      return over_clients(
          lambda mask, accumulated, message, weight: (
              accumulated - jnp.where(mask & (weight > 0), message, 0.0)
          ),
          (None, 0, 0, 0),
      )(
          mask,
          accumulated,
          own_messages(view, work, meeting, selection.k_up),
          meeting.weights,
      )
    if view is accumulated:
      return over_clients(
          lambda mask, accumulated, own: (
              sparsifier.split(accumulated, mask, own).residual
          ),
          (None, 0, 0),
      )(mask, accumulated, selection.clients)
    # The client also has what rounding took from its message.
    return over_clients(
        lambda mask, accumulated, view, own: (
            accumulated - sparsifier.split(view, mask, own).sent
        ),
        (None, 0, 0, 0),
    )(mask, accumulated, view, selection.clients)

  def theta(selection, state, steps, behind):
    """[] f32, the round's normalised time with this selection."""
    return round_time(
        selection.volume_up,
        selection.volume_down + jnp.max(behind),
        dim=model.dim,
        comm_time=state.comm_time,
        compute=steps + observing,
    )

  def falls(local, weights, state, played, probe):
    """The one-sample loss, and by how much it falls with k and k'."""
    losses_at = lambda params: losses_of(
        loss, outputs_of(params, local.sample), local.label
    )
    before = losses_at(state.params)

    # Subtract sample by sample: the means are large and differ by little.
    def fall_to(params):
      return jnp.sum(weights * (before - losses_at(params)))

    fall = fall_to(played.params)
    fall_probe = fall_to(probe.params) if controller.probes else fall
    return jnp.sum(weights * before), fall, fall_probe

  def lag(waiting, residual, work, meeting, state, cohort):
    """[] f32, see `backlog.lag`; `waiting` is the energy before the round."""
    left = over_clients(backlog.energy)(residual)
    turns: float | jax.Array = 1.0
    if not always_hears:
      number = (
          jnp.sum(work.counts > 0) if cohort is None
          else len(state.attendance.synced.received)
      )
      turns = number / jnp.maximum(jnp.sum(meeting.arrived), 1)
    return backlog.lag(meeting.weights, waiting, left, turns)

  def rounding(state):
    """[] from [0, 1): one draw rounds both k and k' of the next round."""
    key = jax.random.fold_in(state.key, state.round_index + 1)
    key_rounding = jax.random.split(key, 4)[2]
    return jax.random.uniform(key_rounding, dtype=jnp.float32)

  def seconds_until_sent(data, state, behind):
    """[n], of clients that begin now; k is that of the next round."""
    k = stochastic_round(state.proposal.k, rounding(state))
    _, seen = work_of(training, batch_size, data.counts)
    volume = delivery.planned(k, model.dim)
    return arrivals_of(data.speeds, seen, behind, volume)

  def behind_of(state, cohort, number):
    """[n], numbers that clients must receive before they compute."""
    if cohort is None:
      return jnp.zeros(number, jnp.float32)
    if cohort.flights is not None:
      return cohort.flights.behind
    synced = state.attendance.synced
    return missed(synced, cohort.clients, model.dim, most_behind)

  def draw(data, state):
    if attendance is None:
      return None, state
    cohort, noted = attendance.draw(data, state, seconds_until_sent)
    return cohort, state.replace(attendance=noted)

  def play(data, state, cohort):
    round_index = state.round_index + 1
    key = jax.random.fold_in(state.key, round_index)
    _, key_select, _, key_update = jax.random.split(key, 4)

    # Alg. 1: every client adds its gradient to what it has not sent yet.
    eta = state.learning_rate
    if schedules is not None:
      # Who began earlier has the factor of that round.
      began = round_index
      if cohort is not None and cohort.flights is not None:
        began = cohort.flights.began + 1
      eta = schedules.client(began) * eta
    accumulated, local = accumulate(data, state, cohort, eta)
    # In one pass, because all that follows waits for `finite`. Otherwise XLA
    # measures the energy last, of a copy of [n, D].
    finite, waiting = over_clients(lambda a: (
        jnp.all(jnp.isfinite(a)),
        backlog.energy(a) if controller.measures_lag else (),
    ))(accumulated)
    all_finite = jnp.all(finite)

    # Sec. IV: one draw rounds both k and k' to whole numbers.
    uniform = rounding(state)
    k = stochastic_round(state.proposal.k, uniform)

    # Whose message arrives, and what it holds of a value.
    work = Work(
        clients=cohorts.numbers_of(data, cohort),
        counts=data.counts,
        speeds=data.speeds,
        seen=local.seen,
        behind=behind_of(state, cohort, len(data.counts)),
        dim=model.dim,
    )
    meeting = meet(delivery, work, state, cohort, k)
    view = accumulated
    if delivery.message.value_bits < 32:
      view = over_clients(
          lambda a: clocks.rounded(a, delivery.message.value_bits)
      )(accumulated)
    can_send = all_finite & jnp.any(meeting.weights > 0)

    def try_k(k):
      k = jnp.where(can_send, stochastic_round(k, uniform), 0)
      return send(key_select, view, work, meeting, state, k, can_send)

    # One vmap over k and k', so that a sparsifier can share work between them.
    ks = [state.proposal.k]
    if controller.probes:
      ks.append(state.proposal.k_probe)
    trials = jax.vmap(try_k)(jnp.stack(ks))
    played, probe = (jax.tree.map(lambda x, i=i: x[i], trials) for i in (0, -1))
    selection = played.selection
    if delivery.ends_together:
      # The largest message of all clients.
      up = volumes_up(delivery, work, meeting, selection)
      selection = selection._replace(volume_up=jnp.max(up))

    # Alg. 1: what the server used leaves the residuals.
    residual = residuals_after(accumulated, view, work, meeting, selection)

    # How long it takes, and what other messages would have taken.
    steps: float | jax.Array = 1.0
    if training is not None:
      # The round waits for the client that takes most steps.
      steps = float(training.steps or 0) or jnp.float32(jnp.max(local.steps))

    def time_of(selection, work=work):
      if not delivery.in_seconds:
        return theta(selection, state, steps, work.behind)
      return seconds_of(delivery, work, meeting, selection)

    elapsed, rest = add_time(
        state.elapsed,
        state.elapsed_rest,
        theta(selection, state, steps, work.behind),
    )
    seconds, timing = state.seconds, None
    if delivery.in_seconds:
      seconds, timing = pass_seconds(
          delivery, work, state.seconds, meeting, selection
      )

    # Alg. 2 and 3: the next k follows from what k and k' cost.
    observed = None
    if controller.needs_observation:
      # Without messages nobody would have missed one.
      silent = time_of(
          selection._replace(
              k_up=jnp.zeros_like(selection.k_up),
              volume_up=jnp.float32(0.0),
              volume_down=jnp.float32(0.0),
          ),
          work._replace(behind=jnp.zeros_like(work.behind)),
      )
      losses = (_NOT_MEASURED,) * 3
      if controller.observes:
        losses = falls(local, meeting.weights, state, played, probe)
      observed = Observation(
          selection.k_up.astype(jnp.float32),
          probe.selection.k_up.astype(jnp.float32),
          time_of(selection),
          time_of(probe.selection),
          *losses,
          time_silent=silent,
          elapsed=seconds[0] if delivery.in_seconds else elapsed,
          lag=lag(waiting, residual, work, meeting, state, cohort)
          if controller.measures_lag else _NOT_MEASURED,
      )
    proposal, controller_state = controller.update(
        key_update, observed, state.controller
    )

    new_state = state.replace(
        params=played.params,
        residual=residual,
        sparsifier=played.sparsifier,
        server=played.server,
        controller=controller_state,
        proposal=proposal,
        round_index=round_index,
        elapsed=elapsed,
        elapsed_rest=rest,
        feedback=played.feedback,
        seconds=seconds,
    )

    # What a reader wants to know.
    all_up = all_down = None
    if not always_hears or delivery.ends_together:
      all_up, all_down = traffic(delivery, work, meeting, selection)
    count_of = lambda clients: (
        None if always_hears else jnp.sum(clients, dtype=jnp.int32)
    )
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
        minibatch_loss=jnp.sum(meeting.weights * local.loss),
        sign=sign,
        has_sign=has_sign,
        contributed=selection.contributed,
        finite=all_finite,
        metrics={},
        clients=None if cohort is None else cohort.clients,
        all_up=all_up,
        all_down=all_down,
        heard=count_of(meeting.arrived),
        lost=count_of(meeting.lost),
        behind=None if cohort is None else jnp.max(work.behind),
        timing=timing,
    )
    if metrics:
      info = info._replace(metrics={
          name: metric(new_state, info) for name, metric in metrics.items()
      })
    return new_state, info

  def close(data, state, info):
    if attendance is None:
      return state

    def seconds_from_here(own, state, behind):
      # The seconds of a round end when the last one of it has the server's
      # message. Clients begin as soon as they have it.
      last = data.only(info.clients)
      delay = clocks.download(own.speeds, info.volume_down)
      delay -= jnp.max(
          clocks.download(last.speeds, info.volume_down),
          where=last.counts > 0,
          initial=0.0,
      )
      return delay + seconds_until_sent(own, state, behind)

    noted = attendance.after(data, state, info, seconds_from_here)
    return state.replace(attendance=noted)

  def step(data, state):
    cohort, state = draw(data, state)
    if cohort is None:
      return play(data, state, None)
    own = cohorts.take(state, specs, cohort.clients)
    own, info = play(data.only(cohort.clients), own, cohort)
    state = cohorts.put(state, specs, cohort.clients, own)
    return close(data, state, info), info

  return Round(init, step, draw, play, close, specs)


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


class Budget(NamedTuple):
  """Times after which no round begins; [] f32 each.

  Attributes:
    time: normalised.
    seconds: simulated ones; not used without a clock in seconds.
  """

  time: jax.Array
  seconds: jax.Array

  def is_left(self, state: RoundState) -> jax.Array:
    """[] bool, whether another round may begin."""
    is_left = state.elapsed < self.time
    if state.seconds:
      is_left &= state.seconds[0] < self.seconds
    return is_left


class RunRounds(Protocol):
  """Several rounds as one program."""

  def __call__(
      self,
      data: ClientData,
      state: RoundState,
      num_rounds: jax.Array,
      budget: Budget,
      /,
  ) -> tuple[RoundState, RoundInfo, jax.Array]:
    """num_rounds is [] i32. Returns the state, infos, and rounds done."""


def rounds_in_a_row(step: RoundStep, length: int) -> RunRounds:
  """Many rounds without a return to the host.

  Args:
    step: of a `Round`.
    length: the most rounds of one call.

  Returns:
    (ClientData, RoundState, num_rounds [] i32 <= length, Budget) ->
    (RoundState, RoundInfo with a leading axis `length`, [] i32 rounds done).
    It ends early after a round that reaches the budget, or whose gradients
    were not finite. The infos of rounds that did not run are zeros.
  """

  def run(data, state, num_rounds, budget):
    _, shapes = jax.eval_shape(step, data, state)
    infos = jax.tree.map(
        lambda one: jnp.zeros((length, *one.shape), one.dtype), shapes
    )

    def goes_on(carry: Any):
      state, _, done, finite = carry
      return finite & (done < num_rounds) & budget.is_left(state)

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
