"""Runs as a report shows them: with a name, in groups, with bytes."""

import dataclasses
import json
import os
from typing import Any, NamedTuple

import numpy as np

from agsfl.config import Config
from agsfl.records.fairness import jain_index
from agsfl.records.read import Run, read_runs
from agsfl.sparsifiers import METHODS
from experiments.lib.groups import in_order, in_words, value_of

VALUE_BYTES = 4
# Of a method that is not registered: an index and a value.
_NUMBERS_PER_ELEMENT = 2

# `fingerprints` differs where the user's own parts differ.
_SETTINGS = (
    *(field.name for field in dataclasses.fields(Config)), "fingerprints",
)
# They come first in a label, by their values alone.
_NAMES = ("method", "controller", "dataset", "partition", "model")


@dataclasses.dataclass(frozen=True)
class Shown:
  """A run of a report.

  Attributes:
    name: its folder, as shown.
    run: the run, finished or not.
  """

  name: str
  run: Run

  @property
  def config(self) -> dict[str, Any]:
    """The settings as used."""
    return self.run.config

  @property
  def has_k(self) -> bool:
    """Whether the method takes k."""
    method = self.config["method"]
    return method not in METHODS or METHODS[method].takes_k

  @property
  def senders(self) -> int:
    """Clients that take part: those with samples, where they are known."""
    if not self.run.finished:
      return self.config["num_clients_used"]
    return sum(count > 0 for count in self.run.clients["samples"])

  def elements(self, way: str) -> list[int]:
    """[rounds] elements of one client's messages until each round's end.

    Args:
      way: "up" or "down".
    """
    counts = [row[f"k_{way}"] for row in self.run.rows]
    return np.cumsum(counts, dtype=int).tolist()

  def bytes_of_one(self, way: str) -> list[float]:
    """[rounds] bytes of one client's messages until each round's end.

    Runs of version 0.1 recorded only elements; for them the method says how
    many bytes an element takes.
    """
    each = element_bytes(self.config["method"])
    counts = [
        row.get(f"bytes_{way}", each * row[f"k_{way}"])
        for row in self.run.rows
    ]
    return np.cumsum(counts).tolist()

  def sent(self, way: str) -> list[float]:
    """[rounds] bytes of all clients' messages until each round's end."""
    name = f"all_bytes_{way}"
    if self.run.rows and name in self.run.rows[0]:
      return np.cumsum([row[name] for row in self.run.rows]).tolist()
    return [self.senders * count for count in self.bytes_of_one(way)]

  def total(self, way: str) -> float | None:
    """The last of `sent`; None before the first round."""
    return self.sent(way)[-1] if self.run.rows else None

  def series(self, key: str, against: str) -> tuple[np.ndarray, np.ndarray]:
    """See `Run.series`; `against` may be "bytes" too, sent up and down."""
    if against != "bytes":
      return self.run.series(key, against)
    rounds, values = self.run.series(key, "round")
    until = np.add(self.sent("up"), self.sent("down"))
    return until[rounds.astype(int) - 1], values

  def mean_k(self) -> float | None:
    """The mean k of the rounds' second half; None where there is none."""
    rows = self.run.rows
    half = [row["k"] for row in rows[len(rows) // 2 :]]
    return float(np.mean(half)) if half and self.has_k else None

  def jain(self) -> float | None:
    """Jain's index of what clients contributed; None where unfinished."""
    return jain_index(self.run.contributed) if self.run.finished else None

  def settings(self) -> dict[str, Any]:
    """The settings as used, without the seed."""
    settings = {name: value_of(self.config, name) for name in _SETTINGS}
    return {**settings, "seed": None}


def element_bytes(method: str) -> int:
  """Bytes of one element of a message.

  >>> element_bytes("fab_top_k"), element_bytes("fedavg"), element_bytes("mine")
  (8, 4, 8)
  """
  if method not in METHODS:
    return VALUE_BYTES * _NUMBERS_PER_ELEMENT
  return VALUE_BYTES * METHODS[method].numbers_per_element


def read_all(folders: list[str]) -> tuple[str, list[Shown]]:
  """The runs of several folders, each once.

  Args:
    folders: see `read_runs`.

  Returns:
    The folder that contains all of them, and the runs, named by their places in
    it. For one run both are its own folder.

  Raises:
    ConfigError: see `read_runs`.
  """
  runs = read_runs(*folders)
  if len(runs) == 1:
    (run,) = runs
    return str(run.workdir), [Shown(str(run.workdir), run)]
  places = [os.path.abspath(run.workdir) for run in runs]
  common = os.path.commonpath(places)
  return common, [
      Shown(os.path.relpath(place, common), run)
      for place, run in zip(places, runs, strict=True)
  ]


class Group(NamedTuple):
  """Runs that differ only in the seed; an unfinished run is a group by itself.

  Attributes:
    label: the settings in which it differs from the others.
    runs: one or more.
  """

  label: str
  runs: list[Shown]

  @property
  def finished(self) -> bool:
    """Whether its runs are done."""
    return self.runs[0].run.finished


def group(runs: list[Shown]) -> list[Group]:
  """Groups runs that differ only in the seed.

  Args:
    runs: in any order.

  Returns:
    The groups, sorted by the values of the settings in which they differ.
  """
  by_settings: dict[str, list[Shown]] = {}
  for one in runs:
    alone = None if one.run.finished else one.name
    key = json.dumps([one.settings(), alone], sort_keys=True)
    by_settings.setdefault(key, []).append(one)
  groups = list(by_settings.values())
  keys = _distinguishing([runs[0].settings() for runs in groups])
  groups.sort(
      key=lambda runs: [in_order(runs[0].settings()[key]) for key in keys]
  )
  labels = [_label(runs, keys) for runs in groups]
  return [
      Group(
          label if labels.count(label) == 1 else f"{label}, {runs[0].name}",
          runs,
      )
      for label, runs in zip(labels, groups, strict=True)
  ]


def _distinguishing(settings: list[dict[str, Any]]) -> list[str]:
  """A few settings in which all groups differ, if any settings do."""
  order = [*_NAMES, *(name for name in _SETTINGS if name not in _NAMES)]
  kinds = lambda keys: len({
      json.dumps([one[key] for key in keys]) for one in settings
  })
  picked: list[str] = []
  while kinds(picked) < kinds(order):
    picked.append(max(order, key=lambda key: kinds([*picked, key])))
  return sorted(picked or _NAMES[:2], key=order.index)


def _label(runs, keys):
  config = runs[0].config
  words = [
      in_words(config.get(key))
      if key in _NAMES
      else f"{key}={in_words(config.get(key))}"
      for key in keys
  ]
  if not runs[0].run.finished:
    words.append(f"seed={in_words(config.get('seed'))}, unfinished")
  return ", ".join(words)
