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
from agsfl.data import ClientData, FederatedData
from agsfl.models import sample_losses
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


def _in_batches(rows, owners, mesh):
  """Batches over devices: rows, whose they are, and 1 (0 for padding)."""
  ones = np.ones(len(rows), np.float32)
  padded = devices.pad_rows((rows, owners, ones), _BATCH * mesh.size)
  batches = jax.tree.map(lambda x: x.reshape(-1, _BATCH), padded)
  return jax.device_put(batches, NamedSharding(mesh, devices.PER_CLIENT))


def build_evaluate(
    model: Model, data: FederatedData, clients: ClientData, mesh: Mesh
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
  num_clients = len(data.client_names)
  # Nobody's samples are counted past the last client.
  owners = np.where(data.test_clients < 0, num_clients, data.test_clients)
  test_counts = np.bincount(owners, minlength=num_clients + 1)
  order = data.clients.order
  train = _in_batches(order, np.zeros_like(order), mesh)
  test = _in_batches(data.test_rows, owners, mesh)

  def sums(params, clients, batches):
    """Loss and right answers of each client's samples, [N + 1] each."""

    def one(total, batch):
      rows, owners, ones = batch
      logits = model.apply(params, as_float(clients.images[rows]))
      labels = clients.labels[rows]
      losses = ones * sample_losses(logits, labels)
      right = ones * (jnp.argmax(logits, axis=1) == labels)
      of_each = jnp.stack([losses, right])
      return total.at[:, owners].add(of_each), None

    total, _ = lax.scan(one, jnp.zeros((2, num_clients + 1)), batches)
    return lax.psum(total, devices.AXIS)

  sums = jax.jit(
      jax.shard_map(
          sums,
          mesh=mesh,
          in_specs=(
              devices.REPLICATED, devices.CLIENT_DATA, devices.PER_CLIENT
          ),
          out_specs=devices.REPLICATED,
          check_vma=False,
      )
  )

  def evaluate(params):
    train_loss, _ = np.sum(sums(params, clients, train), axis=1, dtype=float)
    of_each = np.asarray(sums(params, clients, test), float)
    test_loss, right = of_each.sum(axis=1) / len(data.test_rows)
    with np.errstate(invalid="ignore"):
      client_loss, client_right = (of_each / test_counts)[:, :num_clients]
    return Evaluation(
        float(train_loss) / len(order),
        float(test_loss),
        float(right),
        client_loss,
        client_right,
    )

  return evaluate
