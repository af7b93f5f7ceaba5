"""Compiled programs of runs, and runs made ready on devices."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from agsfl import devices, platforms
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import FederatedData, validated
from agsfl.errors import refused, require
from agsfl.files import expanded
from agsfl.for_each_client import EVERYWHERE
from agsfl.layout import layout_of
from agsfl.parts import Numbers, Parts, build_model, compose, numbers_of
from agsfl.records.read import read_run
from agsfl.rounds import Metric, Round, rounds_in_a_row
from agsfl.settings import LARGEST
from agsfl.sparsifiers import METHODS
from agsfl.training.evaluation import Evaluation, build_evaluate
from agsfl.training.models import sample_losses
from agsfl.types import (
  KController,
  Loss,
  Model,
  RoundInfo,
  RoundState,
  Sparsifier,
)


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
    unpack: a list of saved states, NumPy, one for each run -> state.
  """

  model: Model
  state: RoundState
  advance: Callable[[RoundState, int], tuple[RoundState, list[list[RoundInfo]]]]
  rounds_per_call: int
  evaluate: list[Callable[[jax.Array], Evaluation]]
  lane: Callable[[RoundState, int], RoundState]
  pack: Callable[[RoundState], Any]
  unpack: Callable[[list[Any]], RoundState]


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
    config: Config, data: FederatedData, parts: Parts
) -> Simulation:
  """`build` with all parts as one argument."""
  num_clients = len(data.client_names)
  network = build_model(config, parts, data)
  programs = Programs(config, parts, network, num_clients)
  layout = layout_of([data], programs.mesh)
  placed = devices.place_clients(data.clients, programs.mesh, layout)
  state = programs.init(config)
  budget = budget_of(config)

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
      evaluate=[build_evaluate(network, data, placed, layout, programs.loss)],
      lane=lambda state, index: state,
      pack=programs.pack,
      unpack=lambda saved: programs.unpack(saved[0], state),
  )


def budget_of(config: Config) -> jax.Array:
  """The time budget, [] f32; without one, a time that no run reaches."""
  return jnp.float32(config.time_budget or LARGEST)


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
    step: one round, not compiled.
    loss: of samples.
  """

  def __init__(
      self, config: Config, parts: Parts, model: Model, num_clients: int
  ):
    """Finds the programs; new ones are traced when they are first called."""
    self._numbers = numbers_of(config, model.dim)
    self._num_clients = num_clients
    self._model = model
    self.mesh = devices.client_mesh(
        devices.count_for(config.num_devices, num_clients)
    )
    length = config.rounds_per_call or platforms.rounds_per_call()
    self.length = int(min(length, config.eval_every, config.num_rounds))
    self.loss: Loss = parts.loss or sample_losses

    # What the programs depend on; a name may be registered again.
    entries = METHODS[config.method], CONTROLLERS[config.used_controller]
    key = (config.structure(), parts._replace(model=None), model, entries)
    ks = recorded_ks(config, model.dim)
    self._init, self.specs = _init(*key, ks, self.mesh)
    self.run = _run(*key, self.mesh, self.length, len(ks))
    self.step = _round(*key, len(ks)).step

  def init(self, config: Config) -> RoundState:
    """The state before round 1, on the devices."""
    padded = self._num_clients + -self._num_clients % self.mesh.size
    with jax.set_mesh(self.mesh):
      state = self._init(jax.random.key(config.seed), self._numbers, padded)
    if config.init_from is None:
      return state
    weights = initial_weights(config.init_from, self._model.dim)
    return state.replace(params=jax.device_put(weights, state.params.sharding))

  def pack(self, state: RoundState) -> Any:
    """See `Simulation`."""
    return devices.without_padding(state, self.specs, self._num_clients)

  def unpack(self, saved: Any, like: RoundState) -> RoundState:
    """See `Simulation`."""
    return devices.with_padding(saved, like, self.specs)


@functools.lru_cache(maxsize=16)
def _round(config, parts, model, entries, num_recorded) -> Round:
  """The round of a structure; its step does not depend on the numbers."""
  del entries
  return compose(config, parts, model, _any_numbers(), (1.0,) * num_recorded)


@functools.lru_cache(maxsize=16)
def _run(config, parts, model, entries, mesh: Mesh, length, num_recorded):
  """The compiled rounds of a structure."""
  step = _round(config, parts, model, entries, num_recorded).step
  specs = _init(config, parts, model, entries, (1.0,) * num_recorded, mesh)[1]
  # Every process reads the infos of all clients.
  everywhere = NamedSharding(mesh, EVERYWHERE)
  return jax.jit(
      rounds_in_a_row(step, length),
      donate_argnums=1,
      out_shardings=(devices.shardings(specs, mesh), everywhere, everywhere),
  )


@functools.lru_cache(maxsize=16)
def _init(config, parts, model, entries, recorded, mesh: Mesh):
  """The compiled init, (root key, Numbers, N) -> state, and its specs."""
  del entries

  def init(key, numbers, num_clients):
    one = compose(config, parts, model, numbers, recorded)
    return one.init(key, num_clients)

  specs = devices.specs_of(
      lambda n: init(jax.random.key(0), _any_numbers(), n)
  )
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


def initial_weights(place: str, dim: int) -> np.ndarray:
  """Weights to begin with.

  Args:
    place: the folder of a finished run, or a NumPy file.
    dim: D.

  Returns:
    [D] f32.

  Raises:
    ConfigError: there are no weights, or they do not fit the model.
  """
  path = expanded(place)
  with refused(
      f"--init_from={place}",
      "must be the folder of a finished run, or a file of NumPy",
      (OSError, ValueError, EOFError),
  ):
    if path.is_dir():
      weights = read_run(path).params
    else:
      weights = np.load(path, allow_pickle=False)
    weights = np.asarray(weights, np.float32)
  require(
      weights.shape == (dim,) and np.isfinite(weights).all(),
      "init_from",
      place,
      f"{dim:,} finite weights, as this model has; it holds "
      f"{list(weights.shape)}",
  )
  return weights
