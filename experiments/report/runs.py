"""Runs as a report sees them: found, read, checked, counted, grouped."""

import dataclasses
import json
import math
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agsfl import config as settings
from agsfl.errors import ConfigError
from agsfl.records import folder as records
from experiments.lib import groups as results

# Both sides know the indices of what these send: an element is its value.
PLAIN_METHODS = ("periodic_k", *settings.METHODS_WITHOUT_K)
_INDEX_BYTES = _VALUE_BYTES = 4

_NUMBERS = ("round", "time", "k", "k_probe", "k_up", "k_down")
_EVALUATION = ("train_loss", "test_loss", "test_accuracy")
# Numbers of summary.json that are shown, where it has them.
_SUMMARY = (
    "client_test_accuracy_min", "client_test_accuracy_p10",
    "client_test_accuracy_median", "median_round_seconds",
    "first_round_seconds", "peak_memory_mb",
)
_COLUMNS = (
    "client", "samples", "test_samples", "test_loss", "test_accuracy",
    "contributed",
)
_SETTINGS = tuple(field.name for field in dataclasses.fields(settings.Config))
# Their values speak for themselves; first in a label.
_NAMES = ("method", "controller", "dataset", "partition", "model")


def element_bytes(method: str) -> int:
  """Bytes of one element of a message.

  >>> element_bytes("fab_top_k"), element_bytes("fedavg")
  (8, 4)
  """
  return _VALUE_BYTES + (0 if method in PLAIN_METHODS else _INDEX_BYTES)


