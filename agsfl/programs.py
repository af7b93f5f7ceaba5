"""Compiled programs of runs, and runs made ready on devices."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from agsfl import cohorts, devices, platforms
from agsfl.clocks import availability_of, speeds_of
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import ClientData, FederatedData, validated
from agsfl.errors import require
from agsfl.for_each_client import EVERYWHERE
from agsfl.layout import layout_of
from agsfl.parts import (
    Numbers,
    Parts,
    build_model,
    compose,
    numbers_of,
    turnout_of,
)
from agsfl.records.read import read_run
from agsfl.rounds import Budget, Metric, Round, rounds_in_a_row
from agsfl.settings import LARGEST
from agsfl.sparsifiers import METHODS
from agsfl.stored import RowsPlace, StoredRounds
from agsfl.tasks import TASKS, Task
from agsfl.training.evaluation import Evaluation, build_evaluate
from agsfl.types import (
  KController,
  Loss,
  Model,
  PyTree,
  RoundInfo,
  RoundState,
  Sparsifier,
)
from agsfl.weights import weights_of


class Simulation(NamedTuple):
  """A run, or several side by side, placed on devices and ready to start.

  Attributes:
    model: the network.
    state: the RoundState before round 1; for several runs with a leading axis.
    advance: (state, num_rounds) -> (state, for each run the RoundInfo of each
      round that ran, NumPy). It consumes the given state.
    rounds_per_call: the largest num_rounds.
    evaluate: for each run, [D] weights -> Evaluation.
    lane: (state, index of a run) -> the RoundState of this run only.
    pack: the RoundState of one run -> what is saved of it. This does not depend
      on the number of devices.
    like: shapes and types of what is saved of a run.
    unpack: a list of saved states, NumPy, one for each run -> state.
    has_rows: whether saved states refer to rows in a file; then the older ones
      cannot be read any more when the run has gone on from one.
  """

  model: Model
  state: RoundState
  advance: Callable[[RoundState, int], tuple[RoundState, list[list[RoundInfo]]]]
  rounds_per_call: int
  evaluate: list[Callable[[jax.Array], Evaluation]]
  lane: Callable[[RoundState, int], RoundState]
  pack: Callable[[RoundState], Any]
  like: PyTree
  unpack: Callable[[list[Any]], RoundState]
  has_rows: bool = False


def build(
    config: Config,
    data: FederatedData,
    *,
    model: Any = None,
    sparsifier: Sparsifier | None = None,
    controller: KController | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Simulation:
  """Makes a run ready.

  Runs of one process whose settings have the same `Config.structure` share
  compiled programs.

  Args:
    config: the settings.
    data: from `data.load` or `from_arrays`.
    model, sparsifier, controller, loss, metrics: see `simulate`.

  Returns:
    The simulation.

  Raises:
    ConfigError: k or its interval does not fit the model, there are fewer
      devices, or the data hold samples that no network can learn from.
  """
  parts = Parts.of(model, sparsifier, controller, loss, metrics)
  return build_from(config, validated(data), parts)


def build_from(
    config: Config,
    data: FederatedData,
    parts: Parts,
    rows: RowsPlace | None = None,
) -> Simulation:
  """`build` with all parts as one argument.

  Args:
    config, data, parts: see `build`.
    rows: where rows of clients are saved that are not on the device; None if
      no states are saved.

  Returns:
    The simulation.
  """
  num_clients = len(data.client_names)
  require(
      config.task in (None, data.task),
      "task",
      config.task,
      f"{data.task}, the task of the data, or unset",
  )
  network = build_model(config, parts, data)
  task = TASKS[data.task].with_loss(parts.loss)
  programs = Programs(config, parts, network, task, num_clients)
  # Any device may need the samples of any client.
  shared = True if config.in_cohorts else None
  layout = layout_of([data], programs.mesh, shared)
  placed = devices.place_clients(
      with_clocks(config, data), programs.mesh, layout
  )
  evaluate = build_evaluate(
      network, data, placed, layout, task, config.eval_train_samples
  )
  store = config.used_store(num_clients, programs.bytes_per_client)
  if store != "device":
    return _build_stored(config, programs, placed, evaluate, store, rows)
  state, budget = programs.init(config), budget_of(config)

  def advance(state, num_rounds):
    with jax.set_mesh(programs.mesh):
      state, infos, done = programs.run(
          placed, state, jnp.int32(num_rounds), budget
      )
    infos, done = jax.device_get((infos, done))
    return state, [rows_of(infos, done)]

  return Simulation(
      model=network,
      state=state,
      advance=advance,
      rounds_per_call=programs.length,
      evaluate=[evaluate],
      lane=lambda state, index: state,
      pack=programs.pack,
      like=devices.shapes_of_saved(programs.pack, state),
      unpack=lambda saved: programs.unpack(saved[0], state),
  )


def _build_stored(config, programs, placed, evaluate, store, rows):
  """A run whose clients' rows are in a store."""
  places = programs.turnout.places
  rounds = StoredRounds(
      programs.round,
      placed,
      programs.init(config, places),
      programs.mesh,
      programs.num_clients,
      store,
      rows or RowsPlace(),
      known_ahead=config.availability is None and config.buffer_size is None,
  )
  budget = budget_of(config)

  def advance(state, num_rounds):
    state, infos = rounds.advance(state, num_rounds, budget)
    return state, [infos]

  return Simulation(
      model=programs.model,
      state=rounds.state,
      advance=advance,
      rounds_per_call=programs.length,
      evaluate=[evaluate],
      lane=lambda state, index: state,
      pack=rounds.pack,
      like=rounds.like,
      unpack=lambda saved: rounds.unpack(saved[0]),
      has_rows=True,
  )


