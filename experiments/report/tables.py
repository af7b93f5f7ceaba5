"""The tables of a report, as plain data: columns, and rows of cells.

A cell is text, a number, None, or a number with its text: [number, text]. The
mean over several runs also has half their range: [number, text, half], and
where some of them have no value, how many have one: [number, text, half, runs].
The page shows a table of a single row as pairs of names and values.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from agsfl.config import Config
from agsfl.records import traffic
from agsfl.records.fairness import jain_index
from agsfl.records.moment import Moment, best_is, value_at
from agsfl.records.read import Run
from agsfl.records.titles import BEST, DEVIATION, JAIN, MEAN, WORST, title_of
from experiments.lib.groups import metrics, over_seeds, part_of, value_in_words
from experiments.lib.ranking import best_of
from experiments.report.runs import Group, has_k

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
    always: whether a column without any number is shown too.
    larger: whether larger numbers are better.
  """

  title: str
  of: Callable[[Run], float | None]
  form: str = ".4g"
  spread: str = ".2g"
  unit: str = ""
  always: bool = True
  larger: bool = False


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
  scale, unit = (0.01, "%") if metric.unit == "%" else (1.0, metric.unit)
  if unit == "bytes":
    scale, unit = size_of(max((v for some in values for v in some), default=0))

  def cell(some, runs):
    if not some:
      return None
    alike = max(some) == min(some)
    shown = [value / scale for value in (some[:1] if alike else some)]
    text = over_seeds(shown, metric.form, metric.spread)
    text += part_of(len(some), len(runs))
    half = float(np.ptp(some)) / 2
    if len(some) < len(runs):
      return [float(np.mean(some)), text, half, len(some)]
    mean = some[0] if alike else float(np.mean(some))
    return [mean, text, half] if len(runs) > 1 else [mean, text]

  # A CSV file has the numbers as they are.
  file_unit = "" if unit == "%" else metric.unit
  head = {
      "title": metric.title, "unit": unit, "file_unit": file_unit,
      "larger": metric.larger,
  }
  return head, [*map(cell, values, groups)]


def _table(section, title, heads, shown, groups, **more):
  """A table of metrics: a row for each list of runs.

  Args:
    heads: by title, the cells of the first columns.
    shown: the metrics.
    more: what the page needs besides: `closed`, `best` and `by`.
  """
  found = [(metric, *_column(metric, groups)) for metric in shown]
  found = [one for one in found if one[0].always or any(one[2])]
  return {
      "section": section, "title": title,
      "columns": [{"title": name} for name in heads] + [x[1] for x in found],
      "rows": list(zip(*heads.values(), *(x[2] for x in found), strict=True)),
      **more,
  }


def _results_of(runs, at):
  """By key, the metrics of results, at the end of runs or at a point.

  The key is the column of metrics.jsonl, if the metric is one.
  """
  row = lambda key, form=".4f", spread=".2g", always=False: {
      key: Metric(
          title_of(key), functools.partial(value_at, key=key, moment=at), form,
          spread, always=always, larger=best_is(key) == "max",
      )
  }
  found = (
      row("train_loss", always=True) | row("test_loss", always=True)
      | row("test_accuracy") | row(WORST)
  )
  for name in metrics(runs):
    found |= row(name, ".4g")
  found |= row("round", ".0f", ".0f", always=True)
  found |= row("time", ".1f", always=True)
  found |= row("seconds", ".4g")

  def sent(run, way):
    done = value_at(run, "round", at)
    return done and float(traffic.sent(run, way)[int(done) - 1])

  for way in traffic.WAYS:
    of = functools.partial(sent, way=way)
    found[f"sent_{way}"] = Metric(f"sent {way}", of, unit="bytes")
  if at is not None:
    of = lambda run: value_at(run, "k", at) if has_k(run) else None
    return found | {"k": Metric("k", of, ".0f", ".0f", always=False)}
  found["mean_k"] = Metric(
      "mean k, second half", _mean_k, ".0f", ".0f", always=False
  )
  found["jain"] = Metric(
      "Jain's index of contributions", _jain, ".4f", larger=True
  )
  found |= _of_summary("median_round_seconds", "wall time per round", "s")
  if len(runs) == 1:
    for name in (BEST, MEAN, DEVIATION, JAIN):
      found |= row(name)
    found |= _of_summary("first_round_seconds", "wall time of round 1", "s")
    found |= _of_summary("peak_memory_mb", "peak memory", "MB")
  return found


def _of_summary(key, title, unit):
  of = lambda run: run.summary.get(key) if run.finished else None
  return {key: Metric(title, of, ".3g", unit=unit, always=False)}


