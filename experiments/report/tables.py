"""The tables of a report, as plain data: columns, and rows of cells.

A cell is text, a number, None, or a number with its text: [number, text]. The
mean over several seeds also has half their range: [number, text, half].
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from agsfl.config import Config
from agsfl.records import traffic
from agsfl.records.fairness import SPREAD, jain_index
from agsfl.records.moment import Moment, value_at
from agsfl.records.read import Run
from experiments.lib.groups import in_words, metrics, over_seeds, title_of
from experiments.lib.ranking import rank, values_at
from experiments.report.runs import Group, has_k

_NUMBER_BYTES = 4
_SIZES = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes"))
# The columns of clients.csv: their titles and digits after the point.
_CLIENTS = {
    "samples": ("samples", 0), "test_samples": ("test samples", 0),
    "test_loss": ("test loss", 4), "test_accuracy": ("test accuracy", 4),
    "rounds": ("rounds", 0), "contributed": ("elements contributed", 0),
}
_MAIN = (
    "dataset", "partition", "num_clients_used", "num_train", "num_test",
    "model", "num_weights", "method", "controller", "comm_time", "num_rounds",
    "seed",
)


class Metric(NamedTuple):
  """A number of a run.

  Attributes:
    title: of its column.
    of: the number, or None.
    form, spread: formats of the mean and of half the range over seeds.
    unit: "bytes" is shown in a larger unit that fits, "%" in hundredths.
    key: the column of metrics.jsonl that it is, if it is one.
    always: whether a column without any number is shown too.
  """

  title: str
  of: Callable[[Run], float | None]
  form: str = ".4g"
  spread: str = ".2g"
  unit: str = ""
  key: str = ""
  always: bool = True


def size_of(most: float) -> tuple[float, str]:
  """A unit in which a column of bytes with this greatest number is short.

  >>> size_of(640), size_of(1_234_567)
  ((1.0, 'bytes'), (1000000.0, 'MB'))
  """
  return next((size for size in _SIZES if most >= size[0]), _SIZES[-1])


def _column(metric, groups):
  """The head of a metric's column, and its cell for each list of runs."""
  values = [
      [value for run in runs if (value := metric.of(run)) is not None]
      for runs in groups
  ]
  scale, unit = 1.0, metric.unit
  if unit == "bytes":
    scale, unit = size_of(max((max(v) for v in values if v), default=0))
  elif unit == "%":
    scale = 0.01

  def cell(some):
    if not some:
      return None
    if max(some) == min(some):
      return [some[0], format(some[0] / scale, metric.form)]
    shown = [value / scale for value in some]
    text = over_seeds(shown, metric.form, metric.spread)
    return [float(np.mean(some)), text, float(np.ptp(some)) / 2]

  # The CSV file has the numbers as they are.
  file_unit = "" if unit == "%" else metric.unit
  head = {"title": metric.title, "unit": unit, "file_unit": file_unit}
  return head, [cell(some) for some in values]


def _table(section, title, heads, shown, groups, **more):
  """A table of metrics: a row for each list of runs.

  Args:
    heads: by title, the cells of the first columns.
    shown: the metrics; those without a number may be left out.
    more: what the page needs besides: `closed`, `best` and `by`.
  """
  found = [(metric, *_column(metric, groups)) for metric in shown]
  found = [x for x in found if x[0].always or any(x[2])]
  columns = [{"title": name} for name in heads] + [head for _, head, _ in found]
  cells = [*heads.values(), *(cells for _, _, cells in found)]
  return {
      "section": section, "title": title, "columns": columns,
      "rows": [list(row) for row in zip(*cells, strict=True)], **more,
  }


def _pairs(section, title, rows, **more):
  """A table of names and values."""
  columns = [{"title": "name"}, {"title": "value"}]
  return {
      "section": section, "title": title, "columns": columns, "rows": rows,
      "pairs": True, **more,
  }


def _of_one(section, title, shown, run, rows=()):
  """The metrics of a single run, one below the other."""
  lines = list(rows)
  for metric in shown:
    head, (cell,) = _column(metric, [[run]])
    if cell or metric.always:
      in_file, shown_as = (
          metric.title + (f" ({unit})" if unit else "")
          for unit in (head["file_unit"], head["unit"])
      )
      lines.append([[in_file, shown_as], cell])
  return _pairs(section, title, lines)


