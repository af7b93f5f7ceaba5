"""Augmentation: changes of images that leave their class as it is.

Each is a pure function of a key and a minibatch, so that a round's draws depend
only on the seed, the round, the client and its step.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.errors import refuse
from agsfl.names import AugmentationName

# (key, features [B, ...]) -> features of the same shape and type.
Augment = Callable[[jax.Array, jax.Array], jax.Array]

_PADDING = 4


def flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """Mirrors each image [H, W, C] left to right with probability 1/2."""
  _require_images("flip", images)
  mirrored = jax.random.bernoulli(key, shape=(len(images), 1, 1, 1))
  return jnp.where(mirrored, images[:, :, ::-1], images)


def crop_flip(key: jax.Array, images: jax.Array) -> jax.Array:
  """`flip`, then a crop of each image at random from 4 more pixels around it.

  The pixels around an image are 0.

  Args:
    key: of the draws.
    images: [B, H, W, C].

  Returns:
    [B, H, W, C].

  Source: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016,
  Sec. 4.2.
  """
  key_flip, key_crop = jax.random.split(key)
  images = flip(key_flip, images)
  around = (0, 0), (_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)
  padded = jnp.pad(images, around)
  corners = jax.random.randint(
      key_crop, (len(images), 2), 0, 2 * _PADDING + 1, jnp.int32
  )
  crop = lambda image, corner: lax.dynamic_slice(
      image, (*corner, 0), images.shape[1:]
  )
  return jax.vmap(crop)(padded, corners)


def _require_images(name, images):
  if images.ndim != 4:
    refuse(
        f"--augmentation={name}",
        "takes images of shape [H, W, C], where C may be 1, not "
        f"{list(images.shape[1:])}",
    )


AUGMENTATIONS: dict[AugmentationName, Augment | None] = {
    "none": None,
    "flip": flip,
    "crop_flip": crop_flip,
}
