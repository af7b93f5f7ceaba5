"""Curves of groups of runs: averaged, drawn, and compared."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from agsfl.records.read import Run

_WINDOWS = 80  # of a smoothed line
_WIDE = 12  # greatest value / least, from which on an axis is logarithmic
TIME = "normalised time (rounds of computation)"
AXIS_TITLES = {
    "time": TIME,
    "round": "round",
    "seconds": "simulated seconds",
    "bytes": "bytes sent up and down, all clients together",
}


class Band(NamedTuple):
  """The mean of several lines, with the least and the greatest.

  Attributes:
    x: [points] f64, rising, in the unit of the axis.
    mean, least, greatest: [points] f64 each, in the unit of the column.
  """

  x: np.ndarray
  mean: np.ndarray
  least: np.ndarray
  greatest: np.ndarray


def band(lines: list[tuple[np.ndarray, np.ndarray]]) -> Band | None:
  """Averages lines over the range of x that all of them cover.

  Args:
    lines: (x, y) each, [points] f64, x rising; linear between its points.

  Returns:
    The band at every x of a line, or None if they share fewer than two x.
  """
  if not all(len(x) for x, _ in lines):
    return None
  start = max(x[0] for x, _ in lines)
  end = min(x[-1] for x, _ in lines)
  every = np.unique(np.concatenate([x for x, _ in lines]))
  every = every[(every >= start) & (every <= end)]
  if len(every) < 2:
    return None
  values = np.array([np.interp(every, x, y) for x, y in lines])
  return Band(every, values.mean(0), values.min(0), values.max(0))


def draw_spread(
    axes, runs: list[Run], key: str, label: str, against: str = "time"
):
  """Draws runs of one setting: their mean and band, or a line for each.

  Args:
    axes: of Matplotlib.
    runs: of one setting; if their times do not overlap, each gets a line.
    key: of the rows.
    label: of the legend.
    against: the column of x.
  """
  lines = [run.series(key, against) for run in runs]
  shared = band(lines)
  if shared is None:
    color = None
    for times, values in lines:
      (line,) = axes.plot(times, values, label=label, color=color)
      color, label = line.get_color(), None
    return
  (line,) = axes.plot(shared.x, shared.mean, label=label)
  if len(runs) > 1:
    axes.fill_between(
        shared.x, shared.least, shared.greatest, color=line.get_color(),
        alpha=0.2,
    )


def draw_smooth(
    axes, runs: list[Run], key: str, label: str, color=None,
    against: str = "time",
):
  """Draws a number that swings from round to round: its median near each time.

  The band has 80% of the rounds that lie within 1/80 of all the time. Runs with
  few rows are drawn as they are.

  Args:
    axes: of Matplotlib.
    runs: of one setting.
    key: of the rows.
    label: of the legend; None for none.
    color: of Matplotlib; None for the next one.
    against: the column of x.
  """
  lines = [run.series(key, against) for run in runs]
  times, values = (np.concatenate(both) for both in zip(*lines, strict=True))
  if len(times) < 4 * _WINDOWS:
    for x, y in lines:
      (line,) = axes.plot(x, y, label=label, color=color, lw=0.8)
      color, label = line.get_color(), None
    return
  order = np.argsort(times, kind="stable")
  times, values = times[order], values[order]
  centres = np.linspace(times[0], times[-1], 4 * _WINDOWS)
  reach = (times[-1] - times[0]) / _WINDOWS
  low = np.searchsorted(times, centres - reach)
  high = np.searchsorted(times, centres + reach, "right")
  near = [values[a:b] for a, b in zip(low, high, strict=True)]
  filled = np.array([len(some) > 0 for some in near])
  parts = np.array([
      np.percentile(some, (10, 50, 90)) for some in near if len(some)
  ])
  (line,) = axes.plot(
      centres[filled], parts[:, 1], label=label, color=color, lw=1.2
  )
  axes.fill_between(
      centres[filled], parts[:, 0], parts[:, 2], color=line.get_color(),
      alpha=0.15, lw=0,
  )


def largest_lead(
    leader: list[Run], other: list[Run], key: str = "test_accuracy"
) -> tuple[float, float] | None:
  """The largest lead of one group over another at equal time.

  Args:
    leader, other: runs of one setting each.
    key: of the rows.

  Returns:
    (difference of the means over seeds, time); None if their times do not
    overlap.
  """
  mean_of = lambda runs: band([run.series(key) for run in runs])
  first, second = mean_of(leader), mean_of(other)
  if first is None or second is None:
    return None
  both = band([(first.x, first.mean), (second.x, second.mean)])
  if both is None:
    return None
  lead = np.interp(both.x, first.x, first.mean)
  lead -= np.interp(both.x, second.x, second.mean)
  return float(lead.max()), float(both.x[lead.argmax()])


def spans_decades(values: Iterable[float]) -> bool:
  """Whether losses need a logarithmic axis, on which they can be told apart.

  >>> [spans_decades(x) for x in ([0.1, 1.3], [0.2, 1.3], [0, 9])]
  [True, False, False]

  Args:
    values: all that are drawn.
  """
  some = np.fromiter(values, float)
  return bool(some.size and 0 < some.min() * _WIDE < some.max())
