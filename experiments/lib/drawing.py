"""Draws runs from their records alone.

Matplotlib is set up here, for files. Other modules import it from here:
`from experiments.lib.drawing import plt`.
"""

import os
from pathlib import Path

import numpy as np
from absl import logging

from agsfl import files
from agsfl.errors import require
from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run
from experiments.lib import groups

ENDINGS = (".png", ".pdf", ".svg")
_OF_WORST = "test accuracy, worst 10% of clients"


def _pyplot():
  """Matplotlib's pyplot, which draws to files whatever MPLBACKEND says.

  If that names a backend that is missing, Matplotlib cannot be imported.
  Processes that start from here get the variable back.
  """
  asked = os.environ.pop("MPLBACKEND", None)
  import matplotlib

  matplotlib.use("agg")
  import matplotlib.pyplot

  if asked is not None:
    os.environ["MPLBACKEND"] = asked
  return matplotlib.pyplot


plt = _pyplot()


def save(figure, path: Path, kind: str = "png"):
  """Writes a figure of Matplotlib and closes it.

  Args:
    figure: drawn.
    path: of any ending.
    kind: of `ENDINGS`, without its dot.
  """
  figure.savefig(path, dpi=120, format=kind)
  plt.close(figure)


def draw(run: Run):
  """Draws loss, accuracy, k, fairness, and metrics of the task and the user.

  Args:
    run: finished, with a folder; the figures go to the folder `figures` in it.
      If they cannot be written, there is only a warning.
  """
  try:
    folder = run.workdir / "figures"
    folder.mkdir(exist_ok=True)
    _draw(run, folder)
  except OSError as error:
    logging.warning("no figures can be drawn: %s", error)


def _draw(run, folder):
  losses = ["train_loss", "test_loss"]
  _figure(folder, "loss", _against_time(run, losses, "loss"))
  if _has(run, "test_accuracy"):
    accuracy = ["test_accuracy"]
    _figure(folder, "accuracy", _against_time(run, accuracy, "share right"))
  _figure(folder, "k", _k_of_rounds(run))
  _figure(folder, "contributions", _contributions(run.contributed))
  for name in run.metrics:
    draw_metric = _against_time(run, [name], groups.title_of(name))
    _figure(folder, f"metric_{name}", draw_metric)
  # Runs of version 0.1 have no spread, and without test samples it is unknown.
  if _has(run, SPREAD[0]):
    figure, both = plt.subplots(
        2, 1, sharex=True, figsize=(6, 5), height_ratios=(5, 2),
        layout="constrained",
    )
    _fairness(run, *both)
    _save(folder, "fairness", figure)


def _figure(folder, name, draw):
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  axes.grid(alpha=0.3)
  draw(axes)
  _save(folder, name, figure)


def _save(folder, name, figure):
  with files.written_whole(folder / f"{name}.png") as path:
    save(figure, path)


def _fairness(run, accuracy, jain):
  """The clients' accuracies on one pair of axes, their equality on another."""
  of = {name: run.series(name)[1] for name in SPREAD}
  mean, _, worst, best, index = of.values()
  times, _ = run.series(SPREAD[0])
  (line,) = accuracy.plot(times, mean, marker=".", label="mean over clients")
  accuracy.fill_between(
      times, worst, best, color=line.get_color(), alpha=0.2,
      label="from the worst 10% to the best 10%",
  )
  accuracy.set(ylabel="clients' test accuracy", ylim=(-0.02, 1.02))
  accuracy.legend()
  jain.plot(times, index, marker=".", color="C1")
  jain.set(xlabel=groups.TIME, ylabel="Jain's index", ylim=(-0.05, 1.05))
  for axes in (accuracy, jain):
    axes.grid(alpha=0.3)


def _against_time(run, keys, ylabel):
  def draw(axes):
    for key in keys:
      axes.plot(*run.series(key), marker=".", label=key.replace("_", " "))
    axes.set(xlabel=groups.TIME, ylabel=ylabel)
    axes.legend()

  return draw


