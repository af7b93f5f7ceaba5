"""What is best on which platform; the one place that asks.

(The gradient of a convolution's kernel asks too, inside a compiled program:
see `training.layers`.)
"""

import math

import jax

from agsfl.for_each_client import ForEachClient, one_by_one, over_devices


def keeps_to_caches() -> bool:
  """Whether one client at a time is faster than all at once.

  On CPU its arrays then stay in the caches.
  """
  return jax.default_backend() == "cpu"


def for_each_client() -> ForEachClient:
  """All clients, on all devices of the mesh in use."""
  return over_devices(for_each_lane())


def for_each_lane() -> ForEachClient:
  """All of several simulations side by side."""
  return one_by_one if keeps_to_caches() else jax.vmap


def rounds_per_call() -> float:
  """Rounds that one call runs as one program.

  On CPU one: more were measured to gain nothing. Elsewhere all that lie
  between two evaluations.
  """
  return 1 if keeps_to_caches() else math.inf
