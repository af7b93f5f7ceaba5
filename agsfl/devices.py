"""Clients split over devices: each holds its own clients' residuals."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agsfl.data import aligned
from agsfl.data.federated import ClientData
from agsfl.programs import Sweep, build_chunk
from agsfl.rounds import Round
from agsfl.types import PyTree, RoundInfo, RoundState

AXIS = "clients"
PER_CLIENT = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()

CLIENT_DATA = ClientData(
    images=REPLICATED,
    labels=REPLICATED,
    order=REPLICATED,
    starts=PER_CLIENT,
    counts=PER_CLIENT,
)

# Of lanes with rows of their own.
LANE_DATA = CLIENT_DATA.replace(
    starts=PartitionSpec(None, AXIS), counts=PartitionSpec(None, AXIS)
)

# RoundInfo with a leading axis: rounds, or lanes.
_INFOS = RoundInfo(*[REPLICATED] * len(RoundInfo._fields))._replace(
    contributed=PartitionSpec(None, AXIS)
)

# Conditionals on replicated numbers are beyond shard_map's inference.
_CHECKED = False


def client_mesh(num_devices: int) -> Mesh:
  """The first `num_devices` devices as one mesh axis."""
  devices = np.array(jax.devices()[:num_devices])
  return Mesh(devices, (AXIS,), axis_types=(AxisType.Auto,))


def pad_rows(tree: PyTree, multiple: int) -> PyTree:
  """Adds rows of zeros to each leaf until `multiple` divides their number.

  As clients they have no samples and take no part.

  Args:
    tree: NumPy arrays of a common leading axis.
    multiple: at least 1.

  Returns:
    The tree.
  """

  def pad(x):
    rows = -len(x) % multiple
    return np.concatenate([x, np.zeros((rows, *x.shape[1:]), x.dtype)])

  return jax.tree.map(pad, tree)


def split_clients(clients: ClientData, mesh: Mesh) -> ClientData:
  """The clients, padded and split; all devices have all samples.

  The cores of one CPU share the samples, see `aligned`.
  """
  padded = clients.replace(
      images=aligned.aligned(clients.images),
      labels=aligned.aligned(clients.labels),
      starts=pad_rows(clients.starts, mesh.size),
      counts=pad_rows(clients.counts, mesh.size),
  )
  return jax.device_put(padded, _placed(CLIENT_DATA, mesh))


def split_lanes(lanes: list[ClientData], mesh: Mesh) -> ClientData:
  """The rows of lanes side by side, padded and split; the samples once.

  Args:
    lanes: of the same samples and equally many clients and rows.
    mesh: the devices.

  Returns:
    The data; `order`, `starts` and `counts` have a leading axis S.
  """

  def stacked(name):
    rows = [getattr(lane, name) for lane in lanes]
    if name != "order":
      rows = [pad_rows(own, mesh.size) for own in rows]
    return np.stack(rows)

  whole = lanes[0].replace(
      images=aligned.aligned(lanes[0].images),
      labels=aligned.aligned(lanes[0].labels),
      **{name: stacked(name) for name in ("order", "starts", "counts")},
  )
  return jax.device_put(whole, _placed(LANE_DATA, mesh))


def _specs_of(init):
  """Specs of a state: the axis that grows with N, if any, is split."""
  few, more = (jax.eval_shape(lambda n=n: init(n)) for n in (1, 2))

  def spec(a, b):
    for axis, (size, other) in enumerate(zip(a.shape, b.shape, strict=True)):
      if size != other:
        return PartitionSpec(*[None] * axis, AXIS)
    return REPLICATED

  return jax.tree.map(spec, few, more)


def _placed(specs, mesh):
  return jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)


class SplitRound(NamedTuple):
  """A `Round` over a mesh, compiled when called.

  Attributes:
    init: (root_key, num_clients) -> RoundState, placed on the mesh.
    specs: how each array of the state is split.
    chunk: see `programs.build_chunk`; it consumes the state given.
  """

  init: Callable[[jax.Array, int], RoundState]
  specs: RoundState
  chunk: Callable[..., tuple[RoundState, RoundInfo, jax.Array]]


def split_round(
    simulated: Round, length: int, mesh: Mesh, root: PyTree
) -> SplitRound:
  """Runs rounds with the clients split over the mesh.

  Args:
    simulated: built for the mesh axis `AXIS`.
    length: rounds per call at most.
    mesh: from `client_mesh`; its size divides the number of clients.
    root: an example of what it takes as root key, which may hold more.

  Returns:
    The round.
  """
  specs = _specs_of(lambda n: simulated.init(root, n))
  chunk = jax.shard_map(
      build_chunk(simulated.step, length),
      mesh=mesh,
      in_specs=(REPLICATED, CLIENT_DATA, specs, REPLICATED, REPLICATED),
      out_specs=(specs, _INFOS, REPLICATED),
      check_vma=_CHECKED,
  )
  init = jax.jit(
      simulated.init, static_argnums=1, out_shardings=_placed(specs, mesh)
  )
  return SplitRound(init, specs, jax.jit(chunk, donate_argnums=2))


def unpadded(state: PyTree, specs: PyTree, num_clients: int) -> PyTree:
  """A state without the rows of padding, which depend on the devices.

  Args:
    state: placed.
    specs: of a `SplitRound`.
    num_clients: N.

  Returns:
    The state.
  """

  def cut(x, spec):
    if AXIS not in spec:
      return x
    return jax.lax.slice_in_dim(x, 0, num_clients, axis=spec.index(AXIS))

  return jax.tree.map(cut, state, specs)


def padded(state: PyTree, like: PyTree, specs: PyTree, mesh: Mesh) -> PyTree:
  """Undoes `unpadded`, perhaps for another number of devices.

  Args:
    state: NumPy arrays.
    like: a placed state, whose rows of padding are taken.
    specs: of a `SplitRound`.
    mesh: the devices.

  Returns:
    The state, placed.
  """

  def fill(x, y, spec):
    if AXIS not in spec:
      return x
    axis = spec.index(AXIS)
    rest = jax.lax.slice_in_dim(y, x.shape[axis], y.shape[axis], axis=axis)
    return np.concatenate([x, np.asarray(rest)], axis)

  whole = jax.tree.map(fill, state, like, specs)
  return jax.device_put(whole, _placed(specs, mesh))


def split_sweep(
    sweep: Sweep,
    root_keys: jax.Array,
    settings: PyTree,
    mesh: Mesh,
    own_rows: bool = False,
) -> Sweep:
  """The same for simulations side by side; compiled when called.

  Args:
    sweep: its lanes built for the mesh axis `AXIS`.
    root_keys: [S].
    settings: of the lanes, leading axis S.
    mesh: from `client_mesh`.
    own_rows: whether the data come from `split_lanes`, not `split_clients`.

  Returns:
    The sweep; its step consumes the state given.
  """
  specs = _specs_of(lambda n: sweep.init(root_keys, settings, n))
  step = jax.shard_map(
      sweep.step,
      mesh=mesh,
      in_specs=(
          REPLICATED,
          REPLICATED,
          LANE_DATA if own_rows else CLIENT_DATA,
          specs,
      ),
      out_specs=(specs, _INFOS),
      check_vma=_CHECKED,
  )
  init = jax.jit(
      sweep.init, static_argnums=2, out_shardings=_placed(specs, mesh)
  )
  return Sweep(init, jax.jit(step, donate_argnums=3))
