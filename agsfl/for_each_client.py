"""Ways to run a function of one client for all clients.

Each way has the signature of `jax.vmap`, (function, in_axes) -> the function
with a leading axis N. `jax.vmap` itself is the reference: every other way
computes the same for each client.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core
from jax.sharding import PartitionSpec

# The mesh axis over which clients are split.
AXIS = "clients"
PER_CLIENT = PartitionSpec(AXIS)
EVERYWHERE = PartitionSpec()

# For each argument: 0 if it has the axis of clients, None if all share it.
InAxes = int | None | tuple[int | None, ...]


class ForEachClient(Protocol):
  """The part of `jax.vmap`'s signature that is used here."""

  def __call__(
      self, function: Callable[..., Any], in_axes: InAxes = 0, /
  ) -> Callable[..., Any]:
    """Returns `function` for all clients."""


def one_by_one(
    function: Callable[..., Any], in_axes: InAxes = 0
) -> Callable[..., Any]:
  """One client after another, so that its arrays stay in a CPU's caches.

  A result with the shape and type of an argument takes that argument's memory,
  row by row: each row is read before it is written. So residuals [N, D] change
  in place. This needs a function that computes nothing but the new row from the
  old one: if two kernels read it, XLA copies the whole array for every client.

  Args:
    function: of one client.
    in_axes: as in `jax.vmap`, 0 or None for each argument.

  Returns:
    The function of all clients.
  """

  def mapped(*args):
    own, of_own = _apart(function, in_axes, args)
    stacked, structure = jax.tree.flatten(own)
    of_client = lambda rows: of_own(jax.tree.unflatten(structure, rows))

    # Which results take the memory of an argument; the others get their own.
    shapes, result_structure = jax.tree.flatten(jax.eval_shape(of_client, [
        jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in stacked
    ]))
    homes = _homes(stacked, shapes)
    arrays = {home: stacked[home] for home in homes if home is not None}
    others = [leaf for i, leaf in enumerate(stacked) if i not in arrays]

    def step(carry, rows):
      # The client's row of each argument.
      client, arrays = carry
      rest = iter(rows)
      leaves = jax.tree.leaves(of_client([
          arrays[i][client] if i in arrays else next(rest)
          for i in range(len(stacked))
      ]))

      # Its results, in place or new.
      places = list(zip(homes, leaves, strict=True))
      arrays = {
          home: arrays[home].at[client].set(leaf)
          for home, leaf in places
          if home is not None
      }
      fresh = [leaf for home, leaf in places if home is None]
      return (client + 1, arrays), fresh

    carry = (jnp.int32(0), arrays)
    (_, arrays), fresh = lax.scan(step, carry, others, len(stacked[0]))

    # All results in the order in which the function gives them.
    rest = iter(fresh)
    return jax.tree.unflatten(
        result_structure,
        [next(rest) if home is None else arrays[home] for home in homes],
    )

  return mapped


def _apart(function, in_axes, args):
  """The arguments with the axis N, and the function of one client's alone."""
  # vmap refuses arguments that do not fit.
  jax.vmap(lambda *args: None, in_axes)(*args)
  axes = _each(in_axes, args)
  own = [arg for arg, axis in zip(args, axes, strict=True) if axis == 0]

  def of_own(own):
    own = iter(own)
    return function(*(
        next(own) if axis == 0 else arg
        for arg, axis in zip(args, axes, strict=True)
    ))

  return own, of_own


def _homes(stacked, shapes):
  """For each result, the index of the argument whose memory it takes, or None.

  Single numbers need none: they are small, and XLA would copy the whole array.
  """
  free = list(range(len(stacked)))
  homes = []
  for shape in shapes:
    fits = [
        i
        for i in free
        if shape.ndim
        and stacked[i].shape[1:] == shape.shape
        and stacked[i].dtype == shape.dtype
    ]
    homes.append(fits[0] if fits else None)
    if fits:
      free.remove(fits[0])
  return homes


def in_pieces(memory: float) -> ForEachClient:
  """`jax.vmap` over as many clients at once as fit into a memory.

  A client is taken to need all arrays that its function makes, also those that
  XLA never writes to memory. So a piece may be smaller than possible, but not
  too large. A small piece costs little.

  Args:
    memory: in bytes, for what the function makes.

  Returns:
    A way over clients.
  """

  def in_pieces_of_memory(function, in_axes=0):
    at_once = jax.vmap(function, in_axes)

    def mapped(*args):
      own, of_client = _apart(function, in_axes, args)
      row = lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
      trace = jax.make_jaxpr(of_client)(jax.tree.map(row, own))
      size = max(1, memory // max(1, _bytes_made(trace.jaxpr)))
      if size >= len(jax.tree.leaves(own)[0]):
        return at_once(*args)
      return lax.map(of_client, own, batch_size=int(size))

    return mapped

  return in_pieces_of_memory


def _bytes_made(jaxpr):
  """Of all arrays that a trace makes; the body of a loop counts once."""
  total = 0
  for equation in jaxpr.eqns:
    total += sum(
        math.prod(variable.aval.shape) * variable.aval.dtype.itemsize
        for variable in equation.outvars
    )
    total += sum(map(_bytes_made, core.jaxprs_in_params(equation.params)))
  return total


def over_devices(for_each_client: ForEachClient) -> ForEachClient:
  """Each device of the mesh in use runs its own clients.

  The mesh is that of `jax.set_mesh`. Without a mesh, or on one device, nothing
  is split. Pass arrays that all clients share as arguments with the axis None:
  the function must not close over them. If such an argument has `specs`, they
  say which of its arrays are split over the devices nevertheless.

  Args:
    for_each_client: how a device runs its clients.

  Returns:
    A way for all devices. Its arrays have all clients, and N must be a multiple
    of the number of devices.
  """

  def split(function, in_axes=0):
    here = for_each_client(function, in_axes)

    def mapped(*args):
      if not is_split():
        return here(*args)
      specs = tuple(
          PER_CLIENT if axis == 0 else getattr(arg, "specs", EVERYWHERE)
          for axis, arg in zip(_each(in_axes, args), args, strict=True)
      )
      return jax.shard_map(
          here, in_specs=specs, out_specs=PER_CLIENT, check_vma=False
      )(*args)

    return mapped

  return split


def is_split() -> bool:
  """Whether clients are split over devices, and this code sees all of them.

  Inside `jax.shard_map` each device sees only its own clients.
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
