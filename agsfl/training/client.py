"""ONE client: its minibatch and its gradient. No client axis in this file.

The authors' code takes shuffled epochs; see "Differences from the authors'
code" in experiments/paper/README.md.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from jax import lax

from agsfl.data.federated import ClientData
from agsfl.training.fast import faster
from agsfl.training.models import sample_losses
from agsfl.types import Loss, Model


class LocalResult(NamedTuple):
  """What a client computes in a round.

  Attributes:
    gradient: [D] f32, of the minibatch's mean loss at w(m-1). After several
      local steps it is minus the sum of their updates, divided by eta; for
      plain SGD that is the sum of gradients.
    loss: [] f32, of the first minibatch at w(m-1).
    sample: [...] f32, the features of one sample h of that minibatch.
    label: [] i32, its label.
    steps: [] i32, local gradients computed; 0 without samples.
    seen: [] i32, samples in all of these minibatches together.
  """

  gradient: jax.Array
  loss: jax.Array
  sample: jax.Array
  label: jax.Array
  steps: jax.Array
  seen: jax.Array


class LocalTraining(NamedTuple):
  """Several steps at each client between two exchanges.

  Attributes:
    steps: tau, at least 1.
    optimizer: of the client, with a learning rate of 1, because eta comes from
      the round's state. It starts from its initial state in every round.
  """

  steps: int
  optimizer: optax.GradientTransformation


class Client(Protocol):
  """The work of one client in one round."""

  def __call__(
      self,
      key: jax.Array,
      params: jax.Array,
      data: ClientData,
      start: jax.Array,
      count: jax.Array,
      learning_rate: jax.Array,
      /,
  ) -> LocalResult:
    """Its samples are order[start : start + count]; learning_rate is eta."""


def as_float(features: jax.Array) -> jax.Array:
  """uint8 features scaled to [0, 1]; other types as float32, unscaled."""
  if features.dtype == jnp.uint8:
    return features.astype(jnp.float32) / 255.0
  return features.astype(jnp.float32)


def build_client(
    model: Model,
    batch_size: int,
    training: LocalTraining | None = None,
    loss: Loss = sample_losses,
) -> Client:
  """The client's work as a pure function.

  Minibatches are drawn uniformly with replacement. So each gives an unbiased
  gradient, as the analysis assumes, and any number of samples is enough. A draw
  depends only on its key, so a resumed run needs no position in an epoch.

  Args:
    model: the network.
    batch_size: samples per minibatch.
    training: None for one gradient; eta then has no effect.
    loss: of samples.

  Returns:
    (key, params [D], ClientData, start [] i32, count [] i32, learning_rate []
    f32) -> LocalResult; the client's own samples are order[start : start +
    count] of the data.

  Source: one gradient: Han, Wang, Leung, ICDCS 2020, Alg. 1; several steps:
  McMahan et al., "Communication-Efficient Learning of Deep Networks from
  Decentralized Data", AISTATS 2017.
  """

  def loss_of(params, features, labels):
    return jnp.mean(loss(model.apply(params, features), labels))

  gradient_of = faster(jax.value_and_grad(loss_of))

  def local_result(key, params, data, start, count, learning_rate):
    def draw(key):
      chosen = jax.random.randint(key, (batch_size,), 0, count, jnp.int32)
      features, labels = data.samples(data.order[start + chosen])
      return as_float(features), labels

    # Alg. 1: the gradient of one minibatch at w(m-1).
    batch = draw(key)
    first_loss, gradient = gradient_of(params, *batch)

    def gradient_at(step, params):
      return gradient_of(params, *draw(jax.random.fold_in(key, step)))[1]

    if training is not None:
      gradient = _train(training, params, gradient, gradient_at, learning_rate)

    # A client without samples takes no part, so it computes nothing.
    steps = 1 if training is None else training.steps
    steps = jnp.where(count > 0, jnp.int32(steps), 0)

    # Sec. IV: the sample h. Draws are independent, so the first one will do.
    return LocalResult(
        gradient, first_loss, batch[0][0], batch[1][0], steps,
        steps * jnp.int32(batch_size),
    )

  return local_result


def _train(training, start, gradient, gradient_at, learning_rate):
  """All local steps; `gradient` is that of the first one, at `start`."""
  optimizer = training.optimizer

  # Carry the displacement, not the weights: a tiny step added to a large
  # float32 is rounded away.
  def step(index, carry):
    displacement, state = carry
    params = start + displacement
    updates, state = optimizer.update(
        gradient_at(index, params), state, params
    )
    return displacement + learning_rate * updates, state

  updates, state = optimizer.update(gradient, optimizer.init(start), start)
  displacement, _ = lax.fori_loop(
      1, training.steps, step, (learning_rate * updates, state)
  )
  return -displacement / learning_rate
