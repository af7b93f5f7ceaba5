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
from agsfl.errors import require
from agsfl.tasks import cross_entropy, losses_of
from agsfl.training import epochs
from agsfl.training.augmentation import Augment
from agsfl.training.fast import faster
from agsfl.types import Loss, Model

# Folded into a client's key for what is random beside its minibatches.
_NOISE = 0xFFFFFFFF


class Minibatch(NamedTuple):
  """The samples of one local step.

  Attributes:
    features: [B, ...], as the network takes them.
    labels: [B, ...].
    weights: [B] f32 of the samples in the mean, which sum to 1; None if all
      count alike.
    key: of the network's random numbers; None if it draws none.
  """

  features: jax.Array
  labels: jax.Array
  weights: jax.Array | None
  key: jax.Array | None


class LocalResult(NamedTuple):
  """What a client computes in a round.

  Attributes:
    gradient: [D] f32, of the minibatch's mean loss at w(m-1). With
      `LocalTraining` it is minus the sum of the optimiser's updates at a
      learning rate of 1; for plain SGD that is the sum of gradients. The client
      ends at w(m-1) minus eta times this.
    loss: [] f32, of the first minibatch at w(m-1).
    sample: [...], the features of one sample h of that minibatch.
    label: its label.
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
    steps: tau, at least 1; None with `epochs`.
    optimizer: of the client, with a learning rate of 1, because eta comes from
      the round's state. It starts from its initial state in every round.
    epochs: E, at least 1: each client makes E passes over its own samples,
      which are E ceil(C_i / B) steps. None with `steps`.
    without_replacement: whether `steps` take their minibatches from such passes
      too. A round always begins a new pass.
  """

  steps: int | None
  optimizer: optax.GradientTransformation
  epochs: int | None = None
  without_replacement: bool = False

  @property
  def in_epochs(self) -> bool:
    """Whether minibatches come from passes over the client's samples."""
    return self.without_replacement or self.epochs is not None


# The work of a client without `LocalTraining`, which has no optimiser.
_ONE_GRADIENT = LocalTraining(1, optax.identity())


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


def as_input(features: jax.Array) -> jax.Array:
  """Features as networks take them.

  Args:
    features: of the types of `samples.Samples`.

  Returns:
    uint8 scaled to [0, 1] f32, other whole numbers as i32, the rest as f32.
  """
  if features.dtype == jnp.uint8:
    return features.astype(jnp.float32) / 255.0
  whole = jnp.issubdtype(features.dtype, jnp.integer)
  return features.astype(jnp.int32 if whole else jnp.float32)


def work_of(
    training: LocalTraining | None, batch_size: int, count: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """How much a client computes in a round.

  Args:
    training: see `build_client`.
    batch_size: B.
    count: [...] i32, C_i; one without samples computes nothing.

  Returns:
    (steps, seen), [...] i32 each, see `LocalResult`.
  """
  training = training or _ONE_GRADIENT
  steps: int | jax.Array | None = training.steps
  if training.epochs is not None:
    steps = training.epochs * epochs.batches_per_epoch(count, batch_size)
  steps = jnp.where(count > 0, jnp.int32(steps), 0)
  if training.in_epochs:
    return steps, epochs.samples_in(steps, count, batch_size)
  return steps, steps * jnp.int32(batch_size)


def build_client(
    model: Model,
    batch_size: int,
    training: LocalTraining | None = None,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
) -> Client:
  """The client's work as a pure function.

  Minibatches are drawn uniformly with replacement. So each gives an unbiased
  gradient, as the analysis assumes, and any number of samples is enough. A draw
  depends only on its key, so a resumed run needs no position in an epoch.
  `LocalTraining` may ask for epochs instead; see `epochs.batch_of`.

  Args:
    model: the network.
    batch_size: B, samples per minibatch.
    training: None for one gradient; eta then has no effect.
    loss: of samples.
    augment: of the features of each minibatch; None leaves them as they are.

  Returns:
    (key, params [D], ClientData, start [] i32, count [] i32, learning_rate []
    f32) -> LocalResult; the client's own samples are order[start : start +
    count] of the data. eta may be 0.

  Raises:
    ConfigError: `training` has both steps and epochs, or neither.

  Source: one gradient: Han, Wang, Leung, ICDCS 2020, Alg. 1; several steps:
  McMahan et al., "Communication-Efficient Learning of Deep Networks from
  Decentralized Data", AISTATS 2017.
  """
  if training is not None:
    require(
        (training.steps is None) != (training.epochs is None),
        "training",
        f"steps {training.steps}, epochs {training.epochs}",
        "one of the two",
    )
  in_epochs = training is not None and training.in_epochs

  def loss_of(params, batch):
    noise = () if batch.key is None else (batch.key, True)
    outputs = model.apply(params, batch.features, *noise)
    losses = losses_of(loss, outputs, batch.labels)
    if batch.weights is None:
      return jnp.mean(losses)
    return jnp.sum(batch.weights * losses)

  gradient_of = faster(jax.value_and_grad(loss_of))

  def local_result(key, params, data, start, count, learning_rate):
    def draw(step, step_key):
      """The minibatch of a step."""
      if in_epochs:
        chosen, weights = epochs.batch_of(key, step, count, batch_size)
      else:
        shape, weights = (batch_size,), None
        chosen = jax.random.randint(step_key, shape, 0, count, jnp.int32)
      features, labels = data.samples(data.order[start + chosen])
      noise = jax.random.fold_in(jax.random.fold_in(key, _NOISE), step)
      key_augment, key_network = jax.random.split(noise)
      if augment is not None:
        features = augment(key_augment, features)
      return Minibatch(
          as_input(features),
          labels,
          weights,
          key_network if model.needs_key else None,
      )

    # Alg. 1: the gradient of one minibatch at w(m-1).
    batch = draw(0, key)
    first_loss, gradient = gradient_of(params, batch)

    def gradient_at(step, params):
      batch = draw(step, jax.random.fold_in(key, step))
      return gradient_of(params, batch)[1]

    steps, seen = work_of(training, batch_size, count)
    if training is not None:
      # A loop has a fixed length where all clients make as many steps.
      gradient = _train(
          training.optimizer, training.steps or steps, params, gradient,
          gradient_at, learning_rate,
      )

    # Sec. IV: the sample h. The first one will do, as the order is random.
    return LocalResult(
        gradient, first_loss, batch.features[0], batch.labels[0], steps, seen
    )

  return local_result


def _train(optimizer, steps, start, gradient, gradient_at, learning_rate):
  """All local steps; `gradient` is that of the first one, at `start`."""

  # Carry the sum of updates, not the weights: a tiny step added to a large
  # float32 is rounded away. The sum has no eta in it, so eta may be 0.
  def step(index, carry):
    total, state = carry
    params = start + learning_rate * total
    updates, state = optimizer.update(
        gradient_at(index, params), state, params
    )
    return total + updates, state

  first = optimizer.update(gradient, optimizer.init(start), start)
  total, _ = lax.fori_loop(1, steps, step, first)
  return -total
