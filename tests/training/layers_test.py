"""The fast layers against XLA's plain ones: values and gradients."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax import lax

from agsfl.training import layers


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def plain_conv(x, kernel, padding="SAME"):
  return lax.conv_general_dilated(
      x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def plain_pool(x):
  return nn.max_pool(x, (2, 2), (2, 2), padding="SAME")


def plain_norm(x, radius=4, alpha=0.001 / 9.0):
  """Local response normalisation, channel by channel."""
  channels = []
  for c in range(x.shape[-1]):
    near = x[..., max(0, c - radius) : c + radius + 1]
    scale = 1.0 + alpha * jnp.sum(near**2, axis=-1)
    channels.append(x[..., c] / scale**0.75)
  return jnp.stack(channels, axis=-1)


def assert_same(fast, plain, *arguments):
  """Law: equal values, and equal gradients along one direction."""

  def value_and_gradients(function, arguments):
    value, pull = jax.vjp(function, *arguments)
    direction = jnp.cos(jnp.arange(1.0, value.size + 1)).reshape(value.shape)
    return value, pull(direction)

  both = jax.jit(value_and_gradients, static_argnums=0)
  got, gradients = both(fast, arguments)
  want, plain_gradients = both(plain, arguments)
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
  for got, want in zip(gradients, plain_gradients, strict=True):
    scale = np.max(np.abs(want))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * scale)


class ConvTest(parameterized.TestCase):

  @parameterized.parameters(
      ("SAME", (5, 5), (8, 8)),
      ("SAME", (2, 3), (7, 9)),
      ("VALID", (5, 5), (7, 9)),
      ("VALID", (1, 1), (8, 8)),
  )
  def test_is_the_plain_convolution(self, padding, kernel, image):
    assert_same(
        functools.partial(layers.conv, padding=padding),
        functools.partial(plain_conv, padding=padding),
        normal(0, 3, *image, 2),
        normal(1, *kernel, 2, 4),
    )

  @parameterized.parameters(
      ("nothing", "SAME"), ("images", "VALID"), ("kernel", "SAME")
  )
  def test_batched_over_clients(self, shared, padding):
    x, kernel = normal(0, 5, 3, 8, 8, 2), normal(1, 5, 3, 3, 2, 4)
    axes = (0, 0)
    if shared == "images":
      x, axes = x[0], (None, 0)
    if shared == "kernel":
      kernel, axes = kernel[0], (0, None)

    def batched(conv):
      return jax.vmap(functools.partial(conv, padding=padding), in_axes=axes)

    assert_same(batched(layers.conv), batched(plain_conv), x, kernel)

  @parameterized.parameters(((5, 5), "SAME"), ((3, 2), "VALID"))
  def test_both_forms_of_the_kernel_gradient_agree(self, kernel, padding):
    """The accelerator's form is not what the CPU runs; test it by hand."""
    x = normal(0, 3, 8, 9, 2)
    pads = lax.padtype_to_pads((8, 9), kernel, (1, 1), padding)
    dy = plain_conv(x, normal(1, *kernel, 2, 4), padding)
    conv = layers._kernel_gradient_as_conv(x, dy, pads)
    matmul = layers._kernel_gradient_as_matmul(x, dy, pads)
    self.assertEqual(conv.shape, (*kernel, 2, 4))
    np.testing.assert_allclose(conv, matmul, rtol=1e-4, atol=1e-3)


class MaxPoolTest(parameterized.TestCase):

  @parameterized.parameters((8, 8), (7, 7), (5, 6))
  def test_is_the_plain_pooling(self, height, width):
    assert_same(
        layers.max_pool_2x2, plain_pool, normal(0, 2, height, width, 3)
    )

  def test_gradient_goes_to_the_first_of_equal_maxima(self):
    x = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    gradient = jax.grad(lambda x: jnp.sum(layers.max_pool_2x2(x)))(x)
    np.testing.assert_array_equal(gradient.ravel(), [0, 1, 0, 0])
    tied = jnp.round(normal(3, 2, 8, 8, 3))
    assert_same(layers.max_pool_2x2, plain_pool, tied)


class LocalResponseNormTest(parameterized.TestCase):

  @parameterized.parameters((32, 4, 0.001 / 9), (6, 2, 0.5), (3, 4, 1.0))
  def test_is_the_plain_sum_over_channels(self, channels, radius, alpha):
    assert_same(
        lambda x: layers.local_response_norm(x, radius, alpha),
        lambda x: plain_norm(x, radius, alpha),
        10 * normal(0, 2, 3, 3, channels),
    )

  def test_by_hand(self):
    """3 / (1 + 0.5 (9 + 16))^0.75 with both channels in reach."""
    got = layers.local_response_norm(jnp.array([3.0, 4.0]), 1, 0.5)
    np.testing.assert_allclose(got, np.array([3, 4]) / 13.5**0.75, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
