"""Local response normalisation against a sum channel by channel."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.training.local_response_norm import local_response_norm


def plain_norm(x, radius=4, alpha=0.001 / 9.0):
  """Local response normalisation, channel by channel."""
  channels = []
  for c in range(x.shape[-1]):
    near = x[..., max(0, c - radius) : c + radius + 1]
    scale = 1.0 + alpha * jnp.sum(near**2, axis=-1)
    channels.append(x[..., c] / scale**0.75)
  return jnp.stack(channels, axis=-1)


def value_and_gradient(function, x):
  """The value, and the gradient along one direction."""
  value, pull = jax.vjp(function, x)
  direction = jnp.cos(jnp.arange(1.0, value.size + 1)).reshape(value.shape)
  return value, pull(direction)[0]


class LocalResponseNormTest(parameterized.TestCase):

  @parameterized.parameters((32, 4, 0.001 / 9), (6, 2, 0.5), (3, 4, 1.0))
  def test_is_the_plain_sum_over_channels(self, channels, radius, alpha):
    x = 10 * jax.random.normal(jax.random.key(0), (2, 3, 3, channels))
    got = value_and_gradient(lambda x: local_response_norm(x, radius, alpha), x)
    want = value_and_gradient(lambda x: plain_norm(x, radius, alpha), x)
    for one, other in zip(got, want, strict=True):
      scale = np.max(np.abs(other))
      np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * scale)

  def test_by_hand(self):
    """3 / (1 + 0.5 (9 + 16))^0.75 with both channels in reach."""
    got = local_response_norm(jnp.array([3.0, 4.0]), 1, 0.5)
    np.testing.assert_allclose(got, np.array([3, 4]) / 13.5**0.75, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
