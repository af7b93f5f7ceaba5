"""Values of a run at one point of an axis, so that runs compare fairly."""

import math
from typing import Any, NamedTuple

import numpy as np

from agsfl.records.columns import COLUMNS, OF_TASKS
from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run

# Columns of evaluations; figures draw lines between their values.
EVALUATED = ("train_loss", "test_loss", "test_accuracy", *SPREAD, *OF_TASKS)
OF_ROUNDS = COLUMNS - {*EVALUATED}

_WORDS = {
    "time": "at normalised time {:.6g}",
    "round": "at round {:.6g}",
    "seconds": "at {:.6g} simulated seconds",
    "bytes": "at {:,.0f} bytes sent",
}


class Moment(NamedTuple):
  """A point of an axis that all runs of a comparison share.

  Attributes:
    against: the axis: "time" (normalised), "round", "seconds" (simulated) or
      "bytes" (sent up and down, all clients together).
    value: the point.
  """

  against: str
  value: float


def row_at(run: Run, moment: Moment | None) -> dict[str, Any] | None:
  """The row of the last round that was done at a point.

  Args:
    run: finished or not.
    moment: the point; None for the end of the run.

  Returns:
    The row, which may be that of round 0; None where the run has not come so
    far, or has no such axis.
  """
  rows = _rows(run)
  if moment is None:
    return rows[-1] if rows else None
  ends, _ = run.series("round", moment.against)
  if not len(ends) or not ends[0] <= moment.value <= ends[-1]:
    return None
  return rows[np.searchsorted(ends, moment.value, "right") - 1]


def value_at(run: Run, key: str, moment: Moment | None) -> float | None:
  """A column's value at a point.

  Args:
    run: finished or not.
    key: name of a column of numbers of the rows, or "bytes": sent up and down
      by then, all clients together.
    moment: the point; None for the end of the run.

  Returns:
    Losses, accuracies and metrics are linear between the two values around the
    point, as figures draw them. Another column has its value of the last round
    that was done by then. None where the run has not come so far, or
    has no such number.
  """
  row = row_at(run, moment)
  if row is None:
    return None
  if key == "bytes":
    rounds, sent = run.series("round", "bytes")[::-1]
    return float(sent[np.searchsorted(rounds, row["round"])])
  if key in OF_ROUNDS:
    return _finite(row.get(key))
  if moment is None:
    # If the last one is not finite, an earlier one must not stand for it.
    return _finite(next((x[key] for x in _rows(run)[::-1] if key in x), None))
  x, y = run.series(key, moment.against)
  if not len(x) or not x[0] <= moment.value <= x[-1]:
    return None
  return float(np.interp(moment.value, x, y))


def _rows(run):
  """All rows, from round 0 on where the run has it."""
  return [*([] if run.start is None else [run.start]), *run.rows]


def _finite(value):
  return value if value is not None and math.isfinite(value) else None


def end(run: Run, against: str) -> float | None:
  """Where the run's last evaluation is on an axis.

  Returns:
    The point, or that of the last round if there is no evaluation; None where
    the run has no such axis or no row.
  """
  for key in ("test_loss", "round"):
    x, _ = run.series(key, against)
    if len(x):
      return float(x[-1])
  return None


def point_in_words(moment: Moment | None) -> str:
  """The point in words.

  >>> point_in_words(Moment("time", 200.0)), point_in_words(None)
  ('at normalised time 200', 'at the end of each run')
  """
  if moment is None:
    return "at the end of each run"
  return _WORDS[moment.against].format(moment.value)


def best_is(key: str) -> str:
  """Whether the "max" or the "min" of a column is best.

  >>> best_is("test_accuracy"), best_is("test_loss"), best_is("bytes")
  ('max', 'min', 'min')
  """
  larger = "accuracy" in key and not key.endswith("_std")
  return "max" if larger or key.endswith("jain") else "min"
