"""Tables of runs: a line for each run, or one for each round."""

import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from agsfl.config import Config
from agsfl.files import expanded
from agsfl.records import read, traffic
from agsfl.records.moment import Moment, cell_at
from agsfl.records.read import Run
from agsfl.records.tables import write_csv
from agsfl.words import whole

if TYPE_CHECKING:
  import pandas

# Runs of an earlier version have fewer settings.
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Config)}

# Columns that are neither settings nor columns of the rows.
_OWN = ("run", "finished", "bytes")


class Table(NamedTuple):
  """Columns by line.

  Attributes:
    header: names of the columns; the first is "run".
    lines: their values; None where there is none.
  """

  header: list[str]
  lines: Iterator[list[Any]]


def read_runs(
    *folders: str | Path, rows: bool = False
) -> "pandas.DataFrame":
  """All runs of some folders as a data frame of pandas.

  The mean accuracy for each k, and the accuracy of one run by time:

      runs = agsfl.read_runs("runs/sweep")
      print(runs.groupby("k")["test_accuracy"].mean())
      rounds = agsfl.read_runs("runs/sweep", rows=True).dropna(
          subset=["test_accuracy"]
      )
      rounds.loc["k=300,seed=0"].plot(x="time", y="test_accuracy")

  Args:
    *folders: of runs, or with runs anywhere below them.
    rows: whether there is a line for each round, and not one for each run.

  Returns:
    The index is `run`: the run's folder, relative to the folder that was given,
    or to the folder that has all of them. What a run does not have is missing.

    A line for each run has all settings as used, those that differ first;
    `finished`; and the final values: those of the last round and of the last
    evaluation, `bytes` that all clients and the server have sent until the last
    round, and of a finished run also its wall times and memory.

    A line for each round, with round 0 where the first weights were evaluated,
    has the settings that differ and the seed, the columns of metrics.jsonl, and
    `bytes` sent until the end of that round. A column of the rows that has the
    name of a setting has "row_" before it: `row_k` is the k of a round, `k` the
    setting.

  Raises:
    ConfigError: no folder is given, there is no run, or a run is damaged.
  """
  import pandas

  runs = read.read_all(*folders)
  names = names_of(runs, *folders)
  if rows:
    table = by_round(runs, names)
  else:
    table = by_run(runs, names, settings=_by_difference(runs))
  columns = list(zip(*table.lines, strict=True)) or [()] * len(table.header)
  return pandas.DataFrame({
      name: pandas.Series(values, dtype=_dtype(values))
      for name, values in zip(table.header, columns, strict=True)
  }).set_index("run")


def _dtype(values):
  """None, which lets pandas decide; it would make numbers with gaps floats."""
  kinds = {type(value) for value in values if value is not None}
  if values and not kinds:  # such as the accuracies of a regression
    return "float64"
  if None in values and len(kinds) == 1:
    return {int: "Int64", bool: "boolean"}.get(*kinds)
  return None


def names_of(runs: list[Run], *folders: str | Path) -> list[str]:
  """The runs' folders relative to the one that was given.

  Args:
    runs: from `read_all` of these folders.
    *folders: if they are several, the folder that has all of them counts; if it
      is the folder of a run, the one above it.
  """
  common = Path(os.path.commonpath([
      os.path.abspath(expanded(folder)) for folder in folders
  ]))
  places = [Path(os.path.abspath(str(run.workdir))) for run in runs]
  if common in places:
    common = common.parent
  return [str(place.relative_to(common)) for place in places]


def value_of(settings: dict[str, Any], name: str) -> Any:
  """The value of a setting in the `asked` or the `config` of a run."""
  return settings.get(name, _DEFAULTS.get(name))


def settings_of(runs: list[Run]) -> list[str]:
  """The names of all settings that any of the runs has."""
  return list(dict.fromkeys(name for run in runs for name in run.asked))


def differing(runs: list[Run]) -> list[str]:
  """The settings in which the runs differ, without the seed."""
  asked = [run.asked for run in runs]
  return [
      name
      for name in settings_of(runs)
      if name != "seed"
      and any(value_of(x, name) != value_of(asked[0], name) for x in asked)
  ]


def _by_difference(runs):
  """All settings; those that differ come first, then the seed."""
  order = [*differing(runs), "seed", *settings_of(runs)]
  return list(dict.fromkeys(order))


def by_round(runs: list[Run], names: list[str]) -> Table:
  """A line for each round of each run; see `read_runs`.

  Args:
    runs: finished or not.
    names: from `names_of`.
  """
  settings = [*differing(runs), "seed"]
  keys = _keys(runs)

  def lines():
    for run, name in zip(runs, names, strict=True):
      used = _used(run, settings)
      start = [] if run.start is None else [(run.start, 0.0)]
      sent = traffic.both_ways(run).tolist()
      for row, total in (*start, *zip(run.rows, sent, strict=True)):
        yield [name, *used, *(row.get(key) for key in keys), whole(total)]

  return Table(["run", *settings, *_columns(keys, runs), "bytes"], lines())


def by_run(
    runs: list[Run],
    names: list[str],
    settings: list[str] | None = None,
    moment: Moment | None = None,
) -> Table:
  """A line for each run; see `read_runs`.

  Args:
    runs: finished or not.
    names: from `names_of`.
    settings: names of the settings to show; None for those that differ and the
      seed.
    moment: a point at which the runs are compared; None for the end of each
      run, which has wall times and memory too.
  """
  settings = [*differing(runs), "seed"] if settings is None else settings
  keys = _keys(runs)
  # Wall times and memory, which no row has.
  of_end = dict.fromkeys(
      key
      for run in runs
      for key in run.summary
      if moment is None and key not in keys
  )
  header = [
      "run", *settings, "finished", *_columns(keys, runs), "bytes",
      *_columns(of_end, runs),
  ]

  def lines():
    for run, name in zip(runs, names, strict=True):
      yield [
          name,
          *_used(run, settings),
          run.finished,
          *(cell_at(run, key, moment) for key in keys),
          whole(cell_at(run, "bytes", moment)),
          *(run.summary.get(key) for key in of_end),
      ]

  return Table(header, lines())


def write(table: Table, path: Path):
  """Writes a table as a CSV file, whole numbers without ".0".

  Args:
    table: see `by_round` and `by_run`.
    path: of the file, which is replaced.
  """
  lines = (map(whole, line) for line in table.lines)
  write_csv(path, itertools.chain([table.header], lines))


def _used(run, settings):
  """The values of settings as used, whole numbers as int."""
  return [whole(value_of(run.config, name)) for name in settings]


def _keys(runs):
  """The columns of the rows of any run."""
  rows = itertools.chain.from_iterable(
      [*run.rows, run.start or {}] for run in runs
  )
  return list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def _columns(keys, runs):
  """The names of these columns in a table."""
  taken = {*settings_of(runs), *_OWN}
  return [f"row_{key}" if key in taken else key for key in keys]
