"""What is best on each platform.

No other file asks for the platform, with one exception: `training.fast`
chooses the form of a convolution inside a compiled program.
"""

import math
from typing import TypeVar

import jax

from agsfl import hosts
from agsfl.for_each_client import (
  ForEachClient,
  in_pieces,
  one_by_one,
  over_devices,
)

T = TypeVar("T")


def fastest(*, on_cpu: T, on_accelerator: T) -> T:
  """Chooses the faster of two ways to compute the same."""
  return on_cpu if keeps_to_caches() else on_accelerator


def keeps_to_caches() -> bool:
  """Whether one client at a time is faster than all at once.

  On CPU it is, because the client's arrays then stay in the caches.
  """
  return jax.default_backend() == "cpu"


def for_each_client() -> ForEachClient:
  """The fastest way over all clients, on all devices of the mesh in use."""
  return over_devices(on_one_device())


def on_one_device() -> ForEachClient:
  """The fastest way over what one device has: its clients, or several runs."""
  if keeps_to_caches():
    return one_by_one
  # All processes of a run must compile the same program.
  return in_pieces(hosts.from_first(_free_memory) / 2)


def _free_memory():
  """Bytes that are free on a device, if it reports them."""
  stats = jax.local_devices()[0].memory_stats() or {}
  return stats.get("bytes_limit", math.inf) - stats.get("bytes_in_use", 0)


def shares_memory() -> bool:
  """Whether all devices use the same memory: those of one process on CPU."""
  return jax.default_backend() == "cpu" and not hosts.several()


def rounds_per_call() -> float:
  """Rounds that one call runs as one program.

  On CPU one: measurements show no gain from more. Elsewhere there is no limit,
  so a call goes on to the next evaluation.
  """
  return 1 if keeps_to_caches() else math.inf
