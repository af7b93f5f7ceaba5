"""Losses and accuracy of the global model on all data."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from agsfl import devices
from agsfl.client import as_float
from agsfl.data import FederatedData
from agsfl.models import sample_losses
from agsfl.types import Model

_BATCH = 250


class Evaluation(NamedTuple):
  """Losses and accuracy of the global model; all floats.

  Attributes:
    train_loss: L(w) over all training samples, nats.
    test_loss: mean over the test samples, nats.
    test_accuracy: share of test samples classified right.
  """

  train_loss: float
  test_loss: float
  test_accuracy: float


def _in_batches(images, labels, mesh):
  """Batches over devices; beside each sample a 1, beside padding a 0."""
  count = len(labels)
  ones = np.ones(count, np.float32)
  padded = devices.pad_rows((images, labels, ones), _BATCH * mesh.size)
  batches = jax.tree.map(
      lambda x: x.reshape(-1, _BATCH, *x.shape[1:]), padded
  )
  return jax.device_put(batches, NamedSharding(mesh, devices.PER_CLIENT))


def build_evaluate(
    model: Model, data: FederatedData, mesh: Mesh
) -> Callable[[jax.Array], Evaluation]:
  """The evaluation of a weight vector on all data.

  Args:
    model: the network.
    data: training and test samples.
    mesh: the devices that share the work.

  Returns:
    params [D] -> Evaluation.
  """
  clients = data.clients
  own = np.arange(clients.labels.shape[1]) < clients.counts[:, None]
  train = _in_batches(clients.images[own], clients.labels[own], mesh)
  test = _in_batches(data.test_images, data.test_labels, mesh)

  def means(params, batches):
    def one(batch):
      images, labels, ones = batch
      logits = model.apply(params, as_float(images))
      losses = sample_losses(logits, labels)
      right = jnp.argmax(logits, axis=1) == labels
      return jnp.sum(ones * losses), jnp.sum(ones * right), jnp.sum(ones)

    sums = jax.tree.map(jnp.sum, lax.map(one, batches))
    loss, right, count = lax.psum(sums, devices.AXIS)
    return loss / count, right / count

  means = jax.jit(
      jax.shard_map(
          means,
          mesh=mesh,
          in_specs=(devices.REPLICATED, devices.PER_CLIENT),
          out_specs=devices.REPLICATED,
          check_vma=False,
      )
  )

  def evaluate(params):
    train_loss, _ = means(params, train)
    test_loss, accuracy = means(params, test)
    return Evaluation(float(train_loss), float(test_loss), float(accuracy))

  return evaluate
