"""Layers whose gradients stay fast when many clients have their own.

Three operations dominate a client's gradient, and XLA compiles each of them
badly in some place that this package needs. They are the weight gradient of a
convolution (inside loops on CPU, and under vmap everywhere), the gradient of
max-pooling, and windowed sums over channels. Here each is written in a form for
which XLA has fast kernels. Values are those of the plain layers.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap

_NHWC = ("NHWC", "HWIO", "NHWC")


def _conv(x, kernel, padding):
  return lax.conv_general_dilated(
      x, kernel, (1, 1), padding, dimension_numbers=_NHWC
  )


def _kernel_gradient_as_conv(x, dy, padding):
  """d kernel as one forward convolution, batch and channels exchanged.

  The operands have the canonical layout. So XLA uses its fast CPU kernel inside
  loops too, which it does not for the convolution that autodiff derives.
  """
  swapped = _conv(
      jnp.transpose(x, (3, 1, 2, 0)), jnp.transpose(dy, (1, 2, 0, 3)), padding
  )
  return jnp.transpose(swapped, (1, 2, 0, 3))


def _kernel_gradient_as_matmul(x, dy, padding):
  """d kernel as one matrix product over all kernel offsets at once.

  It multiplies column-shifted copies of x by row-shifted copies of dy. This
  form is for accelerators: under vmap it is a batched matrix product instead
  of a grouped convolution.
  """
  rows, columns = (
      sum(pad) + x_size - dy_size + 1
      for pad, x_size, dy_size in zip(
          padding, x.shape[1:3], dy.shape[1:3], strict=True
      )
  )
  height, width = dy.shape[1:3]
  x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
  shifted_x = jnp.concatenate(
      [x[:, :, c : c + width] for c in range(columns)], axis=-1
  )
  span = height + rows - 1
  dy = jnp.pad(dy, ((0, 0), (rows - 1, rows - 1), (0, 0), (0, 0)))
  shifted_dy = jnp.concatenate(
      [dy[:, rows - 1 - r : rows - 1 - r + span] for r in range(rows)], axis=-1
  )
  product = jnp.einsum("bhwi,bhwo->io", shifted_x, shifted_dy)
  channels = x.shape[3]
  product = product.reshape(columns, channels, rows, -1)
  return jnp.transpose(product, (2, 0, 1, 3))


@functools.cache
def _kernel_gradient(padding):
  """The kernel's gradient: a convolution; under vmap the platform's best."""
  single = functools.partial(_kernel_gradient_as_conv, padding=padding)
  matmul = functools.partial(_kernel_gradient_as_matmul, padding=padding)
  gradient = custom_vmap(single)

  @gradient.def_vmap
  def batched(axis_size, in_batched, x, dy):
    x, dy = (
        a if is_batched else jnp.broadcast_to(a, (axis_size, *a.shape))
        for a, is_batched in zip((x, dy), in_batched, strict=True)
    )
    result = lax.platform_dependent(
        x,
        dy,
        cpu=lambda x, dy: lax.map(lambda pair: single(*pair), (x, dy)),
        default=jax.vmap(matmul),
    )
    return result, True

  return gradient


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fast_conv(x, kernel, padding):
  return _conv(x, kernel, padding)


def _fast_conv_forward(x, kernel, padding):
  return _conv(x, kernel, padding), (x, kernel)


def _fast_conv_backward(padding, saved, dy):
  x, kernel = saved
  flipped = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
  mirrored = tuple(
      (size - 1 - low, size - 1 - high)
      for size, (low, high) in zip(kernel.shape[:2], padding, strict=True)
  )
  dx = _conv(dy, flipped, mirrored)
  return dx, _kernel_gradient(padding)(x, dy)


_fast_conv.defvjp(_fast_conv_forward, _fast_conv_backward)


def conv(
    x: jax.Array, kernel: jax.Array, padding: str = "SAME"
) -> jax.Array:
  """A 2-d convolution of stride 1 with a fast gradient per client.

  Args:
    x: [B, H, W, I].
    kernel: [R, S, I, O].
    padding: "SAME" or "VALID".

  Returns:
    [B, H', W', O], equal to `lax.conv_general_dilated`.
  """
  pads = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], (1, 1), padding)
  return _fast_conv(x, kernel, tuple(map(tuple, pads)))


@jax.custom_vjp
def _pool_even(x):
  batch, height, width, channels = x.shape
  windows = (batch, height // 2, 2, width // 2, 2, channels)
  return jnp.max(x.reshape(windows), axis=(2, 4))


def _pool_forward(x):
  y = _pool_even(x)
  return y, (x, y)


def _pool_backward(saved, dy):
  x, y = saved
  batch, height, width, channels = x.shape
  corners = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
  taken = jnp.zeros(y.shape, bool)
  rows = []
  for r in range(2):
    row = []
    for c in range(2):
      wins = (corners[:, :, r, :, c] == y) & ~taken
      taken = taken | wins
      row.append(jnp.where(wins, dy, 0.0))
    rows.append(jnp.stack(row, axis=3))
  return (jnp.stack(rows, axis=2).reshape(x.shape),)


_pool_even.defvjp(_pool_forward, _pool_backward)


def max_pool_2x2(x: jax.Array) -> jax.Array:
  """Max-pooling over 2 x 2 windows, stride 2, SAME padding.

  The gradient goes to the first maximum of a window, as XLA and TensorFlow do.

  Args:
    x: [B, H, W, C].

  Returns:
    [B, ceil(H / 2), ceil(W / 2), C].
  """
  odd_rows, odd_columns = x.shape[1] % 2, x.shape[2] % 2
  if odd_rows or odd_columns:
    x = jnp.pad(
        x,
        ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)),
        constant_values=-jnp.inf,
    )
  return _pool_even(x)


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
