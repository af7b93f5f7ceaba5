"""ONE client: its minibatch and its gradient. No client axis in this file."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl.models import sample_losses
from agsfl.types import Model


class LocalResult(NamedTuple):
  """What a client computes in a round.

  Attributes:
    gradient: [D] f32, of the minibatch's mean loss at w(m-1).
    loss: [] f32, that loss.
    image: [...] f32, one sample h of the minibatch.
    label: [] i32, its label.
  """

  gradient: jax.Array
  loss: jax.Array
  image: jax.Array
  label: jax.Array


def as_float(images: jax.Array) -> jax.Array:
  """uint8 images scaled to [0, 1]; other types as float32, unscaled."""
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255.0
  return images.astype(jnp.float32)


def build_client(
    model: Model, batch_size: int
) -> Callable[..., LocalResult]:
  """The client's work as a pure function.

  Minibatches are drawn uniformly with replacement: each is an unbiased
  gradient given the weights, as the analysis assumes, any number of samples
  will do, and a draw depends on nothing but its key, so that a resumed run
  needs no position in an epoch.

  Args:
    model: the network.
    batch_size: samples per minibatch.

  Returns:
    (key, params [D], images [E, ...], labels [E], count []) -> LocalResult,
    where the first `count` of the E samples are the client's own.
  """

  def loss_of(params, images, labels):
    return jnp.mean(sample_losses(model.apply(params, images), labels))

  def local_result(key, params, images, labels, count):
    chosen = jax.random.randint(key, (batch_size,), 0, count)
    images, labels = as_float(images[chosen]), labels[chosen]
    loss, gradient = jax.value_and_grad(loss_of)(params, images, labels)
    # The draws are independent, so the first is as random as any other.
    return LocalResult(gradient, loss, images[0], labels[0])

  return local_result
