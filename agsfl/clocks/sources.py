"""Where the speeds of clients come from."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from agsfl.clocks import phones, tables
from agsfl.clocks.draws import SPEEDS, as_float32, uniforms
from agsfl.clocks.options import (
    LEAST_MBIT,
    MOST_MBIT,
    ClockOptions,
    file_of,
)
from agsfl.clocks.speeds import Speeds
from agsfl.errors import refuse

# Bytes a second in 10^6 bits a second.
_MBIT = 1e6 / 8

_COLUMNS = ("seconds_per_sample", "up_mbit", "down_mbit", "latency")


def speeds_of(
    options: ClockOptions,
    seed: int,
    client_names: Sequence[str] | np.ndarray,
) -> Speeds:
  """The speeds of all clients, as NumPy arrays.

  A client's device and its link are drawn independently. Its uplink and
  downlink share one draw, because they are one link. The draws depend only on
  the seed and the client's number.

  Args:
    options: `clock` is not None.
    seed: of the draws.
    client_names: [N] of the run.

  Returns:
    [N] f32 each.

  Raises:
    ConfigError: the file cannot be used.
  """
  path = file_of(options.clock)
  if path is not None:
    return _from_file(f"--clock={options.clock}", path, client_names)
  device, link = uniforms(seed, SPEEDS, len(client_names)).T
  if options.clock == "phones":
    slower, faster = phones.step_to_median(device), phones.link_to_median(link)
  else:
    slower = _log_normal(device, options.speed_spread)
    faster = _log_normal(link, options.speed_spread)
  return _speeds(
      options.seconds_per_sample * slower,
      options.up_mbit * faster,
      options.down_mbit * faster,
      np.full(len(client_names), options.latency),
  )


def _log_normal(uniform, sigma):
  """The inverse of a log-normal distribution of median 1."""
  if sigma == 0:
    return np.ones(len(uniform))
  normal = NormalDist()
  return np.exp(sigma * np.array([normal.inv_cdf(u) for u in uniform]))


def _speeds(seconds, up_mbit, down_mbit, latency):
  columns = (seconds, up_mbit * _MBIT, down_mbit * _MBIT, latency)
  return Speeds(*map(as_float32, columns))


def _from_file(setting, path, client_names):
  """The clients' rows, in the order of the run."""
  found: dict[str, list[float]] = {}
  for where, client, numbers in tables.rows(setting, path, _COLUMNS):
    if client in found:
      refuse(setting, f"{where}: client {client!r} has a row before")
    if not all(LEAST_MBIT <= mbit <= MOST_MBIT for mbit in numbers[1:3]):
      refuse(
          setting,
          f"{where}: up_mbit and down_mbit must be from {LEAST_MBIT:g} to "
          f"{MOST_MBIT:g}",
      )
    found[client] = numbers
  names = [str(name) for name in client_names]
  tables.require_all(setting, set(found), names)
  return _speeds(*np.array([found[name] for name in names]).T)
