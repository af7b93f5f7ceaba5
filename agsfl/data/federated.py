"""A data set with its clients: samples, and which client has which."""

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from agsfl.data import sources
from agsfl.data.partitions import Partition, assign
from agsfl.data.samples import (
  Samples,
  as_array,
  as_whole,
  checked,
  checked_features,
  checked_labels,
  form,
  is_text,
  most_classes,
  most_outputs,
  num_outputs,
  require_labels,
)
from agsfl.data.sources import SourceOptions, arrays
from agsfl.errors import refuse, refused, require
from agsfl.for_each_client import EVERYWHERE, PER_CLIENT
from agsfl.names import DatasetName, TaskName
from agsfl.tasks import CLASSIFICATION, NEXT_TOKEN, REGRESSION, TASKS
from agsfl.types import Form, PyTree

# NumPy's on the host, JAX's on devices.
Array = jax.Array | np.ndarray


@flax.struct.dataclass
class ClientData:
  """Samples, and which of them each client trains on.

  The samples are in memory once, in any order, and test samples may lie between
  them. So clients of very different sizes need no padding.

  Attributes:
    features: [C, ...], see `samples.Samples`.
    labels: [C], or with an axis for each number of a label.
    order: [M] i32, rows of these arrays: first those of client 0, then those of
      client 1, ...
    starts: [N] i32, where the rows of each client begin in `order`.
    counts: [N] i32, C_i.
    first: [devices] i32, where each device has only some of the samples: the
      row of the first of them. None where all have all.
    speeds: of each client, see `clocks.Speeds`; `build` sets it for a clock in
      seconds.
    availability: when each client is available, see `clocks.Availability`;
      None if they always are. `build` sets it too.
  """

  features: Array
  labels: Array
  order: Array
  starts: Array
  counts: Array
  first: Array | None = None
  speeds: PyTree = None
  availability: PyTree = None

  def samples(self, rows: Array) -> tuple[Array, Array]:
    """Features and labels of some rows, which this device has."""
    if self.first is not None:
      rows = rows - self.first[0]
    return self.features[rows], self.labels[rows]

  def without(self, *names: str) -> "ClientData":
    """The data without some of the arrays, for work that needs only others."""
    absent: dict[str, Any] = dict.fromkeys(names)
    return dataclasses.replace(self, **absent)

  @property
  def shared(self) -> "ClientData":
    """The data without the arrays that have an axis of clients."""
    return self.without("starts", "counts", "speeds", "availability")

  def only(self, clients: jax.Array) -> "ClientData":
    """The data of some clients.

    Args:
      clients: [n] i32; a number >= N is a client without samples.
    """
    own = lambda x: jnp.take(x, clients, 0, mode="fill", fill_value=0)
    return dataclasses.replace(
        self,
        starts=own(self.starts),
        counts=own(self.counts),
        speeds=jax.tree.map(own, self.speeds),
        availability=None,
    )

  @property
  def specs(self) -> PyTree:
    """How the samples and `order` are split over devices."""
    if self.first is None:
      return EVERYWHERE
    return dataclasses.replace(
        jax.tree.map(lambda _: PER_CLIENT, self), order=EVERYWHERE
    )

  @classmethod
  def of(
      cls, features: Any, labels: Any, rows: Sequence[Any]
  ) -> "ClientData":
    """Client i trains on rows[i] of the features and labels.

    Args:
      features, labels: see the class.
      rows: for each client whole numbers.

    Raises:
      ConfigError: rows are not whole numbers, or beyond the labels.
    """
    setting, whole = "ClientData.of", []
    for client, own in enumerate(rows):
      given = as_array(setting, f"rows of client {client}", own)
      of_client = as_whole(given, 1)
      if of_client is None:
        refuse(
            setting,
            f"rows of client {client} must be a list of whole numbers, not "
            f"{form(given)}",
        )
      whole.append(of_client)
    counts = np.array([len(own) for own in whole], np.int32)
    order = np.concatenate([np.zeros(0, np.int64), *whole])
    outside = order[(order < 0) | (order >= len(labels))]
    if outside.size:
      refuse(
          setting,
          f"rows must lie in 0 to {len(labels) - 1}, found {outside[0]:.0f}",
      )
    return cls(
        features=features,
        labels=labels,
        order=order.astype(np.int32),
        starts=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
    )


