"""Ways to run a function of one client for all clients.

Each has the signature of `jax.vmap`, which is the first of them and the
reference: (function, in_axes) -> the function with a leading axis N. What one
client computes does not depend on which way is taken.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

# The mesh axis over which clients are split.
AXIS = "clients"
PER_CLIENT = PartitionSpec(AXIS)
EVERYWHERE = PartitionSpec()

# For each argument: 0 where it has the axis of clients, None where it is
# shared by all of them.
InAxes = int | None | tuple[int | None, ...]


class ForEachClient(Protocol):
  """The signature of `jax.vmap` as far as it is used here."""

  def __call__(
      self, function: Callable[..., Any], in_axes: InAxes = 0, /
  ) -> Callable[..., Any]:
    """Returns `function` for all clients."""


def one_by_one(
    function: Callable[..., Any], in_axes: InAxes = 0
) -> Callable[..., Any]:
  """One client after another, so that its arrays stay in a CPU's caches.

  An array of the results takes the memory of an argument of the same shape and
  type, row by row: each row is read before it is written. So residuals [N, D]
  change in place, as long as nothing but the new row is computed from the old
  one (XLA copies the whole array for every client if two kernels read it).

  Args:
    function: of one client.
    in_axes: as in `jax.vmap`, 0 or None for each argument.

  Returns:
    The function of all clients.
  """

  def mapped(*args):
    # Arguments that do not fit are refused here, as vmap does.
    jax.vmap(lambda *args: None, in_axes)(*args)
    axes = _each(in_axes, args)
    mine = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]
    stacked, structure = jax.tree.flatten(mine)

    def of_client(rows):
      mine = iter(jax.tree.unflatten(structure, rows))
      result = function(*(
          next(mine) if axis == 0 else arg
          for arg, axis in zip(args, axes, strict=True)
      ))
      return jax.tree.flatten(result)

    def shapes_of(rows):
      leaves, result_structure = of_client(rows)
      results.append(result_structure)
      return leaves

    results: list[Any] = []
    shapes = jax.eval_shape(shapes_of, [
        jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in stacked
    ])
    homes = _homes(stacked, shapes)
    arrays = {home: stacked[home] for home in homes if home is not None}
    others = [leaf for i, leaf in enumerate(stacked) if i not in arrays]

    def step(carry, rows):
      client, arrays = carry
      others = iter(rows)
      leaves, _ = of_client([
          arrays[i][client] if i in arrays else next(others)
          for i in range(len(stacked))
      ])
      arrays = {
          home: arrays[home].at[client].set(leaf)
          for home, leaf in zip(homes, leaves, strict=True)
          if home is not None
      }
      fresh = [
          leaf
          for home, leaf in zip(homes, leaves, strict=True)
          if home is None
      ]
      return (client + 1, arrays), fresh

    carry = (jnp.int32(0), arrays)
    (_, arrays), fresh = lax.scan(step, carry, others, len(stacked[0]))
    rest = iter(fresh)
    return jax.tree.unflatten(
        results[0],
        [next(rest) if home is None else arrays[home] for home in homes],
    )

  return mapped


def _homes(stacked, shapes):
  """For each result the argument whose memory it takes, or None.

  Single numbers need none: they are small, and would be copied whole.
  """
  free = list(range(len(stacked)))
  homes = []
  for shape in shapes:
    home = next(
        (
            i
            for i in free
            if shape.ndim
            and stacked[i].shape[1:] == shape.shape
            and stacked[i].dtype == shape.dtype
        ),
        None,
    )
    if home is not None:
      free.remove(home)
    homes.append(home)
  return homes


def over_devices(for_each_client: ForEachClient) -> ForEachClient:
  """Each device of the mesh in use runs its own clients.

  The mesh is that of `jax.set_mesh`; without one, or on one device, nothing is
  split. Arguments that all clients share must be passed with the axis None: a
  function must not close over them.

  Args:
    for_each_client: how a device runs its clients.

  Returns:
    A way for all devices. Its arrays have all clients; the devices' number
    must divide N.
  """

  def split(function, in_axes=0):
    here = for_each_client(function, in_axes)

    def mapped(*args):
      if not is_split():
        return here(*args)
      specs = tuple(
          PER_CLIENT if axis == 0 else EVERYWHERE
          for axis in _each(in_axes, args)
      )
      return jax.shard_map(
          here, in_specs=specs, out_specs=PER_CLIENT, check_vma=False
      )(*args)

    return mapped

  return split


def is_split() -> bool:
  """Whether clients are split over devices, and this code sees all of them.

  Inside `jax.shard_map` a device sees its own clients alone.
  """
  mesh = jax.sharding.get_abstract_mesh()
  return (
      AXIS in mesh.axis_names
      and mesh.shape[AXIS] > 1
      and AXIS not in mesh.manual_axes
  )


def _each(in_axes, args):
  """An axis for each argument."""
  return in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(args)
