"""Draws a run from its records alone.

Matplotlib is set up here, for files. Other modules import it from here:
`from experiments.lib.drawing import plt`.
"""

import itertools
import os
from pathlib import Path

import numpy as np
from absl import logging

from agsfl import files
from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run
from agsfl.records.titles import title_of
from experiments.lib import curves, groups

ENDINGS = (".png", ".pdf", ".svg")


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
  _figure(
      folder, "loss", "loss over all samples",
      _against_time(run, ["train_loss", "test_loss"]),
  )
  if groups.has(run, "test_accuracy"):
    draw_accuracy = _against_time(run, ["test_accuracy"])
    title = "test accuracy: share of samples that are right"
    _figure(folder, "accuracy", title, draw_accuracy)
  _figure(folder, "k", "elements per message, by round", _k_of_rounds(run))
  if run.finished:
    _figure(
        folder, "contributions", "elements of each client that the server used",
        _contributions(run.contributed),
    )
  for name in run.metrics:
    title = title_of(name)
    _figure(folder, f"metric_{name}", title, _against_time(run, [name]))
  # Runs of version 0.1 have no spread, and without test samples it is unknown.
  if groups.has(run, SPREAD[0]):
    figure, both = plt.subplots(
        2, 1, sharex=True, figsize=(6, 5), height_ratios=(5, 2),
        layout="constrained",
    )
    _fairness(run, *both)
    _save(folder, "fairness", figure)


def _figure(folder, name, title, draw):
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  axes.grid(alpha=0.3)
  draw(axes)
  axes.set_title(title)
  _legend_below(figure, axes)
  _save(folder, name, figure)


def _legend_below(figure, axes):
  """Names several lines outside of the axes, where it covers none of them."""
  handles, labels = axes.get_legend_handles_labels()
  if len(labels) > 1:
    figure.legend(handles, labels, loc="outside lower center", ncols=2)


def log_axis(axes):
  """Makes y logarithmic, with several ticks whatever range is drawn."""
  from matplotlib import ticker

  axes.set_yscale("log")
  low, high = axes.get_ylim()
  span = high / low
  if span < 2:
    locator = ticker.MaxNLocator(5)
  elif span < 1000:
    steps = range(1, 10) if span < 10 else (1, 2, 5)
    locator = ticker.LogLocator(subs=steps)
  else:
    locator = ticker.LogLocator()
  axes.yaxis.set_major_locator(locator)
  axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
  axes.yaxis.set_minor_formatter(ticker.NullFormatter())


def scale_y(axes, key: str):
  """Accuracies begin at 0; losses are logarithmic if they span decades.

  Args:
    axes: of Matplotlib, with all lines.
    key: name of the column that is drawn.
  """
  if "accuracy" in key:
    axes.set_ylim(bottom=0)
  elif "loss" in key:
    drawn = (line.get_ydata() for line in axes.lines)
    if curves.spans_decades(itertools.chain.from_iterable(drawn)):
      log_axis(axes)


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
  accuracy.set(title="test accuracy over the clients", ylim=(0, 1.02))
  accuracy.legend(
      loc="lower center", bbox_to_anchor=(0.5, 1.1), ncols=2, frameon=False
  )
  jain.plot(times, index, marker=".", color="C1")
  jain.set(
      title="Jain's index of these accuracies (1: all are equal)",
      xlabel=curves.TIME, ylim=(0, 1.05),
  )
  for axes in (accuracy, jain):
    axes.grid(alpha=0.3)


def _against_time(run, keys):
  def draw(axes):
    for key in keys:
      axes.plot(*run.series(key), marker=".", label=key.replace("_", " "))
    axes.set(xlabel=curves.TIME)
    axes.set_xlim(left=0)
    scale_y(axes, keys[0])

  return draw


def _k_of_rounds(run):
  def draw(axes):
    ks, probes = run.series("k", "round"), run.series("k_probe", "round")
    axes.plot(*ks, label="$k_m$")
    if np.any(ks[1] != probes[1]):
      axes.plot(*probes, lw=0.7, alpha=0.7, label="probe $k'_m$")
    axes.set(xlabel="round m", ylabel="elements")
    log_axis(axes)

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
