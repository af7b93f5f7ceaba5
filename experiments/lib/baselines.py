"""What the benchmark compares with: plain loops over plain gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from agsfl.training.client import as_float
from agsfl.training.models import Network, sample_losses


def _gradient(network, features):
  """The function (params, features, labels) -> gradient, and first weights."""
  params = network.init(jax.random.key(0), as_float(features[0]))

  def loss(params, features, labels):
    logits = network.apply(params, as_float(features))
    return jnp.mean(sample_losses(logits, labels))

  return jax.grad(loss), params


def loop(
    network: Network, features: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
  """A Python loop over one jitted gradient.

  Args:
    network: of any library.
    features: [N, B, ...], one batch for each client.
    labels: [N, B] i32.

  Returns:
    A function that computes all clients' gradients, each [D], and waits.
  """
  gradient, params = _gradient(network, features)
  flat = jax.jit(lambda *batch: ravel_pytree(gradient(params, *batch))[0])
  batches = [
      jax.device_put(batch, jax.devices()[0])
      for batch in zip(features, labels, strict=True)
  ]
  return lambda: jax.block_until_ready([flat(*batch) for batch in batches])


def batched(
    network: Network, features: np.ndarray, labels: np.ndarray
) -> Callable[[], None]:
  """jit(vmap(grad)); arguments and result as `loop`."""
  gradient, params = _gradient(network, features)
  gradients = jax.jit(jax.vmap(lambda *batch: gradient(params, *batch)))
  batches = jax.device_put((features, labels), jax.devices()[0])
  return lambda: jax.block_until_ready(gradients(*batches))
