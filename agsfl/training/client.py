"""ONE client: its minibatch and its gradient. No client axis in this file."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agsfl.data.federated import ClientData
from agsfl.training.models import sample_losses
from agsfl.types import Model


class LocalResult(NamedTuple):
  """What a client computes in a round.

  Attributes:
    gradient: [D] f32, of the minibatch's mean loss at w(m-1); after several
      local steps minus the sum of their updates over eta, which for plain SGD
      is the sum of gradients.
    loss: [] f32, of the first minibatch at w(m-1).
    image: [...] f32, one sample h of that minibatch.
    label: [] i32, its label.
  """

  gradient: jax.Array
  loss: jax.Array
  image: jax.Array
  label: jax.Array


class LocalTraining(NamedTuple):
  """Several steps at each client between two exchanges.

  Attributes:
    steps: tau, at least 1.
    optimizer: of the client; it begins anew every round.
    learning_rate: eta, in whose unit the update is told.
  """

  steps: int
  optimizer: optax.GradientTransformation
  learning_rate: float


def as_float(images: jax.Array) -> jax.Array:
  """uint8 images scaled to [0, 1]; other types as float32, unscaled."""
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255.0
  return images.astype(jnp.float32)


def build_client(
    model: Model, batch_size: int, training: LocalTraining | None = None
) -> Callable[..., LocalResult]:
  """The client's work as a pure function.

  Minibatches are drawn uniformly with replacement: each is an unbiased
  gradient given the weights, as the analysis assumes, any number of samples
  will do, and a draw depends on nothing but its key, so that a resumed run
  needs no position in an epoch.

  Args:
    model: the network.
    batch_size: samples per minibatch.
    training: None for one gradient.

  Returns:
    (key, params [D], ClientData, start [], count []) -> LocalResult; the
    client's own samples are order[start : start + count] of the data.

  Source: one gradient: Han, Wang, Leung, ICDCS 2020, Alg. 1; several steps:
  McMahan et al., "Communication-Efficient Learning of Deep Networks from
  Decentralized Data", AISTATS 2017.
  """

  def loss_of(params, images, labels):
    return jnp.mean(sample_losses(model.apply(params, images), labels))

  gradient_of = jax.value_and_grad(loss_of)

  def local_result(key, params, data: ClientData, start, count):
    def draw(key):
      chosen = jax.random.randint(key, (batch_size,), 0, count)
      rows = data.order[start + chosen]
      return as_float(data.images[rows]), data.labels[rows]

    batch = draw(key)
    loss, gradient = gradient_of(params, *batch)

    def gradient_at(step, params):
      return gradient_of(params, *draw(jax.random.fold_in(key, step)))[1]

    if training is not None:
      gradient = _train(training, params, gradient, gradient_at)
    # The draws are independent, so the first is as random as any other.
    return LocalResult(gradient, loss, batch[0][0], batch[1][0])

  return local_result


def _train(training, start, gradient, gradient_at):
  """The steps from `start`, whose gradient is known already."""
  optimizer = training.optimizer

  # Not the weights but their way is carried: beside a large weight, steps
  # below half its last place would be lost.
  def step(index, carry):
    way, state = carry
    params = start + way
    updates, state = optimizer.update(
        gradient_at(index, params), state, params
    )
    return way + updates, state

  first = optimizer.update(gradient, optimizer.init(start), start)
  way, _ = lax.fori_loop(1, training.steps, step, first)
  return -way / training.learning_rate
