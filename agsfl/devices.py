"""Arrays of all clients on several devices: each has its own clients' rows.

The number of rows must be a multiple of the number of devices. Padding adds
clients without samples, which take no part.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agsfl import aligned, hosts
from agsfl.data.federated import ClientData
from agsfl.errors import require
from agsfl.for_each_client import AXIS, EVERYWHERE, PER_CLIENT
from agsfl.layout import Layout, put
from agsfl.types import PyTree


def count_for(asked: int | None, num_clients: int) -> int:
  """How many devices share the clients.

  Args:
    asked: by the user; None for all devices, but no more than clients. Several
      processes always use all of their devices.
    num_clients: N.

  Raises:
    ConfigError: there are fewer devices, or several processes are to leave out
      some.
  """
  available = jax.device_count()
  if hosts.several():
    require(
        asked in (None, available),
        "num_devices",
        asked,
        f"unset, or {available}: several processes use all of their devices",
    )
    return available
  count = asked or min(available, num_clients)
  require(
      count <= available,
      "num_devices",
      count,
      f"at most {available}, the {jax.default_backend()} devices that JAX sees",
  )
  return count


def client_mesh(num_devices: int) -> Mesh:
  """The first devices as one mesh axis, for `jax.set_mesh`.

  The devices of a process lie side by side. A second axis may follow later, for
  models that one device cannot hold.
  """
  in_order = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))
  devices = np.array(in_order[:num_devices])
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


def place_clients(
    clients: ClientData, mesh: Mesh, layout: Layout | None = None
) -> ClientData:
  """The data on the devices, each with its own clients.

  In data of several runs `order`, `starts` and `counts` have a leading axis.

  Args:
    clients: NumPy arrays.
    mesh: the devices.
    layout: which samples each device has; None means all of them.

  Returns:
    The data, padded.
  """
  layout = layout or Layout(mesh)
  everywhere = NamedSharding(mesh, EVERYWHERE)
  runs = [None] * (clients.counts.ndim - 1)
  per_client = NamedSharding(mesh, PartitionSpec(*runs, AXIS))
  counts = pad_rows(np.asarray(clients.counts), mesh.size, axis=-1)
  starts = pad_rows(np.asarray(clients.starts), mesh.size, axis=-1)
  # The samples; where devices have only their own, `order` and `starts` follow.
  if layout.rows is None:
    # The cores of a CPU use such arrays without a copy.
    features = put(aligned.aligned(np.asarray(clients.features)), everywhere)
    labels = put(aligned.aligned(np.asarray(clients.labels)), everywhere)
    order, first = np.asarray(clients.order), None
  else:
    features = _put_rows(np.asarray(clients.features), layout)
    labels = _put_rows(np.asarray(clients.labels), layout)
    order, starts = _in_place(clients.order, starts, counts, layout)
    first = put(layout.firsts, NamedSharding(mesh, PER_CLIENT))
  def put_own(x):
    """Arrays of each client, padded; other numbers are everywhere."""
    x = np.asarray(x)
    axis = len(runs)
    if x.ndim <= axis:
      return put(x, everywhere)
    return put(pad_rows(x, mesh.size, axis), per_client)

  return ClientData(
      features=features,
      labels=labels,
      order=put(order, everywhere),
      starts=put(starts, per_client),
      counts=put(counts, per_client),
      first=first,
      speeds=jax.tree.map(put_own, clients.speeds),
      availability=jax.tree.map(put_own, clients.availability),
  )


def _put_rows(array, layout):
  """[devices * size, ...]: for each device its own rows of the array."""

  def of_device(index):
    rows = layout.rows[(index[0].start or 0) // layout.size]
    own = aligned.empty((layout.size, *array.shape[1:]), array.dtype)
    own[: len(rows)] = array[rows]
    own[len(rows) :] = 0
    return own

  mesh = layout.mesh
  shape = (mesh.size * layout.size, *array.shape[1:])
  return jax.make_array_from_callback(
      shape, NamedSharding(mesh, PER_CLIENT), of_device
  )


def _in_place(order, starts, counts, layout):
  """`order` and `starts` for the arrays of `_put_rows`, of one or more runs."""
  if counts.ndim > 1:
    runs = zip(order, starts, counts, strict=True)
    both = [_in_place(*run, layout) for run in runs]
    return tuple(map(np.stack, zip(*both, strict=True)))
  of_device = len(counts) // layout.mesh.size
  rows = [
      layout.places(client // of_device, order[start : start + count])
      for client, (start, count) in enumerate(zip(starts, counts, strict=True))
  ]
  ends = np.cumsum(counts, dtype=np.int32)
  return np.concatenate(rows), ends - counts


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

  Arrays that several processes share keep their padding, because no process has
  them whole. Orbax cuts them when it reads them.

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
    if AXIS not in spec or hosts.several():
      return x
    return jax.lax.slice_in_dim(x, 0, num_clients, axis=spec.index(AXIS))

  return jax.tree.map(cut, state, specs)


def shapes_of_saved(pack: Callable[[Any], PyTree], state: PyTree) -> PyTree:
  """The shapes and types of what is saved of a state.

  Args:
    pack: state -> what is saved.
    state: on the devices.

  Returns:
    For each array a ShapeDtypeStruct, for several processes with its sharding.
  """
  if not hosts.several():
    return jax.eval_shape(pack, state)
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding),
      pack(state),
  )


def with_padding(saved: PyTree, like: PyTree, specs: PyTree) -> PyTree:
  """The inverse of `without_padding`, also for another number of devices.

  Args:
    saved: NumPy arrays; those that several processes share are on the devices.
    like: a state on the devices, which gives the rows of padding.
    specs: from `specs_of`.

  Returns:
    The state, on the devices of `like`.
  """

  def fill(x, y, spec):
    if isinstance(x, jax.Array):
      return x
    if jax.dtypes.issubdtype(y.dtype, jax.dtypes.prng_key):
      return jax.random.wrap_key_data(put(x, y.sharding))
    if AXIS in spec:
      axis = spec.index(AXIS)
      rest = jax.lax.slice_in_dim(y, x.shape[axis], y.shape[axis], axis=axis)
      x = np.concatenate([x, np.asarray(rest)], axis)
    return put(x, y.sharding)

  return jax.tree.map(fill, saved, like, specs)
