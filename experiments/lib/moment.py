"""The flags of commands that compare runs at one point, and by one column."""

import math

from absl import flags

from agsfl.errors import ConfigError, require
from agsfl.records.moment import (
    EVALUATED,
    Moment,
    end,
    in_words,
    is_better,
    value_at,
)
from agsfl.records.read import Run

__all__ = [
    "Moment", "asked", "best_by", "in_words", "is_better", "sort_by",
    "value_at",
]

# By flag, the axis and what it counts.
_AXES = {
    "at_time": ("time", "normalised time"),
    "at_rounds": ("round", "rounds"),
    "at_seconds": ("seconds", "simulated seconds"),
    "at_bytes": ("bytes", "bytes sent up and down, all clients together"),
}
for _flag, (_, _what) in _AXES.items():
  flags.DEFINE_string(
      _flag,
      None,
      f"Compare the runs at this point: a number of {_what}, or common, the "
      "end of the run that ended first.",
  )
_SORT_BY = flags.DEFINE_string(
    "sort_by",
    None,
    "A column of the results, such as test_accuracy, or a setting. The table "
    "is sorted by it, the best one first; settings are sorted by their values.",
)


def asked(runs: list[Run]) -> Moment | None:
  """The point that the flags ask for.

  Args:
    runs: those that are compared.

  Returns:
    The point; None if no flag is given.

  Raises:
    ConfigError: two flags are given, the value is no number, or no run has
      this axis.
  """
  given = {
      name: flags.FLAGS[name].value
      for name in _AXES
      if flags.FLAGS[name].value is not None
  }
  if not given:
    return None
  name, *others = given
  text = given[name]
  if others:
    require(False, name, text, f"unset with --{others[0]}={given[others[0]]}")
  against, what = _AXES[name]
  ends = [x for run in runs if (x := end(run, against)) is not None]
  require(ends, name, text, f"unset, because no run here has {what}")
  if text == "common":
    return Moment(against, min(ends))
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  fits = math.isfinite(value) and value >= 0
  require(fits, name, text, "common or a number from 0")
  return Moment(against, value)


def columns(runs: list[Run]) -> list[str]:
  """The result columns of which any of the runs has numbers."""
  own = [name for run in runs for name in run.metrics]
  names = dict.fromkeys((*EVALUATED, *own, "round", "time", "seconds"))
  has = lambda run, name: len(run.series(name, "round")[0])
  return [
      *(name for name in names if any(has(run, name) for run in runs)),
      "bytes",
  ]


def sort_by(runs: list[Run]) -> str | None:
  """What --sort_by names: a setting, or one of `columns`; None if unset.

  Raises:
    ConfigError: it is neither.
  """
  name = _SORT_BY.value
  settings = dict.fromkeys(name for run in runs for name in run.asked)
  allowed = [*columns(runs), *settings]
  if name is not None and name not in allowed:
    raise ConfigError(
        f"--sort_by={name}: must be one of {', '.join(allowed)}"
    )
  return name


def best_by(runs: list[Run], sorted_by: str | None) -> str | None:
  """The column that decides which run or group is best; see `is_better`.

  Args:
    runs: those that are compared.
    sorted_by: from `sort_by`; a setting decides nothing.

  Returns:
    Its name; None if the runs have neither accuracies nor losses.
  """
  has = columns(runs)
  wanted = (sorted_by, "test_accuracy", "test_loss")
  settings = {name for run in runs for name in run.asked}
  return next((x for x in wanted if x in has and x not in settings), None)
