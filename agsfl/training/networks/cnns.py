"""Convolutional networks without shortcuts."""

import flax.linen as nn

from agsfl.training.local_response_norm import local_response_norm
from agsfl.training.networks import inputs

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
    x = inputs.images("cnn", x)
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

  Attributes:
    num_classes: L.
    dropout: shares that training drops before each dense layer. The source has
      0.25 and 0.5, here by the name `cnn_small_dropout`; `cnn_small` has none.

  Source: the benchmark of pfl-research (Granqvist et al., NeurIPS 2024) for
  CIFAR-10: conv 3x3x32, relu, conv 3x3x64, relu, pool 2x2, dropout, dense 128,
  relu, dropout, dense, without padding; Glorot uniform, biases 0 as in its
  TensorFlow form (PyTorch draws them).
  """

  num_classes: int
  dropout: tuple[float, float] = (0.0, 0.0)

  @nn.compact
  def __call__(self, x, train=False):
    x = inputs.images("cnn_small", x, least=6)
    glorot = nn.initializers.glorot_uniform()
    conv = lambda channels: nn.Conv(
        channels, (3, 3), padding="VALID", kernel_init=glorot
    )
    drop = lambda rate, x: nn.Dropout(rate, deterministic=not train)(x)
    x = nn.relu(conv(32)(x))
    x = nn.relu(conv(64)(x))
    x = nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1)
    x = drop(self.dropout[0], x)
    x = nn.relu(nn.Dense(128, kernel_init=glorot)(x))
    x = drop(self.dropout[1], x)
    return nn.Dense(self.num_classes, kernel_init=glorot)(x)
