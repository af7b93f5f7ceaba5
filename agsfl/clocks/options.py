"""The settings of time in seconds, of messages, and of who is on when."""

import dataclasses
import typing

from agsfl.errors import require
from agsfl.names import AvailabilityName, ClockName, IndexCoding, ValueBits
from agsfl.settings import LARGEST, check, setting

_FILE = "file:"
_TINY = 1 / LARGEST
# Bounds of links in 10^6 bits a second: a bit, and 10^15 bits.
LEAST_MBIT, MOST_MBIT = 1e-6, 1e9


@dataclasses.dataclass(frozen=True)
class ClockOptions:
  """Time in seconds; each field has its own description.

  Raises:
    ConfigError: a value is of another type, out of range, or contradicts
      another one.
  """

  clock: ClockName | str | None = setting(
      None,
      "Devices and links of clients, for time in seconds: constant, phones "
      "(quantiles of published measurements), or file:PATH, a csv with the "
      "columns client, seconds_per_sample, up_mbit, down_mbit, latency. "
      "Default: no seconds.",
  )
  seconds_per_sample: float = setting(
      0.172,
      "Seconds of a gradient of one sample; for constant and phones the "
      "median over clients.",
      least=0,
  )
  up_mbit: float = setting(
      40.0,
      "Uplink in 10^6 bits a second; for constant and phones the median over "
      "clients.",
      least=LEAST_MBIT,
      most=MOST_MBIT,
  )
  down_mbit: float = setting(
      40.0,
      "Downlink in 10^6 bits a second; for constant and phones the median "
      "over clients.",
      least=LEAST_MBIT,
      most=MOST_MBIT,
  )
  latency: float = setting(
      0.0,
      "Seconds until the first byte of a message arrives; for constant and "
      "phones.",
      least=0,
  )
  speed_spread: float = setting(
      0.0,
      "How far devices and links differ with constant: the standard deviation "
      "of the logarithm of their speeds.",
      least=0,
      most=3,
  )
  deadline: float | None = setting(
      None,
      "Seconds of a round after which the server waits for no more clients. "
      "Default: it waits for all.",
      least=_TINY,
  )
  k_by_speed: bool = setting(
      False,
      "Give each client its own k, so that all uploads end together; the mean "
      "over the clients of a round is k.",
  )
  index_coding: IndexCoding = setting(
      "raw",
      "How messages hold indices: raw (32 bits each), bitmask (a bit for each "
      "weight), golomb (gaps in a Rice code), entropy (the least possible).",
  )
  value_bits: ValueBits = setting(
      32, "Bits of each value in a message; 16 is bfloat16."
  )
  availability: AvailabilityName | str | None = setting(
      None,
      "When clients are on: phones (published shares of a day), or "
      "file:PATH, a csv with the columns client, on, off in seconds. Default: "
      "always.",
  )

  def __post_init__(self) -> None:
    check(self)
    require_consistent(self)


def file_of(source: str | None) -> str | None:
  """The path in "file:PATH"; None if the source is no file."""
  if source is None or not source.startswith(_FILE):
    return None
  return source.removeprefix(_FILE)


def require_consistent(options: ClockOptions) -> None:
  """Refuses values that contradict each other, or that no bound can exclude.

  Args:
    options: with every field checked by itself.

  Raises:
    ConfigError: a value cannot be used.
  """
  for name, known in (
      ("clock", typing.get_args(ClockName)),
      ("availability", typing.get_args(AvailabilityName)),
  ):
    value = getattr(options, name)
    path = file_of(value)
    fits = value is None or value in known or bool(path and "\0" not in path)
    require(fits, name, value, f"{', '.join(known)} or file:PATH")
  require(
      options.speed_spread == 0 or options.clock == "constant",
      "speed_spread",
      options.speed_spread,
      "0 without --clock=constant",
  )
  # These need seconds.
  for name, unset in (("deadline", None), ("k_by_speed", False)):
    value = getattr(options, name)
    require(
        options.clock is not None or value == unset,
        name,
        value,
        "unset without --clock",
    )
