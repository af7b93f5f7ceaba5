"""The flags of commands that compare runs at one point, and by one column."""

import math

from absl import flags

from agsfl.errors import require
from agsfl.frame import settings_of
from agsfl.records.moment import Moment, end
from agsfl.records.read import Run
from experiments.lib.groups import setting_like
from experiments.lib.ranking import results_of

# By flag, the axis and what it counts.
FLAGS = {
    "at_time": ("time", "normalised time"),
    "at_rounds": ("round", "rounds"),
    "at_seconds": ("seconds", "simulated seconds"),
    "at_bytes": ("bytes", "bytes sent up and down, all clients together"),
}
for _flag, (_, _what) in FLAGS.items():
  flags.DEFINE_string(
      _flag,
      None,
      f"Runs are compared at this point: a number of {_what}. plot, export and "
      "report also take common, the end of the run that ended first.",
  )
_SORT_BY = flags.DEFINE_string(
    "sort_by",
    None,
    "A column of the results, such as test_accuracy, or a setting. It orders "
    "the runs, or groups of them: the best result is first, and settings go by "
    "their values.",
)


def asked(runs: list[Run]) -> Moment | None:
  """The point that the flags ask for.

  Args:
    runs: those that are compared.

  Returns:
    The point; None if no flag is given. A run that has no evaluation after
    round 0 has no say in what is common.

  Raises:
    ConfigError: two flags are given, the value is no number, no run has this
      axis, or none has come so far that there is a common point.
  """
  if (given := _given()) is None:
    return None
  name, text = given
  against, what = FLAGS[name]
  ends = [x for run in runs if (x := end(run, against)) is not None]
  require(ends, name, text, f"unset, because no run here has {what}")
  if text == "common":
    ends = [x for x in ends if x > 0]
    allowed = "a number, because no run here has an evaluation after round 0"
    require(ends, name, text, allowed)
    return Moment(against, min(ends))
  return _point(name, text, "common or a number from 0")


def asked_as_number() -> Moment | None:
  """The point that the flags ask for before there are runs.

  Raises:
    ConfigError: two flags are given, or the value is no number.
  """
  given = _given()
  return given and _point(*given, "a number from 0")


def _given():
  """The name and the text of the flag that is given; None if none is."""
  given = [
      (name, flags.FLAGS[name].value)
      for name in FLAGS
      if flags.FLAGS[name].value is not None
  ]
  if len(given) > 1:
    (name, text), (other, others) = given[:2]
    require(False, name, text, f"unset with --{other}={others}")
  return given[0] if given else None


def _point(name, text, allowed):
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  require(math.isfinite(value) and value >= 0, name, text, allowed)
  return Moment(FLAGS[name][0], value)


def sort_by(runs: list[Run]) -> str | None:
  """A setting or a column of `results_of` that --sort_by names, or None.

  Raises:
    ConfigError: it is neither.
  """
  name = _SORT_BY.value
  if name is not None:
    results = results_of(runs)
    require(
        name in (*results, *settings_of(runs)), "sort_by", name,
        f"{setting_like(name, runs)}, or one of {', '.join(results)}",
    )
  return name
