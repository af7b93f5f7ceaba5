"""Epochs: every sample of ONE client once, in minibatches, in a random order.

The last minibatch of an epoch has the samples that are left, which may be fewer
than B.
"""

import jax
import jax.numpy as jnp

from agsfl.training.permutation import permuted


def batches_per_epoch(count: jax.Array, batch_size: int) -> jax.Array:
  """ceil(C_i / B) [] i32, for C_i = `count` [] i32."""
  return (count + (batch_size - 1)) // batch_size


def batch_of(
    key: jax.Array, step: int | jax.Array, count: jax.Array, batch_size: int
) -> tuple[jax.Array, jax.Array]:
  """The minibatch of one local step, where epochs follow each other.

  Args:
    key: of the client in this round; each epoch has an order of its own.
    step: [] i32, from 0.
    count: [] i32, C_i. Where it is 0 the result means nothing.
    batch_size: B.

  Returns:
    (chosen, weights): [B] i32, numbers of the client's samples, from 0 to
    C_i - 1; and [B] f32, the weights of their mean. Places beyond a short
    minibatch repeat a sample with the weight 0.
  """
  count = jnp.maximum(count, 1)
  epoch, batch = jnp.divmod(
      jnp.asarray(step, jnp.int32), batches_per_epoch(count, batch_size)
  )
  positions = batch * batch_size + jnp.arange(batch_size, dtype=jnp.int32)
  is_real = positions < count

  order = jax.random.fold_in(key, epoch)
  chosen = permuted(order, jnp.minimum(positions, count - 1), count)
  weights = is_real.astype(jnp.float32)
  return chosen, weights / jnp.sum(weights)


def samples_in(
    steps: jax.Array, count: jax.Array, batch_size: int
) -> jax.Array:
  """Samples [] i32 in the first `steps` [] i32 minibatches together."""
  count = jnp.maximum(count, 1)
  epochs, rest = jnp.divmod(steps, batches_per_epoch(count, batch_size))
  return epochs * count + rest * batch_size
