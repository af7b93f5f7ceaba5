"""Groups of runs: by settings, averaged over seeds, drawn, in tables."""

import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from agsfl.errors import require
from agsfl.frame import differing, settings_of, value_of
from agsfl.records.read import Run, natural_order

NONE = "\u2013"  # a dash
PARTLY = (
    'Where a number has "(n of m)" beside it, only n of the m runs have a '
    "value, and it is their mean. Such a group is not marked as the best one."
)
_WINDOWS = 80  # of a smoothed line
TIME = "normalised time (rounds of computation)"
AXIS_TITLES = {
    "time": TIME,
    "round": "round",
    "seconds": "simulated seconds",
    "bytes": "bytes sent up and down, all clients together",
}
_WIDE = 12  # greatest value / least, from which on an axis is logarithmic


def value_in_words(value: Any) -> str:
  """The value of a setting as text: numbers without ".0", "none" for None.

  >>> [value_in_words(value) for value in (1000.0, True, None, "1%")]
  ['1000', 'true', 'none', '1%']
  """
  if value is None:
    return "none"
  if isinstance(value, bool):
    return "true" if value else "false"
  return f"{value:.12g}" if isinstance(value, float) else str(value)


def in_order(value: Any) -> tuple:
  """A key to sort settings by: None, then numbers, then text.

  >>> sorted(["b", 0.5, "seed10", None, 0.02, "seed2", 0.1], key=in_order)
  [None, 0.02, 0.1, 0.5, 'b', 'seed2', 'seed10']
  """
  if value is None:
    return (0,)
  if isinstance(value, (int, float)):
    return (1, value)
  return (2, natural_order(value))


def grouped(runs: list[Run], fields: list[str]) -> dict[str, list[Run]]:
  """The runs by the values of these settings, each group with a label.

  Args:
    runs: in any order.
    fields: names of settings.

  Returns:
    The groups, sorted by their values.

  Raises:
    ConfigError: a field is no setting.
  """
  known = settings_of(runs)
  for field in fields:
    require(field in known, "group_by", field, setting_like(field, runs))
  values_of = lambda run: [value_of(run.asked, field) for field in fields]
  groups = {}
  for run in sorted(runs, key=lambda run: list(map(in_order, values_of(run)))):
    label = ", ".join(
        f"{field} = {value_in_words(value)}"
        for field, value in zip(fields, values_of(run), strict=True)
    )
    groups.setdefault(label or "all", []).append(run)
  return groups


def setting_like(name: str, runs: list[Run]) -> str:
  """What is allowed in place of a name that is no setting.

  Args:
    name: as the user gave it.
    runs: those that are compared.

  Returns:
    Words with the names that are like this one, and those of settings in which
    the runs differ.
  """
  like = difflib.get_close_matches(name, settings_of(runs))
  names = dict.fromkeys([*like, *differing(runs), "seed"])
  return f"a setting, such as {', '.join(names)}"


def averaged_over(by_label: dict[str, list[Run]]) -> list[str]:
  """The settings that differ within groups, the seed before the others."""
  within = [
      name
      for runs in by_label.values()
      for name in (*_seed(runs), *differing(runs))
  ]
  return sorted(dict.fromkeys(within), key=lambda name: name != "seed")


def _seed(runs):
  """The name of the seed if it differs."""
  return ["seed"] if len({run.asked.get("seed") for run in runs}) > 1 else []


def metrics(runs: list[Run]) -> list[str]:
  """The names of the metrics of tasks and users in these runs."""
  return list(dict.fromkeys(name for run in runs for name in run.metrics))


def has(run: Run, key: str) -> bool:
  """Whether the column has a number anywhere."""
  return len(run.series(key, "round")[0]) > 0


class Band(NamedTuple):
  """The mean of several lines, with the least and the greatest.

  Attributes:
    x, mean, least, greatest: [points] each.
  """

  x: np.ndarray
  mean: np.ndarray
  least: np.ndarray
  greatest: np.ndarray


def band(lines: list[tuple[np.ndarray, np.ndarray]]) -> Band | None:
  """Averages lines over the range of x that all of them cover.

  Args:
    lines: (x, y) each, x rising; linear between its points.

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
  """By how much one group is ahead of another, at the time when it is most.

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


def over_seeds(
    values: Iterable[float | None], mean: str = ".4g", spread: str = ".2g"
) -> str:
  """The mean of the seeds' numbers and half their range, in these formats.

  >>> over_seeds([1.0, 2.0]), over_seeds([1.0, None]), over_seeds([1.0])
  ('1.5 ± 0.5', '1 (1 of 2)', '1')

  Args:
    values: of each run, None where it has none. If that is so for some of
      them, the text says how many have one; for all of them it is a dash.
    mean, spread: the formats.
  """
  every = list(values)
  there = [value for value in every if value is not None]
  if not there:
    return NONE
  text = format(np.mean(there), mean)
  if len(there) > 1:
    text += f" ± {format(np.ptp(there) / 2, spread)}"
  return text + part_of(len(there), len(every))


def part_of(count: int, runs: int) -> str:
  """What stands after a mean that is not over all runs of its group."""
  return f" ({count} of {runs})" if count < runs else ""


def final(runs: list[Run], key: str) -> str:
  """A number of the summaries, `over_seeds`."""
  return over_seeds(run.summary.get(key) for run in runs)


def spans_decades(values: Iterable[float]) -> bool:
  """Whether losses need a logarithmic axis, on which they can be told apart.

  >>> [spans_decades(x) for x in ([0.1, 1.3], [0.2, 1.3], [0, 9])]
  [True, False, False]

  Args:
    values: all that are drawn.
  """
  some = np.fromiter(values, float)
  return bool(some.size and 0 < some.min() * _WIDE < some.max())


def table(header: list[str], lines: list[list[str]]) -> str:
  """A Markdown table."""
  rows = [header, ["---"] * len(header), *lines]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)
