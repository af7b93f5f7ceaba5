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
