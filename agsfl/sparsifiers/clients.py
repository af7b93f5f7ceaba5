"""The clients of one device, and methods over all devices of a mesh."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import sequential_vmap
from jax.sharding import PartitionSpec

from agsfl import for_each_client
from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import Choice
from agsfl.types import PyTree

_COLLECTIVES = {
    jnp.minimum: lax.pmin,
    jnp.maximum: lax.pmax,
    jnp.add: lax.psum,
}


class Clients(NamedTuple):
  """The clients of one device.

  Keys of magnitudes are computed where they are used. Otherwise branches and
  loops would store and copy a second array of this size.

  Attributes:
    accumulated: [N, D] f32, a_i.
    weights: [N] f32, C_i / C; a client of weight 0 sends nothing.
    axes: mesh axes over which all clients are split; () for one device.
  """

  accumulated: jax.Array
  weights: jax.Array
  axes: tuple[str, ...]

  @property
  def active(self) -> jax.Array:
    """[N] bool, who sends."""
    return self.weights > 0

  def map(self, function: Callable[..., PyTree], *arguments: PyTree) -> PyTree:
    """`function(a_i, *arguments_i)` of each client, stacked; one by one."""
    over_clients = for_each_client.one_by_one(function)
    return over_clients(self.accumulated, *arguments)

  def fold(
      self,
      function: Callable[..., tuple[jax.Array, PyTree]],
      merge: Any,
      start: jax.Array,
      *arguments: PyTree,
  ) -> tuple[jax.Array, PyTree]:
    """`map`, but one part of the results is merged over all clients.

    The merge covers all devices. No array of N times the merged size is formed.

    Args:
      function: (a_i, *arguments_i) -> (what is merged, what is stacked).
      merge: jnp.add, jnp.minimum or jnp.maximum.
      start: the neutral element of the merge, an array.
      *arguments: pytrees with a leading axis N.

    Returns:
      The merged array of all clients, and the stacked results of this device's
      clients.
    """
    merged, results = self.fold_here(function, merge, start, *arguments)
    return _COLLECTIVES[merge](merged, self.axes), results

  def fold_here(self, function, merge, start, *arguments):
    """`fold` over this device's clients only; `merge` is any jnp.ufunc."""
    def step(merged, client):
      part, result = function(*client)
      return merge(merged, part), result

    return lax.scan(step, start, (self.accumulated, *arguments))

  def entries_at(self, index: jax.Array) -> topk.Entry:
    """Each client's entry at its own coordinate of `index` [N]."""
    value = jnp.take_along_axis(self.accumulated, index[:, None], axis=1)
    return topk.Entry(topk.magnitude_key(value[:, 0]), index)


def over_devices(
    choose: Callable[[Clients, jax.Array], Choice],
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
) -> Choice:
  """The choices of all clients, on one device or several.

  Args:
    choose: (one device's clients, ks) -> the choices with a leading axis S. By
      collectives over `Clients.axes` it makes mask and aggregate equal on all
      devices.
    accumulated, weights, ks: of all clients, see `choice.Choose`. N is a
      multiple of the number of devices.

  Returns:
    The choices.
  """
  if not for_each_client.is_split():
    return choose(Clients(accumulated, weights, ()), ks)

  def local(accumulated, weights, ks):
    clients = Clients(accumulated, weights, (for_each_client.AXIS,))
    return tuple(choose(clients, ks))

  per_client = for_each_client.PER_CLIENT
  everywhere = for_each_client.EVERYWHERE
  # In choices the axis of ks comes before the axis of clients.
  per_client_of_k = PartitionSpec(None, for_each_client.AXIS)
  mask, clients, aggregate, contributed = jax.shard_map(
      local,
      in_specs=(per_client, per_client, everywhere),
      out_specs=(everywhere, per_client_of_k, everywhere, per_client_of_k),
      # The check cannot see that all devices take the same branch.
      check_vma=False,
  )(accumulated, weights, ks)
  return Choice(mask, clients, aggregate, contributed)


def one_run_at_a_time(
    choose: Callable[[Clients, jax.Array], Choice],
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
) -> Choice:
  """`over_devices`; under vmap over runs, one run after another.

  Then a `lax.cond` still runs only one of its branches.
  """
  of_run = sequential_vmap(functools.partial(over_devices, choose))
  return of_run(accumulated, weights, ks)
