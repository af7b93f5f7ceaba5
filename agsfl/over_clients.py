"""Functions of one client, over the axis of clients."""

from collections.abc import Callable

import jax
from jax import lax

from agsfl.types import PyTree

# Clients per vmapped piece, by platform: on CPU one client's arrays stay in the
# caches; where none is given, all at once, which is not measured yet.
CLIENT_CHUNK = {"cpu": 1}

# The same for whole simulations side by side.
LANE_CHUNK = {"cpu": 1}


def map_clients(
    function: Callable, arguments: tuple, client_chunk: int | None
) -> PyTree:
  """vmap over the leading axis, in pieces.

  Args:
    function: of one client.
    arguments: pytrees with a leading axis N.
    client_chunk: clients per vmapped piece; None means all.

  Returns:
    The results, stacked along a leading axis N, whatever the chunk.
  """
  num_clients = jax.tree.leaves(arguments)[0].shape[0]
  if client_chunk == 1:
    return lax.map(lambda one: function(*one), arguments)
  if client_chunk is None or client_chunk >= num_clients:
    return jax.vmap(function)(*arguments)
  return lax.map(
      lambda one: function(*one), arguments, batch_size=client_chunk
  )


def fold_clients(
    function: Callable,
    merge: Callable,
    start: jax.Array,
    arguments: tuple,
    client_chunk: int | None,
) -> tuple[jax.Array, PyTree]:
  """`map_clients` whose results are partly merged into one array.

  In pieces of one client, no array of N times its size is formed.

  Args:
    function: of one client; gives what is merged, and what is stacked.
    merge: a jnp.ufunc, such as jnp.add.
    start: what is merged with the clients' arrays; same shape.
    arguments: pytrees with a leading axis N.
    client_chunk: 1: one client after another; else all at once.

  Returns:
    The merged array, and the stacked results.
  """
  if client_chunk == 1:

    def one(merged, argument):
      part, result = function(*argument)
      return merge(merged, part), result

    return lax.scan(one, start, arguments)
  parts, results = jax.vmap(function)(*arguments)
  return merge(start, merge.reduce(parts, axis=0)), results


def update_clients(
    function: Callable,
    array: jax.Array,
    arguments: tuple,
    client_chunk: int | None,
) -> tuple[jax.Array, PyTree]:
  """`map_clients` that gives each client its row of an array, and a new one.

  In pieces of one client the array changes in place, as long as nothing but
  the new row is computed from the row: XLA copies the whole array for every
  client if two kernels read it.

  Args:
    function: (a row, *one client's arguments) -> the new row, and what is
      stacked.
    array: [N, ...].
    arguments: pytrees with a leading axis N.
    client_chunk: as in `map_clients`.

  Returns:
    The array of new rows, and the stacked results.
  """
  if client_chunk != 1:
    return map_clients(function, (array, *arguments), client_chunk)

  def one(carry, argument):
    array, client = carry
    row, result = function(array[client], *argument)
    return (array.at[client].set(row), client + 1), result

  (array, _), results = lax.scan(one, (array, 0), arguments)
  return array, results
