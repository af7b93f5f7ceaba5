"""Losses and accuracy of the global model on all data."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding

from agsfl import devices
from agsfl.data.federated import ClientData, FederatedData
from agsfl.training.client import as_float
from agsfl.training.models import sample_losses
from agsfl.types import Model

_BATCH = 250


class Evaluation(NamedTuple):
  """Losses and accuracy of the global model.

  Attributes:
    train_loss: L(w) over all the clients' training samples, nats.
    test_loss: mean over the test samples, nats.
    test_accuracy: share of test samples classified right.
    client_test_loss: [N] means over each client's own test samples, NaN
      where it has none.
    client_test_accuracy: [N] shares of them.
  """

  train_loss: float
  test_loss: float
  test_accuracy: float
  client_test_loss: np.ndarray
  client_test_accuracy: np.ndarray


def _in_batches(rows, mesh):
  """[batches, size] over devices, with padding of row 0."""
  batches = devices.pad_rows(rows, _BATCH * mesh.size).reshape(-1, _BATCH)
  return jax.device_put(batches, NamedSharding(mesh, devices.PER_CLIENT))


@functools.lru_cache(maxsize=16)
def _build_of_samples(model, mesh):
  """The compiled part of an evaluation, which all of a model share.

  It is (params [D], ClientData, rows [batches, size]) -> each row's loss, and
  whether it is classified right.
  """

  def of_samples(params, clients, batches):
    def one(rows):
      logits = model.apply(params, as_float(clients.images[rows]))
      labels = clients.labels[rows]
      return sample_losses(logits, labels), jnp.argmax(logits, 1) == labels

    return lax.map(one, batches)

  return jax.jit(
      jax.shard_map(
          of_samples,
          mesh=mesh,
          in_specs=(
              devices.REPLICATED, devices.CLIENT_DATA, devices.PER_CLIENT
          ),
          out_specs=devices.PER_CLIENT,
          check_vma=False,
      )
  )


def build_evaluate(
    model: Model,
    data: FederatedData,
    clients: ClientData,
    mesh: Mesh,
) -> Callable[[jax.Array], Evaluation]:
  """The evaluation of a weight vector on all data.

  Args:
    model: the network.
    data: which samples are tested.
    clients: `data.clients` as `devices.split_clients` placed it.
    mesh: the devices that share the work.

  Returns:
    params [D] -> Evaluation.
  """
  of_samples = _build_of_samples(model, mesh)
  num_clients = len(data.client_names)
  train = _in_batches(data.clients.order, mesh)
  test = _in_batches(data.test_rows, mesh)
  owned = data.test_clients >= 0
  owners = data.test_clients[owned]
  test_counts = np.bincount(owners, minlength=num_clients)

  def results(params, batches, count):
    """The same on the host, in float64: single sums of so many drift."""
    return (
        np.asarray(x, np.float64).ravel()[:count]
        for x in of_samples(params, clients, batches)
    )

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
