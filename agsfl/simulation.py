"""A whole run: from settings and data to a stream of rows."""

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from agsfl import devices, parts
from agsfl.config import Config
from agsfl.data.federated import FederatedData
from agsfl.errors import ConfigError, DivergedError
from agsfl.over_clients import CLIENT_CHUNK
from agsfl.programs import ROUNDS_PER_CALL
from agsfl.rounds import Round
from agsfl.training.evaluation import Evaluation, build_evaluate
from agsfl.types import Model, RoundInfo, RoundState


class Step(NamedTuple):
  """What a run yields after each round.

  Attributes:
    info: the round's RoundInfo, NumPy.
    evaluation: an Evaluation, or None between evaluations.
    seconds: wall time of the round, a mean over the rounds of its call;
      evaluation is not in it.
    state: the RoundState after it, until the next Step is asked for; None
      inside a call of several rounds.
    last: whether the run ends with it.
  """

  info: RoundInfo
  evaluation: Evaluation | None
  seconds: float
  state: RoundState | None
  last: bool


class Simulation(NamedTuple):
  """A run made ready; nothing of it is computed yet.

  Attributes:
    model: the network.
    state: the RoundState before round 1.
    advance: (state, num_rounds) -> (state, the RoundInfo of each round done,
      NumPy); it consumes the state given.
    rounds_per_call: num_rounds at most.
    evaluate: params -> Evaluation.
    pack: RoundState -> the same for any number of devices, to be kept.
    unpack: that, as NumPy arrays -> RoundState.
  """

  model: Model
  state: RoundState
  advance: Callable[[RoundState, int], tuple[RoundState, list[RoundInfo]]]
  rounds_per_call: int
  evaluate: Callable[[jax.Array], Evaluation]
  pack: Callable[[RoundState], RoundState]
  unpack: Callable[[RoundState], RoundState]


@dataclasses.dataclass(frozen=True)
class Program:
  """What decides a compiled program: equal ones are built once.

  Attributes:
    common: from `parts.alike`, and a replayed sequence of k.
    config: any run of them.
    model, mesh, client_chunk, length: as the functions take them.
  """

  common: tuple
  config: Config = dataclasses.field(compare=False)
  model: Model
  mesh: Mesh
  client_chunk: int | None
  length: int


@functools.lru_cache(maxsize=16)
def split_round(program: Program) -> devices.SplitRound:
  """The compiled rounds of a program; the newest ones are kept."""
  config = program.config
  build_one = functools.partial(
      parts.compose, config, program.model, program.client_chunk
  )
  # The key and the numbers go together to where a round takes its key.
  simulated = Round(
      init=lambda root, size: build_one(root[1]).init(root[0], size),
      step=lambda root, *rest: build_one(root[1]).step(root[0], *rest),
  )
  return devices.split_round(
      simulated, program.length, program.mesh, parts.root_of(config)
  )


def build(config: Config, data: FederatedData) -> Simulation:
  """Puts a run together.

  Runs of one process whose settings are `parts.alike` share compiled programs.

  Args:
    config: the settings.
    data: from `data.load`.

  Returns:
    The simulation.

  Raises:
    ConfigError: k or its interval does not fit the model, or there are fewer
      devices.
  """
  model = parts.build_model(config, data)
  config.k_interval(model.dim)
  platform = jax.default_backend()
  num_clients = len(data.clients.counts)
  mesh = devices.client_mesh(num_devices(config, num_clients))
  length = config.rounds_per_call or ROUNDS_PER_CALL.get(platform, math.inf)
  length = min(length, config.eval_every, config.num_rounds)
  replayed = ()
  if config.replay is not None:
    replayed = tuple(parts.recorded_ks(config.replay, model.dim))
  split = split_round(
      Program(
          common=(*parts.alike(config), replayed),
          config=config,
          model=model,
          mesh=mesh,
          client_chunk=config.client_chunk or CLIENT_CHUNK.get(platform),
          length=length,
      )
  )
  root = parts.root_of(config)
  clients = devices.split_clients(data.clients, mesh)
  budget = jnp.float32(config.time_budget or math.inf)

  def advance(state, num_rounds):
    state, infos, done = split.chunk(
        root, clients, state, jnp.int32(num_rounds), budget
    )
    infos, done = jax.device_get((infos, done))
    infos = infos._replace(contributed=infos.contributed[:, :num_clients])
    return state, [RoundInfo(*(x[i] for x in infos)) for i in range(done)]

  state = split.init(root, len(clients.counts))
  return Simulation(
      model=model,
      state=state,
      advance=advance,
      rounds_per_call=length,
      evaluate=build_evaluate(model, data, clients, mesh),
      pack=lambda state: devices.unpadded(state, split.specs, num_clients),
      unpack=lambda kept: devices.padded(kept, state, split.specs, mesh),
  )


def num_devices(config: Config, num_clients: int) -> int:
  """How many devices share the clients.

  Raises:
    ConfigError: there are fewer.
  """
  available = jax.device_count()
  asked = config.num_devices or min(available, num_clients)
  if asked > available:
    raise ConfigError(
        f"--num_devices={asked}: must be at most {available}, the "
        f"{jax.default_backend()} devices that JAX sees"
    )
  return asked


def run(
    config: Config, simulation: Simulation, done: int = 0, every: int = 0
) -> Iterator[Step]:
  """Runs rounds until their number or the time budget is spent.

  Args:
    config: `num_rounds`, `time_budget` and `eval_every` are read.
    simulation: from `build`; its state is consumed.
    done: rounds of `num_rounds` that lie behind its state.
    every: a Step after each so many rounds has a state; 0 for no such.

  Yields:
    A Step per round.

  Raises:
    DivergedError: a gradient or the loss was not finite.
  """
  state = simulation.state
  while True:
    until = [n - done % n for n in (config.eval_every, every) if n]
    length = min(
        simulation.rounds_per_call, *until, config.num_rounds - done
    )
    start = time.perf_counter()
    state, infos = simulation.advance(state, length)
    seconds = (time.perf_counter() - start) / len(infos)
    for info, left in zip(infos, reversed(range(len(infos))), strict=True):
      done += 1
      if not info.finite:
        raise DivergedError(diverged(done, "a gradient", config))
      spent = config.time_budget and info.elapsed >= config.time_budget
      last = done == config.num_rounds or bool(spent)
      due = last or done % config.eval_every == 0
      evaluation = simulation.evaluate(state.params) if due else None
      if due and not math.isfinite(evaluation.train_loss):
        raise DivergedError(diverged(done, "the loss", config))
      yield Step(info, evaluation, seconds, None if left else state, last)
      if last:
        return


def diverged(round_index: int, what: str, config: Config) -> str:
  """Says so, and what may help."""
  return (
      f"round {round_index}: {what} is not finite; a smaller "
      f"--learning_rate than {config.learning_rate} may help"
  )


def as_row(step: Step) -> dict[str, Any]:
  """A Step as one flat JSON object; what is per client is left out.

  Args:
    step: from `run`.

  Returns:
    The row; `sign` is None where none was had.
  """
  info = step.info
  row = {
      "round": int(info.round_index),
      "time": float(info.elapsed),
      "k": float(info.k),
      "k_probe": float(info.k_probe),
      "k_up": int(info.k_up),
      "k_down": int(info.k_down),
      "minibatch_loss": float(info.minibatch_loss),
      "sign": None if np.isnan(info.sign) else int(info.sign),
  }
  if step.evaluation is not None:
    evaluation = step.evaluation._asdict()
    row |= {name: x for name, x in evaluation.items() if np.ndim(x) == 0}
  return row