def _k_of_rounds(run):
  def draw(axes):
    ks, probes = run.series("k", "round"), run.series("k_probe", "round")
    axes.plot(*ks, label="$k_m$")
    if np.any(ks[1] != probes[1]):
      axes.plot(*probes, lw=0.7, alpha=0.7, label="probe $k'_m$")
    axes.set(xlabel="round m", ylabel="elements per message", yscale="log")
    axes.legend()

  return draw


def _contributions(counts):
  def draw(axes):
    share = np.arange(1, len(counts) + 1) / len(counts)
    axes.step(np.sort(counts), share, where="post")
    axes.set(
        xlabel="elements contributed by a client, whole run",
        ylabel="share of clients (CDF)",
        xlim=(0, 1.05 * max(counts.max(), 1)),
        ylim=(0, 1.02),
    )

  return draw


def compare(
    runs: list[Run],
    fields: list[str],
    path: Path,
    kind: str = "png",
    lead_of: str | None = None,
) -> str:
  """Draws groups of runs with their spread over seeds.

  The panels are loss, accuracy, that of the worst 10% of clients if the runs
  have it, k if it moves, and the metrics of tasks and users.

  Args:
    runs: finished.
    fields: settings to group by.
    path: of the figure.
    kind: of `ENDINGS`, without its dot.
    lead_of: the label of a group. The table then says by how much its accuracy
      was ahead of each other group's, at the time when it was most.

  Returns:
    A Markdown table of the groups.

  Raises:
    ConfigError: a field is no setting, or no group has the label.
  """
  by_label = groups.grouped(runs, fields)
  if lead_of is not None:
    allowed = f"of {'; '.join(by_label)}"
    require(lead_of in by_label, "lead_of", lead_of, allowed)
  own = groups.metrics(runs)
  _, _, worst, *_ = SPREAD
  of_worst = [worst] if any(_has(run, worst) for run in runs) else []
  accuracy = any(_has(run, "test_accuracy") for run in runs)
  shown = {
      "train_loss": "training loss",
      **({"test_accuracy": "test accuracy"} if accuracy else {}),
      **dict.fromkeys(of_worst, _OF_WORST),
      **({"k": "k"} if any(map(_k_moves, runs)) else {}),
      **{name: groups.title_of(name) for name in own},
  }
  figure, every = plt.subplots(
      1, len(shown), figsize=(2 + 5 * len(shown), 4.2), layout="constrained"
  )
  columns = [
      "train_loss", "test_loss", "test_accuracy", *of_worst, *own, "round",
      "time",
  ]
  lines = []
  for label, group in by_label.items():
    for axes, key in zip(every, shown, strict=True):
      draw = groups.draw_smooth if key == "k" else groups.draw_spread
      draw(axes, group, key, label)
    ends = [groups.final(group, key) for key in columns]
    lines.append([label, str(len(group)), *ends])
    if lead_of is not None:
      lines[-1].append(_lead(by_label[lead_of], group))
  for axes, (key, ylabel) in zip(every, shown.items(), strict=True):
    axes.set(xlabel=groups.TIME, ylabel=ylabel)
    axes.grid(alpha=0.3)
    if key == "k":
      axes.set_yscale("log")
  figure.legend(
      *every[0].get_legend_handles_labels(),
      loc="outside right center",
      fontsize=9,
  )
  save(figure, path, kind)
  header = [
      "group", "runs", "training loss", "test loss", "test accuracy",
      *[_OF_WORST] * len(of_worst), *map(groups.title_of, own), "rounds",
      "time",
  ]
  if lead_of is not None:
    header.append(f"largest lead of {lead_of} in test accuracy")
  return groups.table(header, lines)


def _has(run, key):
  """Whether the column has a number anywhere."""
  return len(run.series(key)[0]) > 0


def _k_moves(run):
  """Whether k is not the same in all rounds."""
  return np.ptp(run.series("k")[1]) > 0


def _lead(leader, group):
  """The largest lead over a group, and when it was; a dash over itself."""
  found = None if group is leader else groups.largest_lead(leader, group)
  if found is None:
    return groups.NONE
  lead, time = found
  return f"{lead:+.3f} at time {time:.0f}"
