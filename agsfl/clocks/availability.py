"""Which clients are on at a time."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.clocks import phones, tables
from agsfl.clocks.draws import AVAILABILITY, as_float32, uniforms
from agsfl.clocks.options import ClockOptions, file_of
from agsfl.errors import refuse

_DAY = 86400.0


class Availability(NamedTuple):
  """The intervals in which clients are on; they repeat.

  Attributes:
    on: [N, M] f32 seconds, the beginnings of a client's intervals.
    off: [N, M] f32 seconds, their ends. An interval without length fills up the
      rows of clients that have fewer.
    period: [] f32 seconds, after which all intervals come again.
  """

  on: jax.Array
  off: jax.Array
  period: jax.Array


def is_on(availability: Availability, seconds: jax.Array) -> jax.Array:
  """Who is on at a time.

  Args:
    availability: of N clients.
    seconds: [] since the run began.

  Returns:
    [N] bool; a client is on at `on`, and not at `off`.
  """
  now = jnp.mod(jnp.float32(seconds), availability.period)
  return jnp.any((availability.on <= now) & (now < availability.off), axis=1)


def availability_of(
    options: ClockOptions,
    seed: int,
    client_names: Sequence[str] | np.ndarray,
) -> Availability:
  """When all clients are on, as NumPy arrays.

  Args:
    options: `availability` is not None.
    seed: of the draws of "phones", which depend only on it and on the client's
      number.
    client_names: [N] of the run.

  Returns:
    The intervals.

  Raises:
    ConfigError: the file cannot be used.
  """
  path = file_of(options.availability)
  if path is not None:
    setting = f"--availability={options.availability}"
    return _from_file(setting, path, [str(name) for name in client_names])
  return _phones(uniforms(seed, AVAILABILITY, len(client_names)))


def _phones(uniform):
  """One interval a day, whose length has the published distribution.

  If the interval goes over midnight, it becomes two. Only the shares are
  published. One interval at the same hour of every day is an assumption.
  """
  on = _DAY * uniform[:, 0]
  off = on + _DAY * phones.share_on(uniform[:, 1])
  after_midnight = np.maximum(off - _DAY, 0)
  return Availability(
      as_float32(np.stack((on, np.zeros_like(on)), axis=1)),
      as_float32(np.stack((np.minimum(off, _DAY), after_midnight), axis=1)),
      as_float32(_DAY),
  )


def _from_file(setting, path, client_names):
  """The intervals of a table; they repeat after the last of all ends."""
  found: dict[str, list[tuple[float, float, str]]] = {}
  for where, client, (on, off) in tables.rows(setting, path, ("on", "off")):
    if not on < off:
      refuse(setting, f"{where}: off must be after on, {on:g}, not {off:g}")
    found.setdefault(client, []).append((on, off, where))
  tables.require_all(setting, set(found), client_names)
  for client, intervals in found.items():
    intervals.sort()
    for (_, end, _), (begin, _, where) in itertools.pairwise(intervals):
      if begin < end:
        refuse(
            setting,
            f"{where}: client {client!r} is on at {begin:g}, but by another "
            f"row until {end:g}",
        )
  own = [found[name] for name in client_names]
  edges = np.zeros((2, len(own), max(map(len, own))))
  for row, intervals in enumerate(own):
    for place, (on, off, _) in enumerate(intervals):
      edges[:, row, place] = on, off
  period = max(intervals[-1][1] for intervals in found.values())
  return Availability(*map(as_float32, (*edges, period)))
