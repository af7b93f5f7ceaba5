"""Which clients are on at a time."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.clocks import draws, phones, tables
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

  on: jax.Array | np.ndarray
  off: jax.Array | np.ndarray
  period: jax.Array | np.ndarray


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
    options: ClockOptions, seed: int, client_names: Sequence[str]
) -> Availability:
  """When all clients are on, on the host.

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
  return _phones(draws.uniforms(seed, draws.AVAILABILITY, len(client_names)))


def _phones(uniform):
  """One interval a day, whose length has the published distribution.

  The interval may go over midnight; then it is two. That it is one, at the same
  hour every day, is assumed: only the shares are published.
  """
  on = _DAY * uniform[:, 0]
  off = on + _DAY * phones.share_on(uniform[:, 1])
  after_midnight = np.maximum(off - _DAY, 0)
  return Availability(
      np.stack((on, np.zeros_like(on)), 1).astype(np.float32),
      np.stack((np.minimum(off, _DAY), after_midnight), 1).astype(np.float32),
      np.float32(_DAY),
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
    for (_, off, _), (on, _, where) in itertools.pairwise(intervals):
      if on < off:
        refuse(
            setting,
            f"{where}: client {client!r} is on at {on:g} and, by another row, "
            f"until {off:g}",
        )
  own = [found[name] for name in client_names]
  shape = (len(own), max(map(len, own)))
  on, off = np.zeros((2, *shape), np.float32)
  for client, intervals in enumerate(own):
    on[client, : len(intervals)] = [interval[0] for interval in intervals]
    off[client, : len(intervals)] = [interval[1] for interval in intervals]
  last = max(rows[-1][1] for rows in found.values())
  return Availability(on, off, np.float32(last))
