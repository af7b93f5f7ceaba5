"""Which samples each device has.

Devices that use the same memory, such as the cores of a CPU, share all samples.
Otherwise each device has the samples of its own clients and its part of the
test samples, so the samples of a run need not fit one device.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from agsfl import platforms
from agsfl.data.federated import FederatedData


class Layout(NamedTuple):
  """Which samples each device has.

  Attributes:
    mesh: the devices.
    rows: for each device the samples that it has, as ascending row numbers of
      the host's arrays; None if all devices share all samples.
  """

  mesh: Mesh
  rows: list[np.ndarray] | None = None

  @property
  def size(self) -> int:
    """The number of samples of each device; some may be padding."""
    return 0 if self.rows is None else max(1, *map(len, self.rows))

  @property
  def firsts(self) -> np.ndarray:
    """[devices] i32, each device's first row in the arrays of all devices."""
    return np.arange(self.mesh.size, dtype=np.int32) * np.int32(self.size)

  def places(self, device: int, rows: np.ndarray) -> np.ndarray:
    """Rows of the host's arrays -> rows of the arrays of all devices.

    Args:
      device: one that has these samples.
      rows: [...] i32.

    Returns:
      [...] i32.
    """
    if self.rows is None:
      return rows
    found = np.searchsorted(self.rows[device], rows).astype(np.int32)
    return self.firsts[device] + found

  def train_rows(self, data: FederatedData) -> list[np.ndarray]:
    """For each device, rows of the training samples that it evaluates."""
    if self.rows is None:
      return np.array_split(data.clients.order, self.mesh.size)
    return _train_rows(data.clients, self.mesh.size)

  def test_rows(self, data: FederatedData) -> list[np.ndarray]:
    """For each device, rows of the test samples that it evaluates."""
    return np.array_split(data.test_rows, self.mesh.size)


def layout_of(
    runs: Sequence[FederatedData], mesh: Mesh, shared: bool | None = None
) -> Layout:
  """The layout for a run, or for several runs side by side.

  Args:
    runs: all with the samples of the first, NumPy arrays.
    mesh: the devices.
    shared: whether all devices share all samples; None for what is best here.

  Returns:
    The layout.
  """
  layout = Layout(mesh)
  if shared is None:
    shared = mesh.size == 1 or platforms.shares_memory()
  if shared:
    return layout
  parts = [_train_rows(run.clients, mesh.size) for run in runs]
  parts += [layout.test_rows(run) for run in runs]
  return Layout(mesh, [
      np.unique(np.concatenate(own)) for own in zip(*parts, strict=True)
  ])


def _train_rows(clients, num_devices):
  """For each device, what its clients train on, client by client."""
  of_clients = [
      clients.order[start : start + count]
      for start, count in zip(clients.starts, clients.counts, strict=True)
  ]
  most = -(-len(of_clients) // num_devices)
  nothing = np.zeros(0, np.int32)
  return [
      np.concatenate([nothing, *of_clients[most * d : most * (d + 1)]])
      for d in range(num_devices)
  ]


def put(array: np.ndarray, sharding: Sharding) -> jax.Array:
  """An array on devices, also on those of other processes.

  Args:
    array: the same in each process.
    sharding: how the devices share it.

  Returns:
    The array.
  """
  return jax.make_array_from_callback(
      array.shape, sharding, lambda index: array[index]
  )
