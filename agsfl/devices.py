"""Clients split over devices: each holds its clients' data and residuals."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from agsfl.data import ClientData
from agsfl.rounds import Round, build_chunk
from agsfl.types import PyTree, RoundInfo, RoundState

AXIS = "clients"
PER_CLIENT = PartitionSpec(AXIS)
REPLICATED = PartitionSpec()


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
  """The clients, padded and placed on the mesh's devices."""
  padded = pad_rows(clients, mesh.size)
  return jax.device_put(padded, NamedSharding(mesh, PER_CLIENT))


def _specs_of(init):
  """Specs of a state: what grows with the number of clients is split."""
  few, more = (jax.eval_shape(lambda n=n: init(n)) for n in (1, 2))
  return jax.tree.map(
      lambda a, b: REPLICATED if a.shape == b.shape else PER_CLIENT, few, more
  )


class SplitRound(NamedTuple):
  """A `Round` over a mesh, compiled when called.

  Attributes:
    init: (root_key, num_clients) -> RoundState, placed on the mesh.
    chunk: see `rounds.build_chunk`; it consumes the state given.
  """

  init: Callable[[jax.Array, int], RoundState]
  chunk: Callable[..., tuple[RoundState, RoundInfo, jax.Array]]


def split_round(simulated: Round, length: int, mesh: Mesh) -> SplitRound:
  """Runs rounds with the clients split over the mesh.

  Args:
    simulated: built for the mesh axis `AXIS`.
    length: rounds per call at most.
    mesh: from `client_mesh`; its size divides the number of clients.

  Returns:
    The round.
  """
  key = jax.random.key(0)
  state = _specs_of(lambda n: simulated.init(key, n))
  infos = RoundInfo(*[REPLICATED] * len(RoundInfo._fields))
  infos = infos._replace(contributed=PartitionSpec(None, AXIS))
  chunk = jax.shard_map(
      build_chunk(simulated.step, length),
      mesh=mesh,
      in_specs=(REPLICATED, PER_CLIENT, state, REPLICATED, REPLICATED),
      out_specs=(state, infos, REPLICATED),
      # Conditionals on replicated numbers are beyond its inference.
      check_vma=False,
  )
  placed = jax.tree.map(lambda spec: NamedSharding(mesh, spec), state)
  return SplitRound(
      jax.jit(simulated.init, static_argnums=1, out_shardings=placed),
      jax.jit(chunk, donate_argnums=2),
  )
