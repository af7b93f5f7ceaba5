"""Residual networks with GroupNorm, for small images.

BatchNorm has a state, which is not the same at each client. Federated work
takes GroupNorm in its place (Hsieh et al., "The Non-IID Data Quagmire of
Decentralized Machine Learning", ICML 2020).
"""

import flax.linen as nn
import jax.numpy as jnp

from agsfl.training.networks import inputs


def _conv(channels, size, stride=1):
  return nn.Conv(
      channels, (size, size), (stride, stride), use_bias=False,
      kernel_init=nn.initializers.he_normal(),
  )


class ResNet9(nn.Module):
  """Eight convolutions, four of them in two pairs with a shortcut.

  For images [H, W, C], or [H, W] of one channel, from 8 x 8 pixels on.
  D = 6,573,120 on 32 x 32 x 3 images and 10 classes.

  Attributes:
    num_classes: L.
    widths: channels of the four stages.
    groups: of each GroupNorm; 32 is the default of its paper (Wu and He, ECCV
      2018).

  Source: the network of D. Page, "How to Train Your ResNet", 2018, as FetchSGD
  (Rothchild et al., ICML 2020) takes it: outputs without biases, times 0.125.
  """

  num_classes: int
  widths: tuple[int, int, int, int] = (64, 128, 256, 512)
  groups: int = 32

  @nn.compact
  def __call__(self, x):
    x = inputs.images("resnet9", x, least=8)
    block = lambda width, x: nn.relu(
        nn.GroupNorm(self.groups)(_conv(width, 3)(x))
    )
    pool = lambda x: nn.max_pool(x, (2, 2), (2, 2))
    first, second, third, last = self.widths
    x = pool(block(second, block(first, x)))
    x = x + block(second, block(second, x))
    x = pool(block(last, pool(block(third, x))))
    x = x + block(last, block(last, x))
    x = nn.Dense(self.num_classes, use_bias=False)(jnp.max(x, axis=(1, 2)))
    return 0.125 * x


class ResNet18(nn.Module):
  """Eight residual blocks of two convolutions each.

  For images [H, W, C], or [H, W] of one channel, from 8 x 8 pixels on.
  D = 11,173,962 on 32 x 32 x 3 images and 10 classes.

  Attributes:
    num_classes: L.
    widths: channels of the stages, of two blocks each.
    groups: of each GroupNorm.

  Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
  in the form for small images: the first convolution is 3 x 3, of stride 1,
  without pooling. Two groups in each GroupNorm: Reddi et al., "Adaptive
  Federated Optimization", ICLR 2021.
  """

  num_classes: int
  widths: tuple[int, ...] = (64, 128, 256, 512)
  groups: int = 2

  @nn.compact
  def __call__(self, x):
    x = inputs.images("resnet18_gn", x, least=8)
    norm = lambda x: nn.GroupNorm(self.groups)(x)
    x = nn.relu(norm(_conv(self.widths[0], 3)(x)))
    for stage, width in enumerate(self.widths):
      for stride in (2 if stage else 1, 1):
        before = x
        x = nn.relu(norm(_conv(width, 3, stride)(x)))
        x = norm(_conv(width, 3)(x))
        if x.shape != before.shape:
          before = norm(_conv(width, 1, stride)(before))
        x = nn.relu(x + before)
    return nn.Dense(self.num_classes)(jnp.mean(x, axis=(1, 2)))
