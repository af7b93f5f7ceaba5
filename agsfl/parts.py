"""The parts of a run that its settings name, and the round made of them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from agsfl import devices
from agsfl.config import Config
from agsfl.controllers import bandits
from agsfl.controllers import descent as controllers
from agsfl.data.federated import FederatedData
from agsfl.errors import ConfigError
from agsfl.records.folder import read_rows
from agsfl.rounds import Round, build_round
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.sparsifiers.per_layer import per_layer
from agsfl.training import models
from agsfl.training.client import LocalTraining
from agsfl.training.optimizers import OPTIMIZERS
from agsfl.types import KController, Model, Sparsifier


class Numbers(NamedTuple):
  """Settings that decide no shape: programs take them as arguments.

  So runs that differ in them, or in the seed, share a compiled program.

  Attributes:
    learning_rate, comm_time, k: as in `Config`, or traced.
  """

  learning_rate: float | jax.Array
  comm_time: float | jax.Array
  k: float | jax.Array


def numbers_of(config: Config) -> Numbers:
  """The numbers that the settings name, f32."""
  return Numbers(
      *(jnp.float32(getattr(config, name)) for name in Numbers._fields)
  )


def root_of(config: Config) -> tuple[jax.Array, Numbers]:
  """All that a compiled program takes of the settings."""
  return jax.random.key(config.seed), numbers_of(config)


def alike(config: Config) -> tuple:
  """What runs must have in common to share a compiled program.

  Args:
    config: the settings.

  Returns:
    All but the seed and the `Numbers`; hashable.
  """
  # FedAvg's steps are a loop whose length follows from k.
  kept = {"k"} if config.method == "fedavg" else set()
  differ = {"seed", *Numbers._fields} - kept
  settings = dataclasses.asdict(config).items()
  return tuple(item for item in settings if item[0] not in differ)


def build_model(config: Config, data: FederatedData) -> Model:
  """The network that the settings name, for these images and classes."""
  shape = data.clients.images.shape[1:]
  return models.build(
      config.model, shape, data.num_classes, config.standardize
  )


def build_sparsifier(
    config: Config,
    model: Model,
    axes: tuple[str, ...],
    client_chunk: int | None,
) -> Sparsifier:
  """The sparsifier that the settings name, for clients split over `axes`."""
  name = "send_all" if config.method == "fedavg" else config.method
  sparsifier = sparsifiers.METHODS[name].build(axes, client_chunk)
  return per_layer(sparsifier, model.sizes) if config.per_layer else sparsifier


def build_controller(
    config: Config, dim: int, k: float | jax.Array
) -> KController:
  """The controller that the settings name, for a model of `dim` weights.

  Args:
    config: the settings, but for k.
    dim: D.
    k: the first.

  Raises:
    ConfigError: k or its interval does not fit the model, or a record to
      replay is none.
  """
  interval = config.k_interval(dim)
  horizon, stuck = config.num_rounds, config.stuck_rounds
  return {
      "fixed": lambda: controllers.fixed(k),
      "sign": lambda: controllers.sign_descent(k, *interval, stuck),
      "sign_interval": lambda: controllers.sign_interval(
          k, *interval, stuck_rounds=stuck
      ),
      "value": lambda: controllers.value_descent(k, *interval),
      "exp3": lambda: bandits.exp3(*interval, horizon, config.exp3_arms),
      "bandit": lambda: bandits.bandit(
          k,
          *interval,
          horizon,
          radius=config.bandit_radius,
          step=config.bandit_step,
      ),
      "replay": lambda: controllers.replay(recorded_ks(config.replay, dim)),
  }[config.used_controller]()


def recorded_ks(workdir: str, dim: int) -> list[float]:
  """k of each round of the run in a folder, to be replayed.

  Raises:
    ConfigError: it holds none, or one beyond D = `dim`.
  """
  try:
    ks = [float(row["k"]) for row in read_rows(workdir)]
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
        f"--replay={workdir}: must be the folder of a run ({error!r})"
    ) from error
  if not ks or not all(1 <= k <= dim for k in ks):
    raise ConfigError(
        f"--replay={workdir}: must record k from 1 to the model's {dim} weights"
    )
  return ks


def build_server(
    config: Config, learning_rate: float | jax.Array
) -> optax.GradientTransformation:
  """What applies the aggregate to the weights."""
  return OPTIMIZERS[config.server_optimizer](
      config.server_learning_rate or learning_rate
  )


def build_training(
    config: Config, dim: int, learning_rate: float | jax.Array
) -> LocalTraining | None:
  """What clients do between exchanges; None for one plain gradient."""
  steps = config.used_local_steps(dim)
  if steps == 1 and config.local_optimizer == "sgd":
    return None
  optimizer = OPTIMIZERS[config.local_optimizer](learning_rate)
  return LocalTraining(steps, optimizer, learning_rate)


def compose(
    config: Config,
    model: Model,
    client_chunk: int | None,
    numbers: Numbers,
    axes: tuple[str, ...] = (devices.AXIS,),
) -> Round:
  """The round that the settings name.

  Args:
    config: the settings, but for the numbers.
    model: the network.
    client_chunk: see `over_clients.map_clients`.
    numbers: perhaps traced.
    axes: mesh axes over which clients are split; () for none.

  Returns:
    The round.

  Raises:
    ConfigError: k or its interval does not fit the model.
  """
  rate = numbers.learning_rate
  return build_round(
      model,
      build_sparsifier(config, model, axes, client_chunk),
      build_controller(config, model.dim, numbers.k),
      server=build_server(config, rate),
      training=build_training(config, model.dim, rate),
      batch_size=config.batch_size,
      comm_time=numbers.comm_time,
      client_chunk=client_chunk,
      axes=axes,
  )