def _results_of(runs: list[Run], at: Moment | None) -> list[Metric]:
  """The metrics of results, at the end of runs or at a point."""

  def row(title, key, form=".4f", spread=".2g", always=False):
    of = lambda run: value_at(run, key, at)
    return Metric(title, of, form, spread, key=key, always=always)

  def sent(way):
    def until(run):
      done = value_at(run, "round", at)
      return done and float(traffic.sent(run, way)[int(done) - 1])

    return Metric(f"sent {way}", until, unit="bytes")

  named = lambda names: [row(title_of(name), name, ".4g") for name in names]
  return [
      row("training loss", "train_loss", always=True),
      row("test loss", "test_loss", always=True),
      row("test accuracy", "test_accuracy"),
      row("test accuracy, worst 10% of clients", SPREAD[2]),
      *named(metrics(runs)),
      row("rounds", "round", ".0f", ".0f", always=True),
      row("normalised time", "time", ".1f", always=True),
      row("simulated seconds", "seconds", ".4g"),
      *_of_whole_runs(at, row),
      sent("up"),
      sent("down"),
  ]


def _of_whole_runs(at, row):
  """What no single point has; at a point there is k instead."""
  if at is not None:
    return [row("k", "k", ".0f", ".0f")]
  return [
      Metric("mean k, second half", _mean_k, ".0f", ".0f", always=False),
      Metric("Jain's index of contributions", _jain, ".4f"),
      Metric(
          "wall time per round", _of_summary("median_round_seconds"), ".3g",
          unit="s",
      ),
  ]


def _details_of_one(at):
  """More results of a single run."""
  row = lambda title, key: Metric(
      title, lambda run: value_at(run, key, at), ".4f", always=False
  )
  mean, deviation, _, best, jain = SPREAD
  return [
      row("test accuracy, best 10% of clients", best),
      row("test accuracy, mean over clients", mean),
      row("test accuracy, deviation over clients", deviation),
      row("test accuracy, Jain's index", jain),
      *(
          Metric(title, _of_summary(key), form, unit=unit, always=False)
          for title, key, form, unit in (
              ("wall time of the first round", "first_round_seconds", ".4g",
               "s"),
              ("peak memory", "peak_memory_mb", ".0f", "MB"),
          )
      ),
  ]


