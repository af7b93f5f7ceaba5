"""The tables of a report: settings, results, bytes, clients."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from agsfl.config import Config
from experiments.lib.groups import NONE, in_words, over_seeds
from experiments.report.markup import data, details, escape, table
from experiments.report.runs import VALUE_BYTES, Group, Shown

_OPEN_CLIENTS = 60  # a table of more clients is closed at first


def size_in_words(
    count: float, form: str = ".4g", unit_of: float | None = None
) -> str:
  """Bytes in a unit of 1,000, that of `unit_of` if given.

  >>> size_in_words(640), size_in_words(1_234_567)
  ('640 B', '1.235 MB')
  """
  size = count if unit_of is None else unit_of
  for scale, unit in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
    if size >= scale:
      return f"{count / scale:{form}} {unit}"
  return f"{count:{form}} B"


class _Metric(NamedTuple):
  """A number of a run's end.

  Attributes:
    title: of its column.
    of: the number, or None.
    mean, spread: formats of it and of half its range over seeds; None for
      bytes.
  """

  title: str
  of: Callable[[Shown], float | None]
  mean: str | None = ".4g"
  spread: str = ".2g"

  def text(self, runs: list[Shown]) -> str:
    """Markup of the runs' mean and half range; a dash where there is none."""
    values = [self.of(run) for run in runs]
    values = [value for value in values if value is not None]
    if not values:
      return NONE
    mean = values[0] if len(values) == 1 else float(np.mean(values))
    alike = max(values) == min(values)
    if self.mean is None:
      text = size_in_words(mean)
      if not alike:
        half = size_in_words(np.ptp(values) / 2, ".3g", unit_of=mean)
        text = f"{text.split()[0]} ± {half}"
    elif alike:
      text = format(mean, self.mean)
    else:
      text = over_seeds(values, self.mean, self.spread)
    return data(mean, text)


def _last(key):
  """A number of the last evaluation; None where there is none."""
  return lambda one: (
      one.run.evaluated[-1].get(key) if one.run.evaluated else None
  )


def _of_summary(key):
  return lambda one: one.run.summary.get(key) if one.run.finished else None


def _end(key):
  return lambda one: one.run.rows[-1][key] if one.run.rows else None


_METRICS = (
    _Metric("training loss", _last("train_loss"), ".4f"),
    _Metric("test loss", _last("test_loss"), ".4f"),
    _Metric("test accuracy", _last("test_accuracy"), ".4f"),
    _Metric(
        "test accuracy, worst 10% of clients",
        _last("client_test_accuracy_worst10"),
        ".4f",
    ),
    _Metric("rounds", _end("round"), ".0f", ".0f"),
    _Metric("normalised time", _end("time"), ".1f"),
    _Metric("mean k, second half", Shown.mean_k, ".0f", ".0f"),
    _Metric("sent up", lambda one: one.total("up"), None),
    _Metric("sent down", lambda one: one.total("down"), None),
    _Metric("Jain's index", Shown.jain, ".4f"),
    _Metric("wall s per round", _of_summary("median_round_seconds"), ".3g"),
)
_OF_ONE_RUN = (
    *_METRICS,
    *(
        _Metric(title, _last(f"client_test_accuracy_{name}"), ".4f")
        for title, name in (
            ("test accuracy, best 10% of clients", "best10"),
            ("test accuracy, mean over clients", "mean"),
            ("test accuracy, deviation over clients", "std"),
            ("test accuracy, Jain's index", "jain"),
        )
    ),
    _Metric("test perplexity", _last("test_perplexity"), ".2f"),
    _Metric("test RMSE", _last("test_rmse"), ".4f"),
    _Metric("wall s of the first round", _of_summary("first_round_seconds")),
    _Metric("peak memory, MB", _of_summary("peak_memory_mb"), ".0f"),
)


def count(number: int, what: str) -> str:
  """So many of something."""
  return f"{number:,} {what}{'' if number == 1 else 's'}"


def _state(one):
  """How far a run is, in words."""
  run, most = one.run, one.config["num_rounds"]
  if run.finished:
    return "finished"
  if not run.rows:
    return f"unfinished: no round of at most {most:,} is done"
  words = f"unfinished: {len(run.rows):,} of at most {most:,} rounds"
  if not run.evaluated:
    return f"{words}, not evaluated yet"
  return f"{words}, last evaluated at {run.evaluated[-1]['round']:,}"


