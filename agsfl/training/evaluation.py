"""Losses and accuracy of the global model on all data."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from agsfl.data.federated import ClientData, FederatedData
from agsfl.for_each_client import PER_CLIENT, one_by_one, over_devices
from agsfl.training.client import as_float
from agsfl.training.fast import faster
from agsfl.training.models import sample_losses
from agsfl.types import Loss, Model, ModelApply

_BATCH = 250


class Evaluation(NamedTuple):
  """Losses and accuracy of the global model.

  Attributes:
    train_loss: L(w) over the training samples of all clients; cross entropy is
      in nats.
    test_loss: mean over the test samples.
    test_accuracy: share of test samples that are classified correctly.
    client_test_loss: [N] means over each client's own test samples; NaN for a
      client without any.
    client_test_accuracy: [N] shares of the same samples.
  """

  train_loss: float
  test_loss: float
  test_accuracy: float
  client_test_loss: np.ndarray
  client_test_accuracy: np.ndarray


def _in_batches(rows, mesh):
  """Rows as [batches, size] over the devices, padded with row 0."""
  padded = np.pad(rows, (0, -len(rows) % (_BATCH * mesh.size)))
  return jax.device_put(
      padded.reshape(-1, _BATCH), NamedSharding(mesh, PER_CLIENT)
  )


@functools.lru_cache(maxsize=16)
def _build_of_batches(apply: ModelApply, loss: Loss):
  """The compiled part of an evaluation, shared by all runs of a model.

  It is (params [D], features, labels, rows [batches, size]) -> each row's
  loss, and whether it is classified correctly.
  """

  logits_of = faster(apply)

  def of_batch(params, features, labels, rows):
    logits = logits_of(params, as_float(features[rows]))
    right = jnp.argmax(logits, axis=1) == labels[rows]
    return loss(logits, labels[rows]), right

  # Batches take the place of clients: each device has its share of them. One by
  # one, so that only one batch at a time is in memory.
  of_batches = over_devices(one_by_one)(of_batch, (None, None, None, 0))
  return jax.jit(of_batches)


def build_evaluate(
    model: Model,
    data: FederatedData,
    clients: ClientData,
    mesh: Mesh,
    loss: Loss = sample_losses,
) -> Callable[[jax.Array], Evaluation]:
  """The evaluation of a weight vector on all data.

  Args:
    model: the network.
    data: which samples are tested.
    clients: `data.clients` on the devices.
    mesh: these devices, which share the work.
    loss: of samples.

  Returns:
    params [D] -> Evaluation.
  """
  of_batches = _build_of_batches(model.apply, loss)  # type: ignore[arg-type]
  num_clients = len(data.client_names)
  train = _in_batches(data.clients.order, mesh)
  test = _in_batches(data.test_rows, mesh)
  owned = data.test_clients >= 0
  owners = data.test_clients[owned]
  test_counts = np.bincount(owners, minlength=num_clients)

  def results(params, batches, count):
    """Losses and hits on the host, in float64: long float32 sums drift."""
    with jax.set_mesh(mesh):
      each = of_batches(params, clients.features, clients.labels, batches)
    return (np.asarray(x, np.float64).ravel()[:count] for x in each)

  def client_means(values):
    sums = np.bincount(owners, values[owned], num_clients)
    with np.errstate(invalid="ignore"):
      return sums / test_counts

  def evaluate(params):
    train_loss, _ = results(params, train, len(data.clients.order))
    losses, right = results(params, test, len(data.test_rows))
    return Evaluation(
        train_loss=float(train_loss.mean()),
        test_loss=float(losses.mean()),
        test_accuracy=float(right.mean()),
        client_test_loss=client_means(losses),
        client_test_accuracy=client_means(right),
    )

  return evaluate
