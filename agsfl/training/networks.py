"""The networks that come with the package, as Flax modules."""

import flax.linen as nn

from agsfl.errors import refuse
from agsfl.training.local_response_norm import local_response_norm

_weights = nn.initializers.truncated_normal(0.1)
_biases = nn.initializers.constant(0.1)


class CNN(nn.Module):
  """The paper's network, for images [H, W, C], or [H, W] of one channel.

  D = 444,062 on 28 x 28 x 1 images and 62 classes, 555,178 on 32 x 32 x 3 and
  10, where the paper standardises each image (see `models.standardized`).

  Source: the authors' code: conv 5x5x32, relu, pool, LRN, conv 5x5x32, relu,
  LRN, pool, dense 256, relu, dense; truncated normal 0.1, biases 0.1.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = _images("cnn", x)
    conv = lambda name: nn.Conv(
        32, (5, 5), kernel_init=_weights, bias_init=_biases, name=name
    )
    dense = lambda size: nn.Dense(
        size, kernel_init=_weights, bias_init=_biases
    )
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2), padding="SAME")
    x = nn.relu(conv("_Conv_0")(x))
    x = local_response_norm(pool(x))
    x = nn.relu(conv("_Conv_1")(x))
    x = pool(local_response_norm(x))
    x = nn.relu(dense(256)(x.reshape(x.shape[0], -1)))
    return dense(self.num_classes)(x)


class SmallCNN(nn.Module):
  """A usual small network for images [H, W, C], or [H, W] of one channel.

  D = 1,626,442 on 32 x 32 x 3 images and 10 classes.

  Source: the benchmark of pfl-research (Granqvist et al., NeurIPS 2024) for
  CIFAR-10: conv 3x3x32, relu, conv 3x3x64, relu, pool 2x2, dense 128, relu,
  dense, without padding; Glorot uniform, biases 0 as in its TensorFlow form
  (PyTorch draws them). Its two layers of dropout are left out, because a
  `Model` draws no random numbers.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = _images("cnn_small", x, least=6)
    glorot = nn.initializers.glorot_uniform()
    conv = lambda channels: nn.Conv(
        channels, (3, 3), padding="VALID", kernel_init=glorot
    )
    x = nn.relu(conv(32)(x))
    x = nn.relu(conv(64)(x))
    x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
    x = nn.relu(nn.Dense(128, kernel_init=glorot)(x))
    return nn.Dense(self.num_classes, kernel_init=glorot)(x)


def _images(name, x, least=1):
  """Images as [B, H, W, C]; refuses other features, and smaller images."""
  if x.ndim == 3:
    x = x[..., None]
  if x.ndim != 4:
    refuse(
        f"--model={name}",
        "takes images, features of shape [H, W] or [H, W, C], not "
        f"{list(x.shape[1:])}",
    )
  if min(x.shape[1:3]) < least:
    refuse(
        f"--model={name}",
        f"takes images of at least {least} x {least} pixels, not of "
        f"{x.shape[1]} x {x.shape[2]}",
    )
  return x


class MLP(nn.Module):
  """One hidden layer of 128, for features of any shape; small and quick."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(128)(x.reshape(x.shape[0], -1)))
    return nn.Dense(self.num_classes)(x)
