"""Runs as a report shows them: with a name, in groups that differ in seeds."""

import dataclasses
import json
import os
from typing import Any, NamedTuple

from agsfl.config import Config
from agsfl.records import read
from agsfl.records.read import Run
from agsfl.sparsifiers import METHODS
from experiments.lib.groups import in_order, value_in_words, value_of

# `fingerprints` differs where the user's own parts differ.
_SETTINGS = (
    *(field.name for field in dataclasses.fields(Config)), "fingerprints",
)
# They come first in a label, by their values alone.
_NAMES = ("method", "controller", "dataset", "partition", "model")


class Shown(NamedTuple):
  """A run of a report.

  Attributes:
    name: its folder, as shown.
    run: the run, finished or not.
  """

  name: str
  run: Run

  @property
  def settings(self) -> dict[str, Any]:
    """The settings as `setting` has them, without the seed."""
    settings = {name: setting(self.run, name) for name in _SETTINGS}
    return {**settings, "seed": None}

  @property
  def used(self) -> dict[str, Any]:
    """The settings as used, without the seed."""
    settings = {name: value_of(self.run.config, name) for name in _SETTINGS}
    return {**settings, "seed": None}


class Group(NamedTuple):
  """Runs that differ only in the seed; an unfinished run is a group by itself.

  Attributes:
    label: the settings in which it differs from the others.
    shown: one or more.
  """

  label: str
  shown: list[Shown]

  @property
  def runs(self) -> list[Run]:
    """Its runs without their names."""
    return [one.run for one in self.shown]

  @property
  def finished(self) -> bool:
    """Whether its runs are done."""
    return self.runs[0].finished


def setting(run: Run, name: str) -> Any:
  """A setting as the user asked for it, such as k="1%", else as used."""
  asked, used = value_of(run.asked, name), value_of(run.config, name)
  return used if asked in (None, used) else asked


def has_k(run: Run) -> bool:
  """Whether the method takes k."""
  method = run.config["method"]
  return method not in METHODS or METHODS[method].takes_k


def read_all(folders: list[str]) -> tuple[str, list[Shown]]:
  """The runs of several folders, each once.

  Args:
    folders: see `read.read_all`.

  Returns:
    The folder that contains all of them, and the runs, named by their places in
    it. For one run both are its own folder.

  Raises:
    ConfigError: see `read.read_all`.
  """
  runs = read.read_all(*folders)
  if len(runs) == 1:
    (run,) = runs
    return str(run.workdir), [Shown(str(run.workdir), run)]
  places = [os.path.abspath(run.workdir) for run in runs]
  common = os.path.commonpath(places)
  return common, [
      Shown(os.path.relpath(place, common), run)
      for place, run in zip(places, runs, strict=True)
  ]


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
    key = json.dumps([one.settings, one.used, alone], sort_keys=True)
    by_settings.setdefault(key, []).append(one)
  groups = list(by_settings.values())
  keys = _distinguishing([runs[0].settings for runs in groups])
  # As used, so that 50 comes before 1% of 9,610.
  groups.sort(key=lambda runs: [in_order(runs[0].used[k]) for k in keys])
  labels = [_label(runs[0].run, keys) for runs in groups]
  return [
      Group(
          label if labels.count(label) == 1 else f"{label}, {runs[0].name}",
          runs,
      )
      for label, runs in zip(labels, groups, strict=True)
  ]


def _distinguishing(settings):
  """A few settings in which all groups differ, if any settings do."""
  order = [*_NAMES, *(name for name in _SETTINGS if name not in _NAMES)]
  kinds = lambda keys: len({
      json.dumps([one[key] for key in keys]) for one in settings
  })
  picked: list[str] = []
  while kinds(picked) < kinds(order):
    picked.append(max(order, key=lambda key: kinds([*picked, key])))
  return sorted(picked or _NAMES[:2], key=order.index)


def _label(run, keys):
  words = [
      ("" if key in _NAMES else f"{key}=") + value_in_words(setting(run, key))
      for key in keys
  ]
  if not run.finished:
    words.append(f"seed={value_in_words(run.config.get('seed'))}, unfinished")
  return ", ".join(words)


def title(groups: list[Group]) -> str:
  """What the page is about, in a few words."""
  runs = [run for group in groups for run in group.runs]
  if len(runs) == 1:
    name = lambda key: value_in_words(setting(runs[0], key))
    how = f" with {name('controller')}" if has_k(runs[0]) else ""
    return f"{name('method')}{how} on {name('dataset')}"
  if len(groups) == 1:
    return f"{len(runs)} runs: {groups[0].label}"
  if len(groups) == len(runs):
    return f"{len(runs)} runs"
  return f"{len(runs)} runs of {len(groups)} settings"
