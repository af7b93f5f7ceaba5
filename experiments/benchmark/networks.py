"""Networks to time: those of the package, and two as users write them."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from agsfl.training.networks import (
  LSTM,
  MLP,
  ResNet9,
  ResNet18,
  Transformer,
)


class PlainCNN(nn.Module):
  """The paper's network, with local response normalisation by a window."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
    x = _plain_norm(pool(nn.relu(nn.Conv(32, (5, 5))(x))))
    x = pool(_plain_norm(nn.relu(nn.Conv(32, (5, 5))(x))))
    x = nn.relu(nn.Dense(256)(x.reshape(len(x), -1)))
    return nn.Dense(self.num_classes)(x)


def _plain_norm(x):
  near = jax.lax.reduce_window(
      x**2, 0.0, jax.lax.add, (1, 1, 1, 9), (1, 1, 1, 1), "SAME"
  )
  return x / (1.0 + 0.001 / 9.0 * near) ** 0.75


class _Layers(nnx.Module):
  """A CNN in Flax NNX: two strided convolutions and average-pooling."""

  def __init__(self, channels, num_classes, rngs):
    self.first = nnx.Conv(channels, 32, (3, 3), strides=2, rngs=rngs)
    self.norm = nnx.GroupNorm(32, num_groups=8, rngs=rngs)
    self.second = nnx.Conv(32, 64, (3, 3), strides=2, rngs=rngs)
    self.dense = nnx.Linear(64, num_classes, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.first(x)))
    x = nnx.avg_pool(nnx.relu(self.second(x)), (2, 2), (2, 2))
    return self.dense(jnp.mean(x, axis=(1, 2)))


class NNX:
  """A module of Flax NNX as the two functions that this package takes."""

  def __init__(self, num_classes):
    self.num_classes = num_classes

  def _split(self, key, channels):
    module = _Layers(channels, self.num_classes, nnx.Rngs(key))
    return nnx.split(module, nnx.Param, ...)

  def init(self, key: jax.Array, features: jax.Array) -> Any:
    """The parameters, a pytree."""
    _, params, _ = self._split(key, features.shape[-1])
    return params

  def apply(self, params: Any, features: jax.Array) -> jax.Array:
    """[B, L] logits."""
    parts = nnx.eval_shape(
        lambda: self._split(jax.random.key(0), features.shape[-1])
    )
    return nnx.merge(parts[0], params, parts[2])(features)


class Case(NamedTuple):
  """A network to measure.

  Attributes:
    network: num_classes -> the network.
    shape: of the features of a sample.
    num_classes: L.
    top: features are random whole numbers below it.
  """

  network: Any
  shape: tuple[int, ...]
  num_classes: int
  top: int = 256


CASES = {
    "cnn": Case(PlainCNN, (28, 28, 1), 62),
    "resnet9": Case(ResNet9, (32, 32, 3), 10),
    "resnet18_gn": Case(ResNet18, (32, 32, 3), 10),
    "nnx": Case(NNX, (32, 32, 3), 10),
    "lstm": Case(LSTM, (80,), 90, 90),
    "transformer": Case(Transformer, (80,), 90, 90),
    "mlp": Case(MLP, (28, 28, 1), 62),
}