def _head(label, runs):
  """The head of a row: a label, and what is unfinished about it."""
  stopped = "".join(
      f'<span class="stopped">{_state(one)}</span>'
      for one in runs
      if not one.run.finished
  )
  return escape(label) + stopped


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


def _words(values):
  """Settings as a cell's text, each once."""
  every = [in_words(value) for value in values]
  return escape(", ".join(dict.fromkeys(every)))


def _settings_of_one(one):
  config = _flat(one.config)
  first = (
      "dataset", "partition", "num_clients_used", "num_train", "num_test",
      "model", "num_weights", "method", "controller", "comm_time",
      "num_rounds", "seed",
  )
  default = dataclasses.asdict(Config())
  asked = one.run.asked
  changed = [
      name
      for name, value in default.items()
      if name not in (*first, "num_clients") and asked.get(name, value) != value
  ]
  rows = lambda names: [
      [escape(name), _words([config[name]])] for name in names if name in config
  ]
  main = [*(name for name in first if name in config), *changed]
  others = [name for name in config if name not in main]
  return (
      '<p class="soft">The main settings, and all that differ from the default.'
      "</p>\n"
      + table("main settings", None, rows(main), "words")
      + details(
          f"All other settings ({len(others)})",
          table("other settings", None, rows(others), "words"),
      )
  )


def _settings_of_many(groups):
  configs = [[_flat(run.config) for run in group.runs] for group in groups]
  every = [config for group in configs for config in group]
  names = list(dict.fromkeys(name for config in every for name in config))
  differs = lambda name: len({repr(config.get(name)) for config in every}) > 1
  # The fingerprint of the data follows from the others; readers do not need it.
  differing = [name for name in names if name != "data" and differs(name)]
  common = [name for name in names if not differs(name)]
  text = "<p>All settings are the same.</p>\n"
  if differing:
    lines = [
        [
            escape(group.label),
            *(
                _words([config.get(name) for config in of_group])
                for name in differing
            ),
        ]
        for group, of_group in zip(groups, configs, strict=True)
    ]
    header = ["setting", *map(escape, differing)]
    text = table("settings that differ", header, lines, "names words")
  rows = [[escape(name), _words([every[0].get(name)])] for name in common]
  return text + details(
      f"Settings that are common ({len(common)})",
      table("settings that are common", None, rows, "words"),
  )


def settings(groups: list[Group]) -> str:
  """The settings; of several runs, those that differ come first."""
  runs = [run for group in groups for run in group.runs]
  if len(runs) == 1:
    return _settings_of_one(runs[0])
  return _settings_of_many(groups)


def results(groups: list[Group]) -> str:
  """The results: by setting, and of each run."""
  runs = [run for group in groups for run in group.runs]
  note = (
      "Losses and accuracy are over all samples, at the last evaluation. Bytes "
      "are those of all clients together; see “Bytes”. Wall time is that of a "
      "median round. A client's test accuracy is that on its own samples. "
      "“Worst 10% of clients” is the mean of the lowest tenth of these. Jain's "
      "index is 1 if all clients contributed the same number of elements, and "
      "1/N if one client contributed all of them."
  )
  if len(runs) == 1:
    (run,) = runs
    lines = [["state", _state(run)]]
    for metric in _OF_ONE_RUN:
      text = metric.text(runs)
      if text != NONE or metric in _METRICS:
        lines.append([escape(metric.title), text])
    text = table("results", None, lines, "pairs")
    return f'{text}<p class="soft">{note}</p>\n'
  header = [escape(metric.title) for metric in _METRICS]
  lines = [
      [
          _head(group.label, group.runs),
          str(len(group.runs)),
          *(metric.text(group.runs) for metric in _METRICS),
      ]
      for group in groups
  ]
  text = table(
      "results by setting", ["setting", "runs", *header], lines, "names"
  )
  several = any(len(group.runs) > 1 for group in groups)
  if several:
    note += " ± is half the range over runs that differ only in the seed."
  text += f'<p class="soft">{note}</p>\n'
  lines = [
      [
          _head(run.name, [run]),
          _words([run.config.get("seed")]),
          *(metric.text([run]) for metric in _METRICS),
      ]
      for run in runs
  ]
  each = table(
      "results of each run", ["folder", "seed", *header], lines, "names"
  )
  return text + details(f"Each run ({len(runs)})", each)


