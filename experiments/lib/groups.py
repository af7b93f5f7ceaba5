"""Runs read back from their folders: grouped, averaged, drawn, tabled."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from agsfl.errors import ConfigError
from agsfl.records import folder as records


class Run(NamedTuple):
  """One finished run, read back.

  Attributes:
    rows: of metrics.jsonl.
    summary: of summary.json.
    contributed: [N] elements that the server used of each client.
    workdir: its folder.
    asked: its settings, as JSON has them; None for a part of a run.
  """

  rows: list[dict]
  summary: dict
  contributed: np.ndarray
  workdir: Path
  asked: dict[str, Any] | None = None

  def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of one key, where rows have it."""
    rows = [row for row in self.rows if key in row]
    return (
        np.array([row["time"] for row in rows]),
        np.array([row[key] for row in rows], float),
    )


def read(workdir: Path) -> Run:
  """The finished run in a folder.

  Raises:
    ConfigError: there is none, or a file of it is damaged.
  """
  try:
    return Run(
        rows=records.read_rows(workdir),
        summary=records.read_summary(workdir),
        contributed=np.array(records.read_clients(workdir)["contributed"]),
        workdir=workdir,
        asked=records.read_config(workdir)["asked"],
    )
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ConfigError(
        f"{workdir}: must be the folder of a finished run ({error})"
    ) from error


def find(folder: Path) -> list[Path]:
  """The runs in a folder: itself, or all below it, in order of their names.

  Raises:
    ConfigError: there are none.
  """
  found = sorted(path.parent for path in folder.rglob("summary.json"))
  if not found:
    raise ConfigError(f"{folder}: must hold finished runs")
  return found


def read_all(folders: list[str]) -> list[Run]:
  """The runs of all these folders, each once.

  Raises:
    ConfigError: there are no folders, or no finished runs in one.
  """
  if not folders:
    raise ConfigError("must be given folders of runs, such as runs/first")
  found = [place for folder in folders for place in find(Path(folder))]
  # One run may be reached by several paths.
  places = {place.resolve(): place for place in found}
  return [read(place) for place in places.values()]


def _settings(runs):
  """Names of all settings; runs of an earlier version may lack some."""
  return list(dict.fromkeys(name for run in runs for name in run.asked))


def differing(runs: list[Run]) -> list[str]:
  """The settings, but for the seed, in which the runs are not alike."""
  return [
      name
      for name in _settings(runs)
      if name != "seed"
      and any(run.asked.get(name) != runs[0].asked.get(name) for run in runs)
  ]


def grouped(runs: list[Run], fields: list[str]) -> dict[str, list[Run]]:
  """The runs by the values of these settings, each group with a label.

  Raises:
    ConfigError: a field is no setting.
  """
  known = _settings(runs)
  for field in fields:
    if field not in known:
      raise ConfigError(f"--group_by={field}: must be of {', '.join(known)}")
  groups = {}
  for run in runs:
    label = ", ".join(f"{field} = {run.asked.get(field)}" for field in fields)
    groups.setdefault(label or "all", []).append(run)
  return groups


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
  """Averages lines over the x that all of them have seen.

  Args:
    lines: (x, y) each, of straight pieces, x rising.

  Returns:
    The band at every x of a line, or None where they share less than two.
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


def draw_spread(axes, runs: list[Run], key: str, label: str):
  """Draws runs of one setting: their mean and band, or a line for each.

  Args:
    axes: of Matplotlib.
    runs: whose times overlap, or else each has its own line.
    key: of the rows.
    label: of the legend.
  """
  lines = [run.series(key) for run in runs]
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


def over_seeds(values, mean: str = ".4g", spread: str = ".2g") -> str:
  """Mean of the seeds' numbers and half their range, in these formats."""
  text = format(np.mean(values), mean)
  if len(values) > 1:
    text += f" ± {format(np.ptp(values) / 2, spread)}"
  return text


def final(runs: list[Run], key: str) -> str:
  """A summary's number `over_seeds`."""
  return over_seeds([run.summary[key] for run in runs])


def jain_index(contributed: np.ndarray) -> float:
  """Jain's fairness index, from 1 / N (one client alone) to 1 (all alike).

  Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
  Discrimination", DEC TR-301, 1984.
  """
  contributed = np.asarray(contributed, float)
  squares = len(contributed) * np.sum(contributed**2)
  return float(np.sum(contributed) ** 2 / squares) if squares else 1.0


def table(header: list[str], lines: list[list[str]]) -> str:
  """A Markdown table."""
  rows = [header, ["---"] * len(header), *lines]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)
