"""Local response normalisation, which the paper's network has."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def _band(channels, radius):
  index = np.arange(channels)
  near = np.abs(index[:, None] - index[None, :]) <= radius
  return near.astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def local_response_norm(
    x: jax.Array, radius: int = 4, alpha: float = 0.001 / 9.0
) -> jax.Array:
  """x / (1 + alpha * sum of x^2 over channels within `radius`) ** 0.75.

  The windowed sum is a product with a banded matrix. The power is computed by
  two square roots.

  Args:
    x: [..., C].
    radius: channels on each side.
    alpha: weight of the sum.

  Returns:
    [..., C].

  Source: the CNN of the paper's experiments, as its authors' code has it.
  """
  return _norm_forward(x, radius, alpha)[0]


def _norm_forward(x, radius, alpha):
  band = alpha * _band(x.shape[-1], radius)
  inverse_root = lax.rsqrt(1.0 + jnp.square(x) @ band)
  scale = inverse_root * jnp.sqrt(inverse_root)
  return x * scale, (x, inverse_root, scale)


def _norm_backward(radius, alpha, saved, dy):
  x, inverse_root, scale = saved
  band = alpha * _band(x.shape[-1], radius)
  pulled = (dy * x * scale * jnp.square(inverse_root)) @ band
  return (dy * scale - 1.5 * x * pulled,)


local_response_norm.defvjp(_norm_forward, _norm_backward)
