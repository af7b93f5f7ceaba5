"""What a network takes as features; refuses others in one line."""

import jax
import jax.numpy as jnp

from agsfl.errors import refuse


def images(name: str, x: jax.Array, least: int = 1) -> jax.Array:
  """Images as [B, H, W, C].

  Args:
    name: of the network.
    x: [B, H, W, C], or [B, H, W] of one channel.
    least: pixels that H and W must have.

  Raises:
    ConfigError: the features have another shape, or too few pixels.
  """
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


def tokens(name: str, x: jax.Array) -> jax.Array:
  """Sequences of tokens, [B, T] whole numbers, as they are.

  Args:
    name: of the network.
    x: features.

  Raises:
    ConfigError: the features are not of this kind.
  """
  if x.ndim != 2 or not jnp.issubdtype(x.dtype, jnp.integer):
    refuse(
        f"--model={name}",
        "takes tokens, whole numbers of shape [T], not "
        f"{x.dtype}{list(x.shape[1:])}; give int16 for uint8, which is read as "
        "v / 255",
    )
  return x


def numbers(x: jax.Array) -> jax.Array:
  """Each sample's features, of any shape, as one row: [B, F] f32."""
  return x.reshape(len(x), -1).astype(jnp.float32)