def sent(groups: list[Group]) -> str:
  """How many bytes were sent, and how they are counted."""
  columns = (
      _Metric("clients", lambda one: one.senders, ".0f"),
      _Metric("bytes per element", _bytes_per_element, ".4g"),
      _Metric(
          "elements up, a client",
          lambda one: one.elements("up")[-1] if one.run.rows else None,
          ",.0f",
          ",.0f",
      ),
      _Metric(
          "elements down, a client",
          lambda one: one.elements("down")[-1] if one.run.rows else None,
          ",.0f",
          ",.0f",
      ),
      _Metric("up, all clients", lambda one: one.total("up"), None),
      _Metric("down, all clients", lambda one: one.total("down"), None),
      _Metric("of sending all D", _share_of_all, ".2%", ".2%"),
  )
  header = [escape(metric.title) for metric in columns]
  runs = [run for group in groups for run in group.runs]
  if len(runs) == 1:
    lines = [[escape(c.title), c.text(runs)] for c in columns]
    text = table("bytes", None, lines, "pairs")
  else:
    text = table(
        "bytes by setting",
        ["setting", *header],
        [
            [
                escape(group.label),
                *(metric.text(group.runs) for metric in columns),
            ]
            for group in groups
        ],
        "names",
    )
  notes = [
      "A number takes 4 bytes. An element of a sparse message is two numbers, "
      "its index and its value. If both sides know the indices, it is the "
      "value alone.",
      "Up: the message of k_up elements that each client sends in each round, "
      "summed over rounds and over the clients that have samples. Down: the "
      "server's message of k_down elements, once for each of these clients. "
      "If the server sends one broadcast to all, divide by their number.",
      "Not counted: the first weights, headers of packets, and the few numbers "
      "per client and round by which k is learned, with the probe k'. “Of "
      "sending all D” compares with 4 bytes for each of the D weights, up and "
      "down, in each of the run's rounds.",
  ]
  if any(
      not one.run.finished and one.config.get("min_samples") == 0
      for one in runs
  ):
    notes.append(
        "For an unfinished run it is not recorded which clients have no "
        "samples, so all of its clients are counted."
    )
  return text + "".join(f'<p class="soft">{note}</p>\n' for note in notes)


def _bytes_per_element(one):
  """The mean of both ways; None where nothing was sent."""
  elements = sum(sum(one.elements(way)[-1:]) for way in ("up", "down"))
  sizes = sum(sum(one.bytes_of_one(way)[-1:]) for way in ("up", "down"))
  return sizes / elements if elements else None


def _share_of_all(one):
  """What was sent, as a share of all D weights in every round."""
  if not one.run.rows or not one.senders:
    return None
  each = VALUE_BYTES * one.config["num_weights"]
  whole = 2 * each * len(one.run.rows) * one.senders
  return (one.total("up") + one.total("down")) / whole


def _clients_of(one):
  """The table of one run's clients."""
  values_of = one.run.clients
  formats = {
      "samples": ("samples", ",.0f"),
      "test_samples": ("test samples", ",.0f"),
      "test_loss": ("test loss", ".4f"),
      "test_accuracy": ("test accuracy", ".4f"),
      "rounds": ("rounds", ",.0f"),
      "contributed": ("contributed", ",.0f"),
  }
  # Runs of version 0.1 do not have all of them.
  formats = {name: form for name, form in formats.items() if name in values_of}
  columns = [
      [
          NONE if value != value else format(value, form)
          for value in values_of[name]
      ]
      for name, (_, form) in formats.items()
  ]
  names = map(escape, values_of["client"])
  lines = [list(line) for line in zip(names, *columns, strict=True)]
  header = ["client", *(title for title, _ in formats.values())]
  return table(f"clients of {one.name}", header, lines)


def clients(groups: list[Group]) -> str:
  """The tables of clients, run by run."""
  runs = [run for group in groups for run in group.runs]
  parts = []
  for one in runs:
    name = escape(one.name)
    if not one.run.finished:
      parts.append(f"<p>{name}: not known until the run is finished.</p>\n")
      continue
    number = len(one.run.clients["client"])
    opened = len(runs) == 1 and number <= _OPEN_CLIENTS
    words = count(number, "client")
    summary = words if len(runs) == 1 else f"{name}: {words}"
    parts.append(details(summary, _clients_of(one), is_open=opened))
  note = (
      '<p class="soft">Loss and accuracy are those of the final weights on the '
      "client's own test samples. Rounds: those in which it took part. "
      "Contributed: elements of its messages that the server used.</p>\n"
  )
  return note + "".join(parts)
