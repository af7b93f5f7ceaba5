"""Losses and accuracy of the global model on all data."""

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

from agsfl.data.federated import ClientData, FederatedData
from agsfl.for_each_client import PER_CLIENT, one_by_one, over_devices
from agsfl.layout import Layout, put
from agsfl.tasks import CLASSIFICATION, TASKS, Task, losses_of
from agsfl.training.client import as_input
from agsfl.training.fast import faster
from agsfl.types import Loss, Model, ModelApply

_BATCH = 250


class Evaluation(NamedTuple):
  """Losses and accuracy of the global model.

  Means are over samples. With next_token they are over labels, so a sample with
  more labels counts more. In minibatches all samples count alike.

  Attributes:
    train_loss: L(w) over the training samples of all clients, or over some of
      them, see `build_evaluate`; cross entropy is in nats.
    test_loss: mean over the test samples.
    test_accuracy: share of their labels that are predicted correctly; NaN for
      labels that are real numbers.
    client_test_loss: [N] means over each client's own test samples; NaN for a
      client without any.
    client_test_accuracy: [N] shares of the labels of these samples.
    derived: [] each by name, see `Task.derived`.
  """

  train_loss: float
  test_loss: float
  test_accuracy: float
  client_test_loss: np.ndarray
  client_test_accuracy: np.ndarray
  derived: Mapping[str, float] = types.MappingProxyType({})


def _some(parts, number):
  """Rows of each device, but at most `number` of all devices together.

  They are at equal distances in the data set, so they do not depend on how rows
  are spread over devices.
  """
  rows = np.sort(np.concatenate(parts))
  if number is None or number >= len(rows):
    return parts
  chosen = rows[np.arange(number) * len(rows) // number]
  return [own[np.isin(own, chosen)] for own in parts]


def _in_batches(parts, layout):
  """The rows of each device in batches; each has as many, so some are padding.

  Returns:
    [batches, size] i32 over the devices, and for each row its place there.
  """
  most = max(1, *map(len, parts))
  length = most + -most % _BATCH
  padded = np.repeat(layout.firsts[:, None], length, axis=1)
  for device, rows in enumerate(parts):
    padded[device, : len(rows)] = layout.places(device, rows)
  batches = padded.reshape(-1, _BATCH)
  places = [
      device * length + np.arange(len(rows))
      for device, rows in enumerate(parts)
  ]
  sharding = NamedSharding(layout.mesh, PER_CLIENT)
  return put(batches, sharding), np.concatenate(places)


@functools.lru_cache(maxsize=16)
def _build_of_batches(apply: ModelApply, loss: Loss, share_right):
  """The compiled part of an evaluation, shared by all runs of a model.

  It is (params [D], ClientData, rows [batches, size]) -> each row's loss, and
  the share of its labels that is predicted correctly.
  """

  outputs_of = faster(apply)

  def of_batch(params, data, rows):
    features, labels = data.samples(rows)
    outputs = outputs_of(params, as_input(features))
    losses = losses_of(loss, outputs, labels)
    if share_right is None:
      return losses, jnp.full_like(losses, jnp.nan)
    return losses, share_right(outputs, labels)

  # Batches take the place of clients: each device has its share of them. One by
  # one, so that only one batch at a time is in memory.
  of_batches = over_devices(one_by_one)(of_batch, (None, None, 0))
  return jax.jit(of_batches)


def build_evaluate(
    model: Model,
    data: FederatedData,
    clients: ClientData,
    layout: Layout,
    task: Task = TASKS[CLASSIFICATION],
    train_samples: int | None = None,
) -> Callable[[jax.Array], Evaluation]:
  """The evaluation of a weight vector on all data.

  Args:
    model: the network.
    data: which samples are tested.
    clients: `data.clients` on the devices.
    layout: these devices, which share the work, and the samples that each has.
    task: how outputs are compared with labels.
    train_samples: the training loss is over so many samples of the data set;
      None for all.

  Returns:
    params [D] -> Evaluation.
  """
  functions: tuple[Any, ...] = (model.apply, task.loss, task.share_right)
  of_batches = _build_of_batches(*functions)
  num_clients = len(data.client_names)
  samples = clients.shared.without("order")
  # One call computes the training and the test samples of each device.
  train = _some(layout.train_rows(data), train_samples)
  test = layout.test_rows(data)
  parts = [np.concatenate(both) for both in zip(train, test, strict=True)]
  batches, places = _in_batches(parts, layout)
  is_test = np.concatenate([
      np.arange(len(own) + len(tested)) >= len(own)
      for own, tested in zip(train, test, strict=True)
  ])
  owned = data.test_clients >= 0
  owners = data.test_clients[owned]
  rows = np.concatenate(parts)
  weights = np.ones(len(rows))
  if task.label_counts is not None:
    labels = np.asarray(data.clients.labels)[rows]
    weights = task.label_counts(labels).astype(np.float64)
  test_weights, train_weights = weights[is_test], weights[~is_test]
  of_owners = test_weights[owned]
  test_counts = np.bincount(owners, of_owners, num_clients)

  def mean(values, weights):
    with np.errstate(invalid="ignore"):
      return float(np.sum(weights * values) / np.sum(weights))

  def client_means(values):
    sums = np.bincount(owners, of_owners * values[owned], num_clients)
    with np.errstate(invalid="ignore"):
      return sums / test_counts

  def evaluate(params):
    with jax.set_mesh(layout.mesh):
      each = of_batches(params, samples, batches)
    each = multihost_utils.process_allgather(each, tiled=True)

    # On the host in float64, because long float32 sums drift.
    losses, right = (x.ravel()[places].astype(np.float64) for x in each)
    train_losses = losses[~is_test]
    losses, right = losses[is_test], right[is_test]
    test_loss = mean(losses, test_weights)
    with np.errstate(over="ignore"):
      derived = {
          name: float(column(np.float32(test_loss)))
          for name, column in task.derived.items()
      }
    return Evaluation(
        train_loss=mean(train_losses, train_weights),
        test_loss=test_loss,
        test_accuracy=mean(right, test_weights),
        client_test_loss=client_means(losses),
        client_test_accuracy=client_means(right),
        derived=derived,
    )

  return evaluate
