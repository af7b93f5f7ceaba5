"""Arrays of all clients on several devices: each has its own clients' rows.

The number of rows must be a multiple of the number of devices. Padding adds
clients without samples, which take no part.
"""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agsfl.data import aligned
from agsfl.data.federated import ClientData
from agsfl.errors import require
from agsfl.for_each_client import AXIS, EVERYWHERE
from agsfl.types import PyTree


def count_for(asked: int | None, num_clients: int) -> int:
  """How many devices share the clients.

  Args:
    asked: by the user; None for all devices, but no more than clients.
    num_clients: N.

  Raises:
    ConfigError: there are fewer devices.
  """
  available = jax.device_count()
  count = asked or min(available, num_clients)
  require(
      count <= available,
      "num_devices",
      count,
      f"at most {available}, the {jax.default_backend()} devices that JAX sees",
  )
  return count


def client_mesh(num_devices: int) -> Mesh:
  """The first devices as one mesh axis, for `jax.set_mesh`."""
  devices = np.array(jax.devices()[:num_devices])
  return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def pad_rows(tree: PyTree, multiple: int, axis: int = 0) -> PyTree:
  """Adds zeros until `multiple` divides the length of an axis.

  Args:
    tree: NumPy arrays.
    multiple: at least 1.
    axis: of each array.

  Returns:
    The tree.
  """

  def pad(x):
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % multiple)
    return np.pad(x, widths) if widths[axis][1] else x

  return jax.tree.map(pad, tree)


def place_clients(clients: ClientData, mesh: Mesh) -> ClientData:
  """The data on the devices: each device has all samples and its own clients.

  The cores of one CPU share the samples, see `aligned`. In data of several runs
  `order`, `starts` and `counts` have a leading axis.

  Args:
    clients: NumPy arrays.
    mesh: the devices.

  Returns:
    The data, padded.
  """
  per_client = PartitionSpec(*[None] * (clients.counts.ndim - 1), AXIS)
  placed = {}
  for field in dataclasses.fields(clients):
    array, spec = np.asarray(getattr(clients, field.name)), EVERYWHERE
    if field.name in ("starts", "counts"):
      array, spec = pad_rows(array, mesh.size, axis=-1), per_client
    else:
      array = aligned.aligned(array)
    placed[field.name] = jax.device_put(array, NamedSharding(mesh, spec))
  return ClientData(**placed)


def shardings(specs: PyTree, mesh: Mesh) -> PyTree:
  """The specs as shardings of a mesh."""
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


def specs_of(init: Any) -> PyTree:
  """How each array of a state is split: along the axis that grows with N.

  Args:
    init: N -> the state.

  Returns:
    A PartitionSpec for each array.
  """
  few, more = (jax.eval_shape(lambda n=n: init(n)) for n in (1, 2))

  def spec(a, b):
    for axis, (size, other) in enumerate(zip(a.shape, b.shape, strict=True)):
      if size != other:
        return PartitionSpec(*[None] * axis, AXIS)
    return EVERYWHERE

  return jax.tree.map(spec, few, more)


def without_padding(state: PyTree, specs: PyTree, num_clients: int) -> PyTree:
  """A state as it is saved, which does not depend on the number of devices.

  Args:
    state: on devices.
    specs: from `specs_of`.
    num_clients: N.

  Returns:
    The state with N clients, and with random keys as numbers.
  """

  def cut(x, spec):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.random.key_data(x)
    if AXIS not in spec:
      return x
    return jax.lax.slice_in_dim(x, 0, num_clients, axis=spec.index(AXIS))

  return jax.tree.map(cut, state, specs)


def with_padding(saved: PyTree, like: PyTree, specs: PyTree) -> PyTree:
  """The inverse of `without_padding`, also for another number of devices.

  Args:
    saved: NumPy arrays.
    like: a state on the devices, which gives the rows of padding.
    specs: from `specs_of`.

  Returns:
    The state, on the devices of `like`.
  """

  def fill(x, y, spec):
    if jax.dtypes.issubdtype(y.dtype, jax.dtypes.prng_key):
      return jax.device_put(jax.random.wrap_key_data(x), y.sharding)
    if AXIS in spec:
      axis = spec.index(AXIS)
      rest = jax.lax.slice_in_dim(y, x.shape[axis], y.shape[axis], axis=axis)
      x = np.concatenate([x, np.asarray(rest)], axis)
    return jax.device_put(x, y.sharding)

  return jax.tree.map(fill, saved, like, specs)