def _mean_k(run):
  """The mean k of the rounds' second half; None where there is none."""
  half = [row["k"] for row in run.rows[len(run.rows) // 2 :]]
  return float(np.mean(half)) if half and has_k(run) else None


def _jain(run):
  return jain_index(run.contributed) if run.finished else None


def _state(run):
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
  if best_by and best_by not in found:
    of = functools.partial(value_at, key=best_by, moment=at)
    unit = "bytes" if best_by == "bytes" else ""
    larger = best_is(best_by) == "max"
    found[best_by] = Metric(title_of(best_by), of, unit=unit, larger=larger)
  if len(runs) == 1:
    state = {"state": [_state(runs[0])]}
    return [_table("Results", "Results", state, found.values(), [runs])]

  by_group = [group.runs for group in groups]
  best = {}
  if top := best_of(by_group, best_by, at):
    best = {"best": top, "by": title_of(best_by)}

  # All runs of a group are finished, or it is one run.
  state = lambda some: {"state": [_state(run) for run in some]} if not all(
      run.finished for run in runs
  ) else {}
  heads = {
      "setting": [group.label for group in groups],
      **state([some[0] for some in by_group]),
      "runs": [len(some) for some in by_group],
  }
  each = {
      "folder": [one.name for one in shown],
      **state(runs),
      "seed": [_setting([run.config.get("seed")]) for run in runs],
  }
  return [
      _table(
          "Results", "Results by setting", heads, found.values(), by_group,
          **best,
      ),
      _table(
          "Results", "Results of each run", each, found.values(),
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
  words = list(dict.fromkeys(map(value_in_words, values)))
  if len(words) == 1 and type(values[0]) in (int, float):
    return [values[0], words[0]]
  return ", ".join(words)


def settings(groups: list[Group]) -> list[dict[str, Any]]:
  """The settings; of several runs, those that differ come first."""
  runs = [run for group in groups for run in group.runs]
  every = [_flat(run.config) for run in runs]
  names = list(dict.fromkeys(name for config in every for name in config))

  def table(title, heads, names, groups, **more):
    of = lambda run, name: _flat(run.config).get(name)
    for name in names:
      heads[name] = [
          _setting([of(run, name) for run in some]) for some in groups
      ]
    return _table("Settings", title, heads, (), groups, **more)

  if len(runs) == 1:
    default, asked = dataclasses.asdict(Config()), runs[0].asked
    changed = [
        name
        for name, value in default.items()
        if name != "num_clients" and asked.get(name, value) != value
    ]
    main = [name for name in dict.fromkeys((*_MAIN, *changed)) if name in names]
    others = [name for name in names if name not in main]
    title = "Main settings, and all that differ from the default"
    return [
        table(title, {}, main, [runs]),
        table("All other settings", {}, others, [runs], closed=True),
    ]
  differs = lambda name: len({repr(config.get(name)) for config in every}) > 1
  # The fingerprint of the data follows from the others; readers do not need it.
  differing = [name for name in names if name != "data" and differs(name)]
  common = [name for name in names if not differs(name)]
  labels = {"setting": [group.label for group in groups]}
  by_group = [group.runs for group in groups]
  return [
      table("Settings that differ", labels, differing, by_group),
      table("Settings that are common", {}, common, [runs[:1]], closed=True),
  ]


def sent(groups: list[Group]) -> list[dict[str, Any]]:
  """How many bytes were sent."""

  def last(of, way):
    return lambda run: float(of(run, way)[-1]) if run.rows else None

  shown = [
      Metric("clients", traffic.senders, ",.0f"),
      Metric("bytes per element", _bytes_per_element),
      *(
          Metric(
              f"elements {way}, a client", last(traffic.elements, way), ",.0f",
              ",.0f",
          )
          for way in traffic.WAYS
      ),
      *(
          Metric(f"{way}, all clients", last(traffic.sent, way), unit="bytes")
          for way in traffic.WAYS
      ),
      Metric("of sending all D", _share_of_all, ".2f", unit="%"),
  ]
  by_group = [group.runs for group in groups]
  if sum(map(len, by_group)) == 1:
    return [_table("Bytes", "Bytes", {}, shown, by_group)]
  heads = {"setting": [group.label for group in groups]}
  return [_table("Bytes", "Bytes by setting", heads, shown, by_group)]


def _bytes_per_element(run):
  """The mean of both ways; None where nothing was sent."""
  last = lambda of: sum(float(sum(of(run, way)[-1:])) for way in traffic.WAYS)
  elements = last(traffic.elements)
  return last(traffic.bytes_of_one) / elements if elements else None


def _share_of_all(run):
  """What was sent, as a share of all D weights in every round."""
  each = traffic.BYTES_PER_NUMBER * run.config["num_weights"]
  whole = 2 * each * len(run.rows) * traffic.senders(run)
  return float(traffic.both_ways(run)[-1]) / whole if whole else None


def clients(groups: list[Group]) -> list[dict[str, Any]]:
  """The tables of the clients of finished runs."""
  shown = [one for group in groups for one in group.shown]
  tables = []
  for one in shown:
    if one.run.finished:
      values = one.run.clients
      # Runs of version 0.1 do not have all of them.
      names = [name for name in _CLIENTS if name in values]
      known = lambda value: value if math.isfinite(value) else None
      cells = [map(known, values[name]) for name in names]
      number = len(values["client"])
      words = f"{number:,} client{'' if number == 1 else 's'}"
      tables.append({
          "section": "Clients", "closed": True,
          "title": words if len(shown) == 1 else f"{one.name}: {words}",
          "columns": [{"title": "client"}] + [
              {
                  **dict(zip(("title", "digits"), _CLIENTS[name], strict=True)),
                  "larger": best_is(name) == "max",
              }
              for name in names
          ],
          "rows": list(zip(values["client"], *cells, strict=True)),
      })
  return tables