class Run(NamedTuple):
  """One run, finished or not.

  Attributes:
    name: its folder, as shown.
    config: of config.json.
    rows: of metrics.jsonl.
    summary: of summary.json; None where the run is unfinished.
    clients: columns of clients.csv; None where it is.
  """

  name: str
  config: dict[str, Any]
  rows: list[dict[str, Any]]
  summary: dict[str, Any] | None
  clients: dict[str, list] | None

  @property
  def finished(self) -> bool:
    """Whether the run is done."""
    return self.summary is not None

  @property
  def evaluated(self) -> list[dict[str, Any]]:
    """The rows with losses over all samples."""
    return [row for row in self.rows if "test_loss" in row]

  @property
  def has_k(self) -> bool:
    """Whether the method takes k."""
    return self.config["method"] not in settings.METHODS_WITHOUT_K

  @property
  def senders(self) -> int:
    """Clients that take part: those with samples, where they are known."""
    if self.clients is None:
      return self.config["num_clients_used"]
    return sum(count > 0 for count in self.clients["samples"])

  def elements(self, key: str) -> list[int]:
    """[rounds] elements of one client's messages until each round's end.

    Args:
      key: "k_up" or "k_down".
    """
    return np.cumsum([row[key] for row in self.rows], dtype=int).tolist()

  def sent(self, key: str) -> list[int]:
    """[rounds] bytes of all clients' messages until each round's end."""
    each = element_bytes(self.config["method"]) * self.senders
    return [each * count for count in self.elements(key)]

  def total(self, key: str) -> int | None:
    """The last of `sent`; None before the first round."""
    return self.sent(key)[-1] if self.rows else None

  def series(self, key: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    """Values of one key of the rows that have it, where they are finite.

    Args:
      key: of the rows.
      against: another, or "bytes", those sent up and down.

    Returns:
      (x, y), [points] each.
    """
    xs = (
        np.add(self.sent("k_up"), self.sent("k_down")).tolist()
        if against == "bytes"
        else [row[against] for row in self.rows]
    )
    points = [
        (x, row[key])
        for x, row in zip(xs, self.rows, strict=True)
        if key in row and math.isfinite(row[key])
    ]
    x, y = np.array(points, float).reshape(-1, 2).T
    return x, y

  def mean_k(self) -> float | None:
    """The mean k of the rounds' second half; None where there is none."""
    half = [row["k"] for row in self.rows[len(self.rows) // 2 :]]
    return float(np.mean(half)) if half and self.has_k else None

  def jain(self) -> float | None:
    """Jain's index of what clients contributed; None where unfinished."""
    if self.clients is None:
      return None
    return results.jain_index(np.array(self.clients["contributed"]))

  def settings(self) -> dict[str, Any]:
    """The settings as used."""
    return {name: self.config.get(name) for name in _SETTINGS}


def in_words(value: Any) -> str:
  """A setting as a flag takes it; "none" for None."""
  if value is None:
    return "none"
  if isinstance(value, bool):
    return "true" if value else "false"
  return f"{value:.12g}" if isinstance(value, float) else str(value)


def _by_number(path):
  """Sorts seed2 before seed10."""
  pieces = re.split(r"(\d+)", str(path))
  return [(not p.isdigit(), int(p) if p.isdigit() else p) for p in pieces]


def find(folder: Path) -> list[Path]:
  """The runs that a folder stands for: itself, or all below it.

  Args:
    folder: given by the user.

  Returns:
    Their folders; seed2 comes before seed10.

  Raises:
    ConfigError: it is not there, cannot be read, or holds no run.
  """

  def refuse(error):
    raise ConfigError(
        f"{error.filename}: cannot be read ({error.strerror})"
    ) from error

  if not folder.is_dir():
    problem = "is no folder" if folder.exists() else "there is no such folder"
    raise ConfigError(f"{folder}: {problem}")
  found = []
  for place, below, files in os.walk(folder, onerror=refuse):
    if "config.json" in files:
      found.append(Path(place))
      below.clear()  # checkpoints and figures
  if not found:
    raise ConfigError(f"{folder}: holds no run, here or below (config.json)")
  return sorted(found, key=_by_number)


def read(workdir: Path) -> Run:
  """Reads a run and checks what a report needs of it.

  Args:
    workdir: its folder.

  Returns:
    The run, unfinished where it has no summary.json.

  Raises:
    ConfigError: a file is missing or damaged; the text names the folder.
  """
  try:
    config = _config(workdir)
    finished = (workdir / "summary.json").exists()
    rows = _rows(workdir, finished, config["num_weights"])
    if not finished:
      return Run(str(workdir), config, rows, None, None)
    summary = _summary(workdir, rows)
    clients = _clients(workdir, config)
    return Run(str(workdir), config, rows, summary, clients)
  except OSError as error:
    name = Path(error.filename or "").name
    raise ConfigError(
        f"{workdir}: {name} cannot be read ({error.strerror})"
    ) from error
  except (ValueError, OverflowError, RecursionError) as error:
    raise ConfigError(f"{workdir}: is damaged: {error}") from error


def _config(workdir):
  text = (workdir / "config.json").read_text()
  try:
    config = json.loads(text)
  except ValueError as error:
    raise ValueError(f"config.json is no JSON ({error})") from error
  method = config.get("method") if isinstance(config, dict) else None
  if method not in settings.METHODS:
    raise ValueError(f"config.json is of no run (method is {method!r})")
  for name in ("num_clients_used", "num_weights", "num_rounds"):
    if not _is_count(config.get(name)):
      raise ValueError(f"config.json: {name} is {config.get(name)!r}")
  if not isinstance(config.get("asked", {}), dict):
    raise ValueError("config.json: asked holds no settings")
  return config


def _is_count(value):
  return type(value) is int and 0 <= value < 2**31


def _is_number(value):
  return type(value) in (int, float)


def _rows(workdir, finished, num_weights):
  """The rows; the torn last line of a run that was killed is none."""
  path = workdir / "metrics.jsonl"
  if not finished and not path.exists():
    return []
  *lines, rest = path.read_bytes().split(b"\n")
  if rest and finished:
    raise ValueError("metrics.jsonl: its last line is torn")
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      row = json.loads(line)
    except ValueError as error:
      raise ValueError(
          f"metrics.jsonl, line {number}: no JSON ({error})"
      ) from error
    problem = _problem(row, number, num_weights)
    if problem:
      raise ValueError(f"metrics.jsonl, line {number}: {problem}")
    rows.append(row)
  return rows


def _problem(row, number, num_weights):
  """What is wrong with a row, or None."""
  if not isinstance(row, dict):
    return "no row"
  for key in _NUMBERS:
    if not _is_number(row.get(key)) or not math.isfinite(row[key]):
      return f"{key} is {row.get(key)!r}"
  for key in ("k_up", "k_down"):
    if not _is_count(row[key]) or row[key] > num_weights:
      return f"{key} is {row[key]!r}"
  if row["round"] != number:
    return f"round is {row['round']}"
  # Losses may overflow.
  held = [key for key in _EVALUATION if key in row]
  if held and not all(_is_number(row.get(key)) for key in _EVALUATION):
    return f"{', '.join(_EVALUATION)} must be numbers"
  return None


def _summary(workdir, rows):
  summary = records.read_summary(workdir)
  if not isinstance(summary, dict) or "round" not in summary:
    raise ValueError("summary.json has no round")
  if summary["round"] != len(rows) or not rows:
    raise ValueError(
        f"summary.json tells of {summary['round']} rounds, metrics.jsonl has "
        f"{len(rows)} rows"
    )
  if "test_loss" not in rows[-1]:
    raise ValueError("metrics.jsonl: its last row has no test_loss")
  for name in _SUMMARY:
    if not _is_number(summary.get(name, 0)):
      raise ValueError(f"summary.json: {name} is {summary[name]!r}")
  return summary


def _clients(workdir, config):
  clients = records.read_clients(workdir)
  lacking = [name for name in _COLUMNS if name not in clients]
  if lacking:
    raise ValueError(f"clients.csv: no column {', '.join(lacking)}")
  if len(clients["client"]) != config["num_clients_used"]:
    raise ValueError(
        f"clients.csv: {len(clients['client'])} clients, config.json tells of "
        f"{config['num_clients_used']}"
    )
  counts = [*clients["samples"], *clients["contributed"]]
  if not all(math.isfinite(count) and count >= 0 for count in counts):
    raise ValueError("clients.csv: samples and contributed must be counts")
  return clients


def read_all(folders: list[Path]) -> tuple[str, list[Run]]:
  """The runs of several folders, each once.

  Args:
    folders: see `find`.

  Returns:
    The folder that holds all of them, and the runs, named by where they lie in
    it; of one run its folder.

  Raises:
    ConfigError: see `find` and `read`.
  """
  found = {}
  for folder in folders:
    for workdir in find(folder):
      found.setdefault(workdir.resolve(), workdir)
  runs = [read(workdir) for workdir in found.values()]
  if len(runs) == 1:
    return runs[0].name, runs
  common = os.path.commonpath(found)
  names = [os.path.relpath(workdir, common) for workdir in found]
  return common, [
      run._replace(name=name) for run, name in zip(runs, names, strict=True)
  ]


class Group(NamedTuple):
  """Runs that differ in their seed alone; one that is unfinished stands alone.

  Attributes:
    label: what tells it from the others.
    runs: one or more.
  """

  label: str
  runs: list[Run]

  @property
  def finished(self) -> bool:
    """Whether its runs are done."""
    return self.runs[0].finished


def _without_seed(run):
  return {**run.settings(), "seed": None}


def group(runs: list[Run]) -> list[Group]:
  """Puts runs that differ in their seed alone together, in their order."""
  together = {}
  for run in runs:
    alone = None if run.finished else run.name
    key = json.dumps([_without_seed(run), alone], sort_keys=True)
    together.setdefault(key, []).append(run)
  groups = list(together.values())
  keys = _telling([_without_seed(runs[0]) for runs in groups])
  labels = [_label(runs, keys) for runs in groups]
  return [
      Group(
          label if labels.count(label) == 1 else f"{label}, {runs[0].name}",
          runs,
      )
      for label, runs in zip(labels, groups, strict=True)
  ]


def _telling(held: list[dict[str, Any]]) -> list[str]:
  """A few settings that tell all apart as far as settings can."""
  order = [*_NAMES, *(name for name in _SETTINGS if name not in _NAMES)]
  kinds = lambda keys: len({
      json.dumps([one[key] for key in keys]) for one in held
  })
  picked = []
  while kinds(picked) < kinds(order):
    picked.append(max(order, key=lambda key: kinds([*picked, key])))
  return sorted(picked or _NAMES[:2], key=order.index)


def _label(runs, keys):
  config = runs[0].config
  said = [
      in_words(config.get(key))
      if key in _NAMES
      else f"{key}={in_words(config.get(key))}"
      for key in keys
  ]
  if not runs[0].finished:
    said.append(f"seed={in_words(config.get('seed'))}, unfinished")
  return ", ".join(said)
