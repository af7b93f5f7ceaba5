"""Values of a run at one point of an axis, so that runs compare fairly."""

import math
from typing import Any, NamedTuple

import numpy as np

from agsfl.records.columns import COLUMNS, EVALUATED
from agsfl.records.read import Run

OF_ROUNDS = COLUMNS - {*EVALUATED}

_WORDS = {
    "time": "at normalised time {:.12g}",
    "round": "at round {:.12g}",
    "seconds": "at {:.12g} simulated seconds",
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
  if moment is None:
    rows = _rows(run)
    return rows[-1] if rows else None
  ends, rows = _on_axis(run, moment.against)
  if not len(ends) or not ends[0] <= moment.value <= ends[-1]:
    return None
  return rows[np.searchsorted(ends, moment.value, "right") - 1]


def cell_at(run: Run, key: str, moment: Moment | None) -> Any:
  """What a column has at a point: a number, which may be NaN, or text.

  Args:
    run: finished or not.
    key: name of a column of the rows, or "bytes": sent up and down until the
      end of the last round that was done, all clients together.
    moment: the point; None for the end of the run.

  Returns:
    Losses, accuracies and metrics are linear between the two evaluations around
    the point, as figures draw them. Another column has its value of the last
    round that was done. None where the run has not come so far, or has no such
    value.
  """
  row = row_at(run, moment)
  if row is None:
    return None
  if key == "bytes":
    rounds, sent = run.series("round", "bytes")[::-1]
    return float(sent[np.searchsorted(rounds, row["round"])])
  if key in OF_ROUNDS:
    return row.get(key)
  if moment is None:
    return next((row[key] for row in _rows(run)[::-1] if key in row), None)
  points = zip(*_on_axis(run, moment.against), strict=True)
  return _between([(x, row[key]) for x, row in points if key in row], moment)


def value_at(run: Run, key: str, moment: Moment | None) -> float | None:
  """A column's finite number at a point.

  Args:
    run, key, moment: as `cell_at` takes them, for a column of numbers.

  Returns:
    The number; None where there is none, or an evaluation that it needs has no
    finite one. Other evaluations do not stand for that one.
  """
  value = cell_at(run, key, moment)
  return value if value is not None and math.isfinite(value) else None


def _between(points, moment):
  """The value of a line at a point; None outside of it or where it has none."""
  if not points:
    return None
  x, y = np.array(points, float).T  # None becomes NaN
  if not x[0] <= moment.value <= x[-1]:
    return None
  value = float(np.interp(moment.value, x, y))
  return value if math.isfinite(value) else None


def _rows(run):
  """All rows, from round 0 on where the run has it."""
  return [*([] if run.start is None else [run.start]), *run.rows]


def _on_axis(run, against):
  """Where on an axis rounds end, [rows] f64, and their rows, from the last."""
  ends, _ = run.series("round", against)
  rows = _rows(run)
  return ends, rows[len(rows) - len(ends):]  # round 0 may not be on the axis


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