def with_clocks(config: Config, data: FederatedData) -> ClientData:
  """The clients' data with their speeds and availability, if any is needed."""
  given = config, config.seed, data.client_names
  clients = data.clients
  if config.clock is not None:
    clients = dataclasses.replace(clients, speeds=speeds_of(*given))
  if config.availability is not None:
    availability = availability_of(*given)
    clients = dataclasses.replace(clients, availability=availability)
  return clients


def budget_of(config: Config) -> Budget:
  """The budgets; without one, a time that no run reaches."""
  return Budget(
      jnp.float32(config.time_budget or LARGEST),
      jnp.float32(config.seconds_budget or LARGEST),
  )


def rows_of(infos: RoundInfo, done: int) -> list[RoundInfo]:
  """The infos of the rounds that ran, one by one."""
  return [jax.tree.map(lambda x, i=i: x[i], infos) for i in range(done)]


class Programs:
  """The compiled programs of a run; runs of equal structure share them.

  Attributes:
    mesh: the devices.
    length: the most rounds per call.
    specs: how each array of the state is split over the mesh.
    run: see `rounds.rounds_in_a_row`; it consumes the given state.
    round: its functions are not compiled.
    turnout: how many clients take part; None for all.
    num_clients: N.
    model: the network.
  """

  def __init__(
      self,
      config: Config,
      parts: Parts,
      model: Model,
      task: Task,
      num_clients: int,
  ):
    """Finds the programs; new ones are traced when they are first called."""
    self._numbers = numbers_of(config, model.dim)
    self.num_clients = num_clients
    self.model = model
    self.mesh = devices.client_mesh(devices.count_for(
        config.num_devices, config.arrivals(num_clients)
    ))
    length = config.rounds_per_call or platforms.rounds_per_call()
    self.length = int(min(length, config.eval_every, config.num_rounds))

    # What the programs depend on; a name may be registered again.
    entries = METHODS[config.method], CONTROLLERS[config.used_controller]
    self.turnout = turnout_of(config, num_clients, self.mesh.size)
    loss: Any = task.loss
    key = (
        config.structure(), parts._replace(model=None, loss=None), model, loss,
        entries, self.turnout,
    )
    ks = recorded_ks(config, model.dim)
    self._init, self.specs = _init(*key, ks, self.mesh)
    self.run = _run(*key, self.mesh, self.length, len(ks))
    self.round = _round(*key, len(ks))

  @property
  def bytes_per_client(self) -> int:
    """The size of a client's rows in the state."""
    of_one = jax.eval_shape(lambda: self.round.init(jax.random.key(0), 1))
    return sum(
        x.size * x.dtype.itemsize
        for x, axis in zip(
            jax.tree.leaves(of_one),
            cohorts.axes_of(of_one, self.specs),
            strict=True,
        )
        if axis is not None
    )

  def init(self, config: Config, num_clients: int | None = None) -> RoundState:
    """The state before round 1, on the devices.

    Args:
      config: the settings.
      num_clients: whose rows it has; None for all.
    """
    number = self.num_clients if num_clients is None else num_clients
    padded = number + -number % self.mesh.size
    with jax.set_mesh(self.mesh):
      state = self._init(jax.random.key(config.seed), self._numbers, padded)
    if config.init_from is None:
      return state
    weights = weights_of("init_from", config.init_from, self.model.dim)
    return state.replace(params=jax.device_put(weights, state.params.sharding))

  def pack(self, state: RoundState) -> Any:
    """See `Simulation`."""
    return devices.without_padding(state, self.specs, self.num_clients)

  def unpack(self, saved: Any, like: RoundState) -> RoundState:
    """See `Simulation`."""
    return devices.with_padding(saved, like, self.specs)