class FederatedData(NamedTuple):
  """A data set with its clients.

  Attributes:
    clients: all samples, and the clients' training samples; NumPy arrays.
    test_rows: [T] i32, the test samples among them; see
      `partitions.ClientRows`.
    test_clients: [T] i32, the client of each test sample by the partition's
      rule, or -1.
    client_names: [N] str.
    num_classes: L, the outputs that a network needs: classes, or different
      tokens, or the numbers of a label.
    task: a name of `tasks.TASKS`.
  """

  clients: ClientData
  test_rows: np.ndarray
  test_clients: np.ndarray
  client_names: np.ndarray
  num_classes: int
  task: TaskName = CLASSIFICATION

  @property
  def form(self) -> Form:
    """What a network sees of these data; their arrays are NumPy's."""
    features, labels = self.clients.features, self.clients.labels
    outputs: tuple[int, ...] = (self.num_classes,)
    are_whole = features.dtype in (np.int8, np.int16, np.int32)
    vocabulary = None
    if self.task == NEXT_TOKEN:
      vocabulary = self.num_classes
      outputs = (*labels.shape[1:], *outputs)
    elif are_whole and features.ndim == 2 and features.min() >= 0:
      # Larger numbers are not the numbers of tokens.
      if features.max() < most_classes(features.size):
        vocabulary = int(features.max()) + 1
    return Form(
        tuple(features.shape[1:]), outputs, vocabulary,
        is_whole=are_whole and vocabulary is None,
    )


def load(
    dataset: DatasetName | str,
    partition: Partition | None = None,
    options: SourceOptions | None = None,
) -> FederatedData:
  """Loads a data set and gives its samples to clients.

  Args:
    dataset: "mnist_5k" (5,000 MNIST digits), "digits" (1,797 of 8 x 8),
      "topics" (Python's documentation, as text), "npz:PATH", "folder:DIR"
      (images, a subfolder for each class), "csv:PATH", "leaf:DIR" (LEAF's train
      and test), "text:PATH" (a text file or a folder of them), "femnist"
      (prepared by `sources.femnist`), "tfds:NAME" (TensorFlow Datasets), or a
      source of your own, see `register_source`.
    partition: None means the default one.
    options: how files are read; None means the defaults.

  Returns:
    The federated data.

  Raises:
    ConfigError: the file or the settings cannot be used.
  """
  partition = partition or Partition()
  options = options or SourceOptions()
  samples = sources.read(dataset, options, partition.used_data_seed)
  return _assigned(samples, partition)


def from_arrays(
    x: Any,
    y: Any,
    clients: Any = None,
    is_train: Any = None,
    partition: Partition | None = None,
    task: TaskName | None = None,
) -> FederatedData:
  """Makes federated data of your own arrays.

  >>> x = np.arange(12.0).reshape(6, 2)
  >>> data = from_arrays(x, [0, 1, 0, 1, 0, 1], clients=list("aabbab"))
  >>> data.client_names.tolist(), data.clients.features.shape
  (['a', 'b'], (6, 2))

  Args:
    x: [C, ...] features; samples keep their shape. uint8 is read as v / 255;
      other whole numbers stay whole, as tokens are; all other real numbers
      become float32. Images are [C, H, W, channels]. The array is not copied
      if it has its final type.
    y: [C] labels, whole numbers from 0; or what the task needs.
    clients: [C] ids of the samples' clients, integers or strings.
    is_train: [C] bool. None: a fifth is held out for testing, by the
      partition's data seed.
    partition: None means natural if `clients` are given; otherwise the default
      one, or iid if samples have no class.
    task: "classification"; "next_token": x are tokens [C, T], uint8 too, y are
      [C] or [C, T], -1 for no label; "regression": y are numbers [C] or [C, V].
      None: next_token if y are x moved by one token; else classification.

  Returns:
    The federated data.

  Raises:
    ConfigError: the text names the array.
  """
  _require_task(task)
  seed = 0 if partition is None else partition.used_data_seed
  samples = arrays.samples_of(
      "from_arrays", x, y, clients, is_train, seed=seed
  )
  samples = checked(samples._replace(task=task))
  if partition is None:
    default = "iid" if samples.classes is None else "one_class"
    partition = Partition(default if clients is None else "natural")
  return _assigned(samples, partition)


def _require_task(task):
  require(
      task is None or task in TASKS, "task", task, f"one of {', '.join(TASKS)}"
  )


