"""Networks as users write them, with plain layers, for the benchmark."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx

from agsfl.training.networks import MLP


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


def _conv(features, size, stride=1):
  return nn.Conv(features, (size, size), (stride, stride), use_bias=False)


def _norm_relu(x):
  return nn.relu(nn.GroupNorm(num_groups=8)(x))


class ResNet9(nn.Module):
  """Eight convolutions with GroupNorm, two of them pairs with a shortcut.

  Source: the network of D. Page, "How to Train Your ResNet", 2018, with half
  of its channels and GroupNorm in place of BatchNorm.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    block = lambda features, x: _norm_relu(_conv(features, 3)(x))
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    x = pool(block(64, block(32, x)))
    x = x + block(64, block(64, x))
    x = pool(block(256, pool(block(128, x))))
    x = x + block(256, block(256, x))
    return nn.Dense(self.num_classes)(jnp.max(x, axis=(1, 2)))


class ResNet18(nn.Module):
  """Eight residual blocks of two convolutions each, with GroupNorm.

  Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
  in the form for small images: the first convolution is 3 x 3, of stride 1.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = _norm_relu(_conv(64, 3)(x))
    for features in (64, 128, 256, 512):
      for stride in (1 if features == 64 else 2, 1):
        before = x
        x = _norm_relu(_conv(features, 3, stride)(x))
        x = nn.GroupNorm(num_groups=8)(_conv(features, 3)(x))
        if x.shape != before.shape:
          before = nn.GroupNorm(num_groups=8)(
              _conv(features, 1, stride)(before)
          )
        x = nn.relu(x + before)
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))


class LSTM(nn.Module):
  """Two recurrent layers of 256 over characters; it predicts the next one.

  Source: the Shakespeare network of McMahan et al., AISTATS 2017.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(self.num_classes, 8)(x.astype(jnp.int32))
    for _ in range(2):
      x = nn.RNN(nn.OptimizedLSTMCell(256))(x)
    return nn.Dense(self.num_classes)(x[:, -1])


class Transformer(nn.Module):
  """Two layers of width 128 with four heads over characters."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.Embed(self.num_classes, 128)(x.astype(jnp.int32))
    places = self.param(
        "places", nn.initializers.normal(0.02), (x.shape[1], 128)
    )
    x = x + places[None]
    for _ in range(2):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(num_heads=4)(y, y)
      y = nn.gelu(nn.Dense(512)(nn.LayerNorm()(x)))
      x = x + nn.Dense(128)(y)
    return nn.Dense(self.num_classes)(nn.LayerNorm()(x)[:, -1])


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
    "resnet18": Case(ResNet18, (32, 32, 3), 10),
    "nnx": Case(NNX, (32, 32, 3), 10),
    "lstm": Case(LSTM, (80,), 90, 90),
    "transformer": Case(Transformer, (80,), 90, 90),
    "mlp": Case(MLP, (28, 28, 1), 62),
}
