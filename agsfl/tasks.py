"""What networks learn: how their outputs are compared with labels."""

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from agsfl.errors import refuse
from agsfl.names import TaskName
from agsfl.types import Loss


class Task(NamedTuple):
  """A loss, and what evaluations tell beside it.

  Attributes:
    loss: of samples; training minimises its mean.
    share_right: (outputs [B, ...], labels [B, ...]) -> [B] f32, the share of a
      sample's labels that the network predicts. None if outputs are real
      numbers, which are not right or wrong.
    derived: columns of rows by name, each a function of the mean test loss.
    label_counts: labels [C, ...] -> [C], how many labels each sample has.
      Evaluations give a sample this weight. None: one each.
  """

  loss: Loss
  share_right: Callable[[jax.Array, jax.Array], jax.Array] | None
  derived: Mapping[str, Callable[[np.float32], np.float32]]
  label_counts: Callable[[np.ndarray], np.ndarray] | None = None

  def with_loss(self, loss: Loss | None) -> "Task":
    """The task with a loss of the user's; None changes nothing."""
    return self if loss is None else self._replace(loss=loss, derived={})


def losses_of(loss: Loss, outputs: jax.Array, labels: jax.Array) -> jax.Array:
  """The loss of each sample, [B]; the loss may be the user's.

  Raises:
    ConfigError: the loss has another shape.
  """
  losses = loss(outputs, labels)
  if jnp.shape(losses) != outputs.shape[:1]:
    refuse(
        "--loss",
        "must give [B], a number for each sample; for B = "
        f"{len(outputs)} it gives {list(jnp.shape(losses))}",
    )
  return losses


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of each sample; a `types.Loss`.

  Args:
    logits: [B, L].
    labels: [B] i32.

  Returns:
    [B] f32, nats.
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def token_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of each sample, the mean over its tokens.

  Args:
    logits: [B, L], or [B, T, L].
    labels: [B], or [B, T] i32; a place with -1 has no label.

  Returns:
    [B] f32, nats; 0 for a sample without labels.
  """
  losses = cross_entropy(logits, jnp.maximum(labels, 0))
  return _mean_of_tokens(losses, labels)


def squared_error(outputs: jax.Array, labels: jax.Array) -> jax.Array:
  """Squared error of each sample, the mean over its numbers.

  Args:
    outputs: [B, V].
    labels: [B, V] f32, or [B] where V is 1.

  Returns:
    [B] f32.

  Raises:
    ConfigError: the network has another number of outputs.
  """
  labels = labels.reshape(len(labels), -1)
  if outputs.shape != labels.shape:
    refuse(
        "--task=regression",
        f"the network must have {labels.shape[1]} outputs, one for each number "
        f"of a label; it has {outputs.shape[-1]}",
    )
  return jnp.mean(jnp.square(outputs - labels), axis=1)


def _share_right(logits, labels):
  return (_predicted(logits) == labels).astype(jnp.float32)


def _share_of_tokens_right(logits, labels):
  right = (_predicted(logits) == labels).astype(jnp.float32)
  return _mean_of_tokens(right, labels)


def _predicted(logits):
  return lax.argmax(logits, logits.ndim - 1, jnp.int32)


def _mean_of_tokens(values, labels):
  """[B], the mean over the places that have a label."""
  if labels.ndim == 1:
    return jnp.where(labels >= 0, values, 0.0)
  real = labels >= 0
  total = jnp.sum(jnp.where(real, values, 0.0), axis=1)
  return total / jnp.maximum(jnp.sum(real, axis=1), 1)


def _tokens_of(labels):
  return np.sum(labels.reshape(len(labels), -1) >= 0, axis=1)


CLASSIFICATION: Final = "classification"
NEXT_TOKEN: Final = "next_token"
REGRESSION: Final = "regression"

TASKS: dict[TaskName, Task] = {
    CLASSIFICATION: Task(cross_entropy, _share_right, {}),
    NEXT_TOKEN: Task(
        token_cross_entropy,
        _share_of_tokens_right,
        {"test_perplexity": np.exp},
        _tokens_of,
    ),
    REGRESSION: Task(squared_error, None, {"test_rmse": np.sqrt}),
}
