"""What the benchmark compares with: a plain network and plain loops."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from agsfl.training.client import as_float
from agsfl.training.models import sample_losses


class PlainCNN(nn.Module):
  """The paper's network in Flax's own layers, as users write it."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
    x = _plain_norm(pool(nn.relu(nn.Conv(32, (5, 5))(x))))
    x = pool(_plain_norm(nn.relu(nn.Conv(32, (5, 5))(x))))
    x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
    return nn.Dense(self.num_classes)(x)


def _plain_norm(x):
  """Local response normalisation by a window over channels."""
  near = jax.lax.reduce_window(
      x**2, 0.0, jax.lax.add, (1, 1, 1, 9), (1, 1, 1, 1), "SAME"
  )
  return x / (1.0 + 0.001 / 9.0 * near) ** 0.75


def _gradient(num_classes, images):
  """The function (params, images, labels) -> gradient, and first weights."""
  module = PlainCNN(num_classes)
  params = module.init(jax.random.key(0), as_float(images[0]))

  def loss(params, images, labels):
    logits = module.apply(params, as_float(images))
    return jnp.mean(sample_losses(logits, labels))

  return jax.grad(loss), params


def loop(
    num_classes: int, images: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
  """A Python loop over one jitted gradient.

  Args:
    num_classes: L.
    images: [N, B, H, W, C], one batch for each client.
    labels: [N, B] i32.

  Returns:
    A function that computes all clients' gradients, each [D], and waits.
  """
  gradient, params = _gradient(num_classes, images)
  flat = jax.jit(lambda *batch: ravel_pytree(gradient(params, *batch))[0])
  batches = [
      jax.device_put(batch, jax.devices()[0])
      for batch in zip(images, labels, strict=True)
  ]
  return lambda: jax.block_until_ready([flat(*batch) for batch in batches])


def batched(
    num_classes: int, images: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
  """jit(vmap(grad)); arguments and result as `loop`."""
  gradient, params = _gradient(num_classes, images)
  gradients = jax.jit(jax.vmap(lambda *batch: gradient(params, *batch)))
  batches = jax.device_put((images, labels), jax.devices()[0])
  return lambda: jax.block_until_ready(gradients(*batches))