def _assigned(samples: Samples, partition: Partition) -> FederatedData:
  """The samples with their clients."""
  assert samples.task is not None  # `checked` finds it
  rows = assign(samples, partition)
  client = np.full(len(samples.labels), -1, np.int32)
  for number, own in enumerate(rows.test):
    client[own] = number
  test_rows = np.sort(np.concatenate([*rows.test, rows.others]))
  test_rows = test_rows.astype(np.int32)
  return FederatedData(
      clients=ClientData.of(samples.features, samples.labels, rows.train),
      test_rows=test_rows,
      test_clients=client[test_rows],
      client_names=rows.names,
      num_classes=samples.num_classes,
      task=samples.task,
  )


def validated(data: FederatedData) -> FederatedData:
  """Checks federated data that were made by hand.

  Args:
    data: its arrays are of any kind that NumPy can read.

  Returns:
    The data as NumPy arrays of the types in the classes' descriptions.

  Raises:
    ConfigError: the text names the array.
  """
  # Each array by itself.
  clients, setting, task = data.clients, "data", data.task
  _require_task(task)
  features = checked_features(
      setting, "features", as_array(setting, "features", clients.features), task
  )
  count = len(features)
  labels = as_array(setting, "labels", clients.labels)
  most = most_outputs(task, features, labels)
  num_classes = int(_whole("num_classes", data.num_classes, 1, most + 1))
  labels = checked_labels(
      setting, "labels", labels, features.shape, num_classes, task
  )
  needed = num_outputs(task, features, labels)
  fits = needed == num_classes if task == REGRESSION else needed <= num_classes
  if not fits:
    refuse(setting, f"num_classes must be {needed}, found {num_classes}")
  order = _whole("order", clients.order, 0, count, axes=1)
  counts = _whole("counts", clients.counts, 0, len(order) + 1, axes=1)
  starts = _whole("starts", clients.starts, 0, len(order) + 1, axes=1)
  names = _names(setting, data.client_names)
  test_rows = _whole("test_rows", data.test_rows, 0, count, axes=1)
  test_clients = _whole(
      "test_clients", data.test_clients, -1, len(counts), axes=1
  )

  # The arrays together.
  for fits, problem in (
      (starts.shape == counts.shape, "starts must be one for each of counts"),
      (names.shape == counts.shape, "client_names must be one for each client"),
      (
          test_clients.shape == test_rows.shape,
          "test_clients must be one for each of test_rows",
      ),
      (counts.any(), "counts must have a training sample"),
      (test_rows.size, "test_rows must have a test sample"),
  ):
    if not fits:
      refuse(setting, problem)
  if (starts.astype(np.int64) + counts > len(order)).any():
    refuse(setting, f"starts + counts must be at most {len(order)}")
  require_labels(setting, "labels", labels[order], labels[test_rows])
  return FederatedData(
      ClientData(features, labels, order, starts, counts),
      test_rows,
      test_clients,
      names,
      num_classes,
      task,
  )


def _names(setting, values):
  """Names of clients, as text that can be written."""
  problem = "client_names must be text that can be written as UTF-8"
  with refused(setting, problem, ValueError):
    names = as_array(setting, "client_names", values).astype(str)
  if not is_text(names):
    refuse(setting, problem)
  return names


def _whole(name, values, least, end, axes=0):
  """Whole numbers from `least` to below `end`, as int32."""
  given = as_array("data", name, values)
  array = as_whole(given, axes)
  if array is None:
    refuse(
        "data",
        f"{name} must be whole numbers with {axes} axes, not {form(given)}",
    )
  outside = array[(array < least) | (array >= end)]
  if outside.size:
    refuse(
        "data",
        f"{name} must lie in {least} to {end - 1}, found {outside.flat[0]}",
    )
  return array.astype(np.int32)


def fingerprint(data: FederatedData) -> str:
  """A hash of the data and of their partition, for comparison.

  Args:
    data: with NumPy arrays.

  Returns:
    16 hexadecimal digits.
  """
  digest = hashlib.blake2b(digest_size=8)
  for array in (*jax.tree.leaves(data.clients), data.test_rows,
                data.test_clients, data.client_names):
    array = np.ascontiguousarray(array)
    digest.update(f"{array.dtype} {array.shape}".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
  if data.task != CLASSIFICATION:
    digest.update(data.task.encode())
  return digest.hexdigest()
