"""Draws runs from their records alone."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import logging

from agsfl import files
from agsfl.records import folder as records
from experiments.lib import groups as results

ENDINGS = (".png", ".pdf", ".svg")


def save(figure, path: Path, kind: str = "png"):
  """Writes a figure of Matplotlib and closes it.

  Args:
    figure: drawn.
    path: of any ending.
    kind: of `ENDINGS`, without its dot.
  """
  figure.savefig(path, dpi=120, format=kind)
  plt.close(figure)


def _figure(workdir, name, draw):
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  axes.grid(alpha=0.3)
  draw(axes)
  folder = workdir / "figures"
  folder.mkdir(exist_ok=True)
  with files.written_whole(folder / f"{name}.png") as path:
    save(figure, path)


def _against_time(rows, keys, ylabel):
  def draw(axes):
    for key in keys:
      axes.plot(
          [row["time"] for row in rows],
          [row[key] for row in rows],
          marker=".",
          label=key.replace("_", " "),
      )
    axes.set(xlabel="normalised time (rounds of computation)", ylabel=ylabel)
    axes.legend()

  return draw


def _k_of_rounds(rows):
  def draw(axes):
    rounds = [row["round"] for row in rows]
    axes.plot(rounds, [row["k"] for row in rows], label="$k_m$")
    if any(row["k_probe"] != row["k"] for row in rows):
      probes = [row["k_probe"] for row in rows]
      axes.plot(rounds, probes, lw=0.7, alpha=0.7, label="probe $k'_m$")
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
        xlim=(0, 1.05 * max(counts)),
        ylim=(0, 1.02),
    )

  return draw


def draw(workdir: Path):
  """Draws loss, accuracy, k and contributions into workdir/figures.

  Args:
    workdir: of a finished run; where it cannot be written, a warning is all.
  """
  try:
    _draw(workdir)
  except OSError as error:
    logging.warning("no figures can be drawn: %s", error)


def _draw(workdir):
  rows = records.read_rows(workdir)
  evaluated = [row for row in rows if "test_loss" in row]
  losses = ["train_loss", "test_loss"]
  _figure(workdir, "loss", _against_time(evaluated, losses, "cross entropy"))
  _figure(
      workdir,
      "accuracy",
      _against_time(evaluated, ["test_accuracy"], "share right"),
  )
  _figure(workdir, "k", _k_of_rounds(rows))
  counts = records.read_clients(workdir)["contributed"]
  _figure(workdir, "contributions", _contributions(counts))


def compare(
    runs: list[results.Run], fields: list[str], path: Path, kind: str = "png"
) -> str:
  """Draws loss, accuracy and k of groups of runs, with spread.

  Args:
    runs: finished.
    fields: settings to group by.
    path: of the figure.
    kind: of `ENDINGS`, without its dot.

  Returns:
    A Markdown table of the groups.
  """
  figure, (loss, accuracy, ks) = plt.subplots(
      1, 3, figsize=(17, 4.2), layout="constrained"
  )
  lines = []
  for label, group in results.grouped(runs, fields).items():
    results.draw_spread(loss, group, "train_loss", label)
    results.draw_spread(accuracy, group, "test_accuracy", label)
    results.draw_spread(ks, group, "k", label)
    lines.append([
        label,
        str(len(group)),
        *[
            results.final(group, key)
            for key in ("train_loss", "test_loss", "test_accuracy")
        ],
        results.final(group, "round"),
        results.final(group, "time"),
    ])
  for axes, ylabel in (
      (loss, "training loss"),
      (accuracy, "test accuracy"),
      (ks, "k"),
  ):
    axes.set(xlabel="normalised time (rounds of computation)", ylabel=ylabel)
    axes.grid(alpha=0.3)
  ks.set_yscale("log")
  figure.legend(
      *loss.get_legend_handles_labels(), loc="outside right center", fontsize=9
  )
  save(figure, path, kind)
  header = [
      "group", "runs", "training loss", "test loss", "test accuracy", "rounds",
      "time",
  ]
  return results.table(header, lines)
