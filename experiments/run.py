"""Runs one federated training and leaves its records in a folder.

With no flags: FAB-top-k on 5,000 real digits, one class per client, with k
learned on line.
"""

import contextlib
import dataclasses
import datetime
import logging
import os
import resource
import sys
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from tqdm import tqdm

from agsfl import config as settings
from agsfl import data, errors, records, simulation
from experiments import flags as run_flags
from experiments import plot

flags.adopt_module_key_flags(run_flags)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all that is written. Default: runs/ and the time.",
)

_COLUMNS = (
    ("round", "round", "d"),
    ("time", "time", ".1f"),
    ("k", "k", ".0f"),
    ("k_up", "sent up", "d"),
    ("k_down", "sent down", "d"),
    ("train_loss", "train loss", ".4f"),
    ("test_loss", "test loss", ".4f"),
    ("test_accuracy", "test accuracy", ".4f"),
)
_TABLE_ROWS = 10


def _table(rows):
  """A few evaluation rows as aligned text; the last is among them."""
  picked = np.unique(
      np.linspace(0, len(rows) - 1, min(_TABLE_ROWS, len(rows))).astype(int)
  )
  cells = [[title for _, title, _ in _COLUMNS]] + [
      [format(rows[i][key], style) for key, _, style in _COLUMNS]
      for i in picked
  ]
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  return "\n".join(
      "  ".join(
          cell.rjust(width) for cell, width in zip(line, widths, strict=True)
      )
      for line in cells
  )


def _summary(row, rounds_s, clients):
  """summary.json: the end of the run, and what it took."""
  contributed = clients["contributed"]
  tested = np.array(clients["test_accuracy"])[clients["test_samples"] > 0]
  least, tenth, median = np.percentile(tested, (0, 10, 50))
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
      **row,
      "first_round_seconds": rounds_s[0],
      "median_round_seconds": float(np.median(rounds_s)),
      "peak_memory_mb": peak_kib * 1024 / 1e6,
      "least_contributed": int(contributed.min()),
      "most_contributed": int(contributed.max()),
      "client_test_accuracy_min": float(least),
      "client_test_accuracy_p10": float(tenth),
      "client_test_accuracy_median": float(median),
  }


def run(config: settings.Config, workdir: Path) -> str:
  """Runs `config` into `workdir`.

  Args:
    config: the settings.
    workdir: must not hold a run.

  Returns:
    The table of the run.

  Raises:
    ConfigError, DivergedError: with one line that says why.
  """
  federated = data.load(config.dataset, config.as_partition())
  simulated = simulation.build(config, federated)
  clients = federated.clients
  dim = simulated.model.dim
  described = {
      **dataclasses.asdict(config),
      "controller": config.used_controller,
      "local_steps": config.used_local_steps(dim),
      "asked": dataclasses.asdict(config),
      "num_weights": dim,
      "num_clients_used": len(clients.counts),
      "num_train": int(clients.counts.sum()),
      "num_test": len(federated.test_rows),
      **records.environment(),
  }
  contributed = np.zeros(len(clients.counts), np.int64)
  evaluated, rounds_s = [], []
  with records.RunWriter(workdir, described) as writer:
    steps = simulation.run(config, simulated)
    for step in tqdm(steps, total=config.num_rounds, unit="round"):
      row = simulation.as_row(step)
      writer.row(row)
      contributed += step.info.contributed
      rounds_s.append(step.seconds)
      if step.evaluation is not None:
        evaluated.append(row)
        evaluation = step.evaluation
    owners = federated.test_clients
    by_client = {
        "client": federated.client_names,
        "samples": clients.counts,
        "test_samples": np.bincount(
            owners[owners >= 0], minlength=len(clients.counts)
        ),
        "test_loss": evaluation.client_test_loss,
        "test_accuracy": evaluation.client_test_accuracy,
        "contributed": contributed,
    }
    writer.finish(_summary(evaluated[-1], rounds_s, by_client), by_client)
  plot.draw(workdir)
  return _table(evaluated)


def start(argv: list[str]):
  """What every script does first: refuses stray words, sets up JAX."""
  if len(argv) > 1:
    sys.exit(f"error: unknown argument {argv[1]!r}; settings are --flags")
  # It names every backend that is not there.
  logging.getLogger("jax").setLevel(logging.WARNING)
  # One CPU device for each core, before JAX starts; other platforms ignore it.
  jax.config.update("jax_num_cpu_devices", os.cpu_count())


@contextlib.contextmanager
def one_line_errors():
  """Ends the program with one line where the user can help it."""
  try:
    yield
  except (errors.ConfigError, errors.DivergedError) as error:
    sys.exit(f"error: {error}")


def main(argv):
  start(argv)
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  workdir = Path(WORKDIR.value or f"runs/{stamp}")
  with one_line_errors():
    print(run(run_flags.config_from_flags(), workdir))
  print(f"records and figures: {workdir}")


if __name__ == "__main__":
  app.run(main)
