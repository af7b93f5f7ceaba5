"""Local response normalisation, which the paper's network has."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def _band(channels, radius):
  index = np.arange(channels)
  near = np.abs(index[:, None] - index[None, :]) <= radius
  return near.astype(np.float32)


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
  band = alpha * _band(x.shape[-1], radius)
  # The gradient is traced later, where another precision may be set.
  settings: Any = jax.config
  precision = settings.jax_default_matmul_precision
  near = functools.partial(jnp.matmul, b=band, precision=precision)
  return _norm(x, near)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _norm(x, near):
  return _norm_forward(x, near)[0]


def _norm_forward(x, near):
  inverse_root = lax.rsqrt(1.0 + near(jnp.square(x)))
  scale = inverse_root * jnp.sqrt(inverse_root)
  return x * scale, (x, inverse_root, scale)


def _norm_backward(near, saved, dy):
  x, inverse_root, scale = saved
  pulled = near(dy * x * scale * jnp.square(inverse_root))
  return (dy * scale - 1.5 * x * pulled,)


_norm.defvjp(_norm_forward, _norm_backward)