def _mean_k(run):
  """The mean k of the rounds' second half; None where there is none."""
  half = [row["k"] for row in run.rows[len(run.rows) // 2 :]]
  return float(np.mean(half)) if half and has_k(run) else None


def _jain(run):
  """Jain's index of what clients contributed; None where unfinished."""
  return jain_index(run.contributed) if run.finished else None


def _of_summary(key):
  return lambda run: run.summary.get(key) if run.finished else None


def state(run: Run) -> str:
  """How far a run is, in words."""
  most = run.config["num_rounds"]
  if run.finished:
    return "finished"
  if not run.rows:
    return f"unfinished: no round of at most {most:,} is done"
  words = f"unfinished: {len(run.rows):,} of at most {most:,} rounds"
  if not run.evaluated:
    return f"{words}, not evaluated yet"
  return f"{words}, last evaluated at {run.evaluated[-1]['round']:,}"


def results(
    groups: list[Group], at: Moment | None = None, best_by: str | None = None
) -> list[dict[str, Any]]:
  """The results: by setting, and of each run.

  Args:
    groups: in the order of the rows.
    at: the point at which values are taken; None for the end of each run.
    best_by: the column that decides which row is best; None for no best row.
  """
  shown = [one for group in groups for one in group.shown]
  runs = [one.run for one in shown]
  found = _results_of(runs, at)
  if len(runs) == 1:
    return [
        _of_one(
            "Results", "Results", found + _details_of_one(at), runs[0],
            [["state", state(runs[0])]],
        )
    ]
  if best_by and best_by not in [metric.key for metric in found]:
    of = lambda run: value_at(run, best_by, at)
    name = {"bytes": "sent up and down"}.get(best_by, best_by)
    unit = "bytes" if best_by == "bytes" else ""
    found.append(Metric(name, of, unit=unit, key=best_by))
  by_group = [group.runs for group in groups]
  best = {}
  ranks = [
      rank(some, best_by, at)
      for some in by_group
      if best_by and values_at(some, best_by, at)
  ]
  if len(ranks) > 1:
    title = next(metric.title for metric in found if metric.key == best_by)
    rows = [
        i for i, some in enumerate(by_group)
        if rank(some, best_by, at) == min(ranks)
    ]
    best = {"best": rows, "by": title}
  states = lambda runs_of: (
      {}
      if all(run.finished for run in runs)
      else {"state": [", ".join(map(state, some)) for some in runs_of]}
  )
  heads = {
      "setting": [group.label for group in groups],
      **states([[r for r in some if not r.finished] or some[:1]
                for some in by_group]),
      "runs": [len(some) for some in by_group],
  }
  of_runs = {
      "folder": [one.name for one in shown],
      **states([[run] for run in runs]),
      "seed": [_setting([run.config.get("seed")]) for run in runs],
  }
  return [
      _table("Results", "Results by setting", heads, found, by_group, **best),
      _table(
          "Results", "Results of each run", of_runs, found,
          [[run] for run in runs], closed=True,
      ),
  ]


def _flat(config, prefix=""):
  """config.json without `asked`, with dots between the names of levels."""
  flat = {}
  for name, value in config.items():
    if isinstance(value, dict):
      if prefix or name != "asked":
        flat |= _flat(value, f"{prefix}{name}.")
    else:
      flat[prefix + name] = value
  return flat


def _setting(values):
  """A cell of a setting's values, each once."""
  words = list(dict.fromkeys(map(in_words, values)))
  if len(words) == 1 and type(values[0]) in (int, float):
    return [values[0], words[0]]
  return ", ".join(words)


def settings(groups: list[Group]) -> list[dict[str, Any]]:
  """The settings; of several runs, those that differ come first."""
  runs = [run for group in groups for run in group.runs]
  every = [_flat(run.config) for run in runs]
  pairs = lambda title, names, **more: _pairs(
      "Settings", title, [[n, _setting([every[0].get(n)])] for n in names],
      **more,
  )
  names = list(dict.fromkeys(name for config in every for name in config))
  if len(runs) == 1:
    default, asked = dataclasses.asdict(Config()), runs[0].asked
    changed = [
        name
        for name, value in default.items()
        if name != "num_clients" and asked.get(name, value) != value
    ]
    main = [name for name in dict.fromkeys((*_MAIN, *changed)) if name in names]
    others = [name for name in names if name not in main]
    return [
        pairs("Main settings, and all that differ from the default", main),
        pairs("All other settings", others, closed=True),
    ]
  differs = lambda name: len({repr(config.get(name)) for config in every}) > 1
  # The fingerprint of the data follows from the others; readers do not need it.
  differing = [name for name in names if name != "data" and differs(name)]
  rows = [
      [group.label, *(
          _setting([_flat(run.config).get(name) for run in group.runs])
          for name in differing
      )]
      for group in groups
  ]
  common = [name for name in names if not differs(name)]
  columns = [{"title": name} for name in ("setting", *differing)]
  return [
      {
          "section": "Settings", "title": "Settings that differ",
          "columns": columns, "rows": rows,
      },
      pairs("Settings that are common", common, closed=True),
  ]


def sent(groups: list[Group]) -> list[dict[str, Any]]:
  """How many bytes were sent."""
  count = lambda way: Metric(
      f"elements {way}, a client",
      lambda run: int(traffic.elements(run, way)[-1]) if run.rows else None,
      ",.0f", ",.0f",
  )
  total = lambda way: Metric(
      f"{way}, all clients",
      lambda run: float(traffic.sent(run, way)[-1]) if run.rows else None,
      unit="bytes",
  )
  shown = [
      Metric("clients", traffic.senders, ",.0f"),
      Metric("bytes per element", _bytes_per_element),
      *map(count, traffic.WAYS),
      *map(total, traffic.WAYS),
      Metric("of sending all D", _share_of_all, ".2f", unit="%"),
  ]
  by_group = [group.runs for group in groups]
  if sum(map(len, by_group)) == 1:
    return [_of_one("Bytes", "Bytes", shown, by_group[0][0])]
  heads = {"setting": [group.label for group in groups]}
  return [_table("Bytes", "Bytes by setting", heads, shown, by_group)]


def _bytes_per_element(run):
  """The mean of both ways; None where nothing was sent."""
  last = lambda of: sum(float(sum(of(run, way)[-1:])) for way in traffic.WAYS)
  elements = last(traffic.elements)
  return last(traffic.bytes_of_one) / elements if elements else None


def _share_of_all(run):
  """What was sent, as a share of all D weights in every round."""
  senders = traffic.senders(run)
  if not run.rows or not senders:
    return None
  each = _NUMBER_BYTES * run.config["num_weights"]
  whole = 2 * each * len(run.rows) * senders
  return float(traffic.both_ways(run)[-1]) / whole


def clients(groups: list[Group]) -> list[dict[str, Any]]:
  """The tables of the clients of finished runs."""
  shown = [
      one for group in groups for one in group.shown if one.run.finished
  ]
  return [_clients_of(one, alone=len(groups[0].shown) == len(groups) == 1)
          for one in shown]


def _clients_of(one, *, alone):
  values = one.run.clients
  # Runs of version 0.1 do not have all of them.
  names = [name for name in _CLIENTS if name in values]
  columns = [{"title": "client"}]
  for name in names:
    title, digits = _CLIENTS[name]
    columns.append({"title": title, "digits": digits})
  known = lambda value: value if math.isfinite(value) else None
  cells = [values["client"], *(map(known, values[name]) for name in names)]
  number = len(values["client"])
  words = f"{number:,} client{'' if number == 1 else 's'}"
  return {
      "section": "Clients", "columns": columns, "closed": True,
      "title": words if alone else f"{one.name}: {words}",
      "rows": [list(row) for row in zip(*cells, strict=True)],
  }
