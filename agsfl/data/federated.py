"""A data set dealt to clients: the samples once, and which are whose."""

import hashlib
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from agsfl.data import sources
from agsfl.data.partitions import Partition, deal
from agsfl.errors import ConfigError

# These come with packages; files of all others may be replaced.
EMBEDDED = ("mnist_5k", "digits")


@flax.struct.dataclass
class ClientData:
  """Samples, and which of them each client trains on.

  The samples lie once in memory, in any order and with any others between:
  clients of very different sizes need no padding.

  Attributes:
    images: [C, H, W, C'], uint8 (read as v / 255) or float32.
    labels: [C] i32.
    order: [M] i32, rows of the above, one client's after another's.
    starts: [N] i32, where in `order` a client's begin.
    counts: [N] i32, C_i.
  """

  images: jax.Array
  labels: jax.Array
  order: jax.Array
  starts: jax.Array
  counts: jax.Array

  @classmethod
  def of(cls, images, labels, rows: list[np.ndarray]) -> "ClientData":
    """Client i holds rows[i] of the images and labels."""
    counts = np.array([len(own) for own in rows], np.int32)
    return cls(
        images=images,
        labels=labels,
        order=np.concatenate(rows).astype(np.int32),
        starts=(np.cumsum(counts) - counts).astype(np.int32),
        counts=counts,
    )


class FederatedData(NamedTuple):
  """A data set dealt to clients.

  Attributes:
    clients: all samples, and the clients' training samples; NumPy arrays.
    test_rows: [T] i32, the test samples among them.
    test_clients: [T] i32, the client that each belongs to by the partition's
      rule, or -1.
    client_names: [N] str.
    num_classes: L.
  """

  clients: ClientData
  test_rows: np.ndarray
  test_clients: np.ndarray
  client_names: np.ndarray
  num_classes: int


def load(dataset: str, partition: Partition | None = None) -> FederatedData:
  """Loads a data set and deals it to clients.

  Args:
    dataset: "mnist_5k" (5,000 MNIST digits), "digits" (1,797 of 8 x 8),
      "npz:PATH" (keys images, labels, is_train and client), "leaf:DIR" (the
      folder with LEAF's train and test), "femnist" (`sources.femnist`, once
      prepared) or "tfds:NAME" (TensorFlow Datasets).
    partition: None means the default one.

  Returns:
    The federated data.

  Raises:
    ConfigError: the file or the settings cannot be used.
  """
  if not sources.is_known(dataset):
    raise ConfigError(f"--dataset={dataset}: must be {sources.ALLOWED}")
  partition = partition or Partition()
  samples = sources.read(dataset, partition.seed)
  dealt = deal(samples, partition)
  owner = np.full(len(samples.labels), -1, np.int32)
  for client, rows in enumerate(dealt.test):
    owner[rows] = client
  test_rows = np.flatnonzero(~samples.is_train).astype(np.int32)
  return FederatedData(
      clients=ClientData.of(samples.images, samples.labels, dealt.train),
      test_rows=test_rows,
      test_clients=owner[test_rows],
      client_names=dealt.names,
      num_classes=int(samples.labels.max()) + 1,
  )


def fingerprint(data: FederatedData) -> str:
  """What tells one set of data, dealt one way, from every other.

  Args:
    data: with NumPy arrays.

  Returns:
    16 hexadecimal digits.
  """
  told = hashlib.blake2b(digest_size=8)
  for array in (*jax.tree.leaves(data.clients), data.test_rows,
                data.test_clients, data.client_names):
    array = np.ascontiguousarray(array)
    told.update(f"{array.dtype} {array.shape}".encode())
    told.update(array.reshape(-1).view(np.uint8))
  return told.hexdigest()
