"""A whole run: from settings and data to a stream of rows."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agsfl import controllers, models, sparsifiers
from agsfl.client import as_float
from agsfl.config import Config
from agsfl.data import FederatedData
from agsfl.rounds import CLIENT_CHUNK, build_round
from agsfl.types import KController, Model, RoundInfo, RoundState, Sparsifier

_EVAL_BATCH = 250


class DivergedError(RuntimeError):
  """A gradient was not finite; the text names the round."""


class Evaluation(NamedTuple):
  """Losses and accuracy of the global model; all floats.

  Attributes:
    train_loss: L(w) over all training samples, nats.
    test_loss: mean over the test samples, nats.
    test_accuracy: share of test samples classified right.
  """

  train_loss: float
  test_loss: float
  test_accuracy: float


class Step(NamedTuple):
  """What a run yields after each round.

  Attributes:
    info: the round's RoundInfo, NumPy.
    evaluation: an Evaluation, or None between evaluations.
  """

  info: RoundInfo
  evaluation: Evaluation | None


def build_sparsifier(config: Config) -> Sparsifier:
  """The sparsifier that the settings name."""
  return {"fab_top_k": sparsifiers.fab_top_k}[config.method]()


def build_controller(config: Config, dim: int) -> KController:
  """The controller that the settings name, for a model of `dim` weights.

  Raises:
    ConfigError: k or its interval does not fit the model.
  """
  k_min, k_max = config.k_interval(dim)
  return {
      "fixed": lambda: controllers.fixed(config.k),
      "sign": lambda: controllers.sign_descent(config.k, k_min, k_max),
      "sign_interval": lambda: controllers.sign_interval(
          config.k, k_min, k_max
      ),
  }[config.controller]()


def _in_batches(images, labels):
  """[T, ...] samples -> batches padded with weight 0."""
  count = len(labels)
  num_batches = -(-count // _EVAL_BATCH)
  padding = num_batches * _EVAL_BATCH - count
  split = lambda x: np.concatenate(
      [x, np.zeros((padding, *x.shape[1:]), x.dtype)]
  ).reshape(num_batches, _EVAL_BATCH, *x.shape[1:])
  weights = np.ones(count, np.float32) / count
  return split(images), split(labels), split(weights)


def build_evaluate(
    model: Model, data: FederatedData
) -> Callable[[jax.Array], Evaluation]:
  """The evaluation of a weight vector on all data.

  Args:
    model: the network.
    data: training and test samples.

  Returns:
    params [D] -> Evaluation.
  """
  clients = data.clients
  counts = np.asarray(clients.counts)
  own = np.arange(clients.labels.shape[1]) < counts[:, None]
  train = jax.device_put(
      _in_batches(clients.images[own], clients.labels[own])
  )
  test = jax.device_put(_in_batches(data.test_images, data.test_labels))

  def mean_over(params, batches):
    def one(batch):
      images, labels, weights = batch
      logits = model.apply(params, as_float(images))
      losses = models.sample_losses(logits, labels)
      right = jnp.argmax(logits, axis=1) == labels
      return jnp.sum(weights * losses), jnp.sum(weights * right)

    losses, right = lax.map(one, batches)
    return jnp.sum(losses), jnp.sum(right)

  mean_over = jax.jit(mean_over)

  def evaluate(params):
    train_loss, _ = mean_over(params, train)
    test_loss, accuracy = mean_over(params, test)
    return Evaluation(float(train_loss), float(test_loss), float(accuracy))

  return evaluate


class Simulation(NamedTuple):
  """A run made ready; nothing of it is computed yet.

  Attributes:
    model: the network.
    state: the RoundState before round 1.
    step: jitted state -> (state, RoundInfo); it consumes the state given.
    evaluate: params -> Evaluation.
  """

  model: Model
  state: RoundState
  step: Callable[[RoundState], tuple[RoundState, RoundInfo]]
  evaluate: Callable[[jax.Array], Evaluation]


def build(config: Config, data: FederatedData) -> Simulation:
  """Puts a run together.

  Args:
    config: the settings.
    data: from `data.load`.

  Returns:
    The simulation.

  Raises:
    ConfigError: k or its interval does not fit the model.
  """
  image_shape = data.clients.images.shape[2:]
  model = models.build(config.model, image_shape, data.num_classes)
  simulated = build_round(
      model,
      build_sparsifier(config),
      build_controller(config, model.dim),
      learning_rate=config.learning_rate,
      batch_size=config.batch_size,
      comm_time=config.comm_time,
      client_chunk=config.client_chunk
      or CLIENT_CHUNK.get(jax.default_backend()),
  )
  root_key = jax.random.key(config.seed)
  clients = jax.device_put(data.clients)
  step = jax.jit(simulated.step, donate_argnums=2)
  return Simulation(
      model=model,
      # Jitted, so that no two leaves share a buffer: the step donates them.
      state=jax.jit(simulated.init, static_argnums=1)(
          root_key, len(data.clients.counts)
      ),
      step=lambda state: step(root_key, clients, state),
      evaluate=build_evaluate(model, data),
  )


def run(config: Config, simulation: Simulation) -> Iterator[Step]:
  """Runs rounds until their number or the time budget is spent.

  Args:
    config: `num_rounds`, `time_budget` and `eval_every` are read.
    simulation: from `build`; its state is consumed.

  Yields:
    A Step per round.

  Raises:
    DivergedError: a gradient was not finite.
  """
  state = simulation.state
  for round_index in range(1, config.num_rounds + 1):
    state, info = simulation.step(state)
    info = jax.device_get(info)
    if not info.finite:
      raise DivergedError(
          f"round {round_index}: a gradient is not finite; a smaller "
          f"--learning_rate than {config.learning_rate} may help"
      )
    spent = config.time_budget and info.elapsed >= config.time_budget
    last = round_index == config.num_rounds or bool(spent)
    due = last or round_index % config.eval_every == 0
    yield Step(info, simulation.evaluate(state.params) if due else None)
    if last:
      return


def as_row(step: Step) -> dict[str, Any]:
  """A Step as one flat JSON object; per-client counts are left out.

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
    row |= step.evaluation._asdict()
  return row
