"""Groups of runs: by settings, averaged over seeds, in tables."""

import difflib
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from agsfl.errors import require
from agsfl.frame import differing, settings_of, value_of
from agsfl.records.read import Run
from agsfl.words import natural_order

NONE = "\u2013"  # a dash
SPREAD = "\u00b1 is half the range over the runs of a group."
PARTLY = (
    'Where a number has "(n of m)" beside it, only n of the m runs have a '
    "value, and it is their mean. Such a group is not marked as the best one."
)


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


def warn_of_copies(runs: list[Run]):
  """Says on a line of stderr which runs have the same settings and data.

  Args:
    runs: those that are compared; each of them counts.
  """
  first: dict[str, Run] = {}
  for run in runs:
    settings = json.dumps([run.asked, run.config.get("data")], sort_keys=True)
    same = first.setdefault(settings, run)
    if same is not run:
      print(
          f"warning: {same.workdir} and {run.workdir} are runs of the same "
          "settings and seed; both count",
          file=sys.stderr,
      )


def metrics(runs: list[Run]) -> list[str]:
  """The names of the metrics of tasks and users in these runs."""
  return list(dict.fromkeys(name for run in runs for name in run.metrics))


def has(run: Run, key: str) -> bool:
  """Whether the column has a number anywhere."""
  return len(run.series(key, "round")[0]) > 0


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


def table(header: list[str], lines: list[list[str]]) -> str:
  """A Markdown table."""
  rows = [header, ["---"] * len(header), *lines]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)