@functools.lru_cache(maxsize=16)
def _round(config, parts, model, loss, entries, turnout, num_recorded) -> Round:
  """The round of a structure; its step does not depend on the numbers."""
  del entries
  recorded = (1.0,) * num_recorded
  return compose(config, parts, model, loss, _any_numbers(), recorded, turnout)


@functools.lru_cache(maxsize=16)
def _run(
    config, parts, model, loss, entries, turnout, mesh: Mesh, length,
    num_recorded,
):
  """The compiled rounds of a structure."""
  key = config, parts, model, loss, entries, turnout
  step = _round(*key, num_recorded).step
  specs = _init(*key, (1.0,) * num_recorded, mesh)[1]
  # Every process reads the infos of all clients.
  everywhere = NamedSharding(mesh, EVERYWHERE)
  return jax.jit(
      rounds_in_a_row(step, length),
      donate_argnums=1,
      out_shardings=(devices.shardings(specs, mesh), everywhere, everywhere),
  )


@functools.lru_cache(maxsize=16)
def _init(config, parts, model, loss, entries, turnout, recorded, mesh: Mesh):
  """The compiled init, (root key, Numbers, N) -> state, and its specs."""
  del entries
  of = functools.partial(compose, config, parts, model, loss)

  def init(key, numbers, num_clients):
    return of(numbers, recorded, turnout).init(key, num_clients)

  specs = of(_any_numbers(), recorded, turnout).specs
  compiled = jax.jit(
      init, static_argnums=2, out_shardings=devices.shardings(specs, mesh)
  )
  return compiled, specs


def _any_numbers():
  """Numbers for results that do not depend on them."""
  return Numbers(*[jnp.float32(1.0)] * len(Numbers._fields))


def recorded_ks(config: Config, dim: int) -> tuple[float, ...]:
  """k of each round of the run to replay; without such a run, one number.

  Raises:
    ConfigError: `config.replay` has no run, or a k outside 1..D, D = `dim`.
  """
  if config.replay is None:
    return (1.0,)
  ks = tuple(float(row["k"]) for row in read_run(config.replay).rows)
  require(
      ks and all(1 <= k <= dim for k in ks),
      "replay",
      config.replay,
      f"a run whose k lie from 1 to the model's {dim:,} weights",
  )
  return ks
