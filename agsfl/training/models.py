"""Networks, as pure functions of one flat weight vector."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from agsfl.training import layers
from agsfl.types import Model, PyTree


class _Conv(nn.Module):
  """5 x 5 convolution with bias, SAME padding."""

  features: int

  @nn.compact
  def __call__(self, x):
    shape = (5, 5, x.shape[-1], self.features)
    kernel = self.param("kernel", _weights, shape)
    bias = self.param("bias", _biases, (self.features,))
    return layers.conv(x, kernel) + bias[None, None, None]


_weights = nn.initializers.truncated_normal(0.1)
_biases = nn.initializers.constant(0.1)


class CNN(nn.Module):
  """The paper's network.

  D = 444,062 on 28 x 28 x 1 images and 62 classes, 555,178 on 32 x 32 x 3 and
  10, where the paper standardises each image (see `build`).

  Source: the authors' code: conv 5x5x32, relu, pool, LRN, conv 5x5x32, relu,
  LRN, pool, dense 256, relu, dense; truncated normal 0.1, biases 0.1.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    dense = lambda size: nn.Dense(
        size, kernel_init=_weights, bias_init=_biases
    )
    x = nn.relu(_Conv(32)(x))
    x = layers.local_response_norm(layers.max_pool_2x2(x))
    x = nn.relu(_Conv(32)(x))
    x = layers.max_pool_2x2(layers.local_response_norm(x))
    x = nn.relu(dense(256)(x.reshape(x.shape[0], -1)))
    return dense(self.num_classes)(x)


class MLP(nn.Module):
  """One hidden layer of 128; small and quick."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes)(x)


MODELS = {"cnn": CNN, "mlp": MLP}


def flatten(
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], jax.Array],
) -> Model:
  """Any network as a `Model`.

  Convolutions of stride 1 are fast per client when written with
  `layers.conv`.

  Args:
    init: key -> a pytree of f32 parameters.
    apply: (parameters, [B, ...] images) -> [B, L] logits.

  Returns:
    The same network over a flat weight vector.
  """
  shapes = jax.eval_shape(init, jax.random.key(0))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  flat, unravel = ravel_pytree(zeros)

  @jax.custom_vjp
  def by_layer(params):
    return unravel(params)

  def gather(_, tree):
    """The layers' gradients in one vector, each copied to its place.

    A concatenation, as autodiff has it, is fused by XLA's CPU backend with what
    uses the vector, at thirty times the cost.
    """
    vector, place = jnp.zeros_like(flat), 0
    for leaf in jax.tree.leaves(tree):
      vector = lax.dynamic_update_slice(vector, leaf.ravel(), (place,))
      place += leaf.size
    return (vector,)

  by_layer.defvjp(lambda params: (unravel(params), None), gather)
  return Model(
      init=lambda key: ravel_pytree(init(key))[0],
      apply=lambda params, images: apply(by_layer(params), images),
      sizes=tuple(leaf.size for leaf in jax.tree.leaves(shapes)),
  )


def standardized(images: jax.Array) -> jax.Array:
  """Each image with mean 0 and deviation 1 over all its numbers.

  An almost constant image is divided by 1 / sqrt(H W C) instead.

  Args:
    images: [B, H, W, C] f32.

  Returns:
    The same shape.

  Source: the input of the paper's CIFAR-10 network in its authors' code.
  """
  axes = (1, 2, 3)
  centred = images - jnp.mean(images, axes, keepdims=True)
  deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes, keepdims=True))
  return centred / jnp.maximum(deviation, images[0].size**-0.5)


@functools.lru_cache(maxsize=16)
def build(
    name: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    standardize: bool = False,
) -> Model:
  """A network of `MODELS`.

  Args:
    name: its key.
    image_shape: [H, W, C] of one image.
    num_classes: L.
    standardize: whether its input is `standardized`.

  Returns:
    The model.
  """
  module = MODELS[name](num_classes)
  sample = jnp.zeros((1, *image_shape))

  def apply(params, images):
    return module.apply(params, standardized(images) if standardize else images)

  return flatten(lambda key: module.init(key, sample), apply)


def sample_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of each sample.

  Args:
    logits: [B, L].
    labels: [B] i32.

  Returns:
    [B] f32, nats.
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
