"""Runs one federated training and leaves its records in a folder.

Without flags: FAB-top-k on 5,000 real digits, one class per client; k is
learned while training goes on. The same command goes on where a run in
--workdir was stopped.

One run can use the devices of several processes: start the same command once
for each, by `srun` for instance, or with --coordinator_address,
--num_processes and --process_id. --workdir must be a folder that all of them
see.

The exit code, which a shell has in `$?`, says how the command ended:

    0    The run is finished.
    1    There was an error; one line explains it.
    130  Ctrl-C, SIGTERM or SIGHUP stopped the run. A line has the command with
         which it goes on.
    143  A second SIGTERM came, or SIGTERM came before the command had read its
         flags.
"""

import numpy as np
from absl import flags

from agsfl import hosts
from experiments.lib import (
    columns,
    out,
    plugins,
    processes,
    runner,
    scripts,
    stopping,
)
from experiments.lib import flags as run_flags

flags.adopt_module_key_flags(runner)
flags.adopt_module_key_flags(processes)

_COLUMNS = (
    ("round", "round", "d"),
    ("time", "time", ".1f"),
    ("seconds", "seconds", ".1f"),
    ("k", "k", ".0f"),
    ("k_up", "sent up", "d"),
    ("k_down", "sent down", "d"),
    ("train_loss", "train loss", ".4f"),
    ("test_loss", "test loss", ".4f"),
    ("test_accuracy", "test accuracy", ".4f"),
    ("test_perplexity", "test perplexity", ".2f"),
    ("test_rmse", "test RMSE", ".4f"),
)
_TABLE_ROWS = 10


def _cell(row, key, style):
  if key not in row:  # round 0 has no k
    return ""
  return "none" if row[key] is None else format(row[key], style)


def _table(rows):
  """A few evaluation rows as aligned text; the last is among them."""
  picked = np.unique(
      np.linspace(0, len(rows) - 1, min(_TABLE_ROWS, len(rows))).astype(int)
  )
  # Not every run has simulated seconds, and not every task an accuracy.
  shown = [
      column
      for column in _COLUMNS
      if any(row.get(column[0]) is not None for row in rows)
  ]
  cells = [[title for _, title, _ in shown]] + [
      [_cell(rows[i], key, style) for key, _, style in shown] for i in picked
  ]
  return columns.aligned(cells, ">" * len(shown))


def main(argv):
  stopping.end_with_parent()
  scripts.start(argv)
  with scripts.one_line_errors():
    processes.join()
    workdir = runner.workdir(f"runs/{hosts.from_first(out.new_name)}")
  with (
      scripts.one_line_errors(),
      stopping.continue_hint(workdir),
      # Before data are read and programs compiled, which may take minutes.
      stopping.Signals(runner.say_stopping) as signals,
  ):
    plugins.load()
    done = runner.run(run_flags.config_from_flags(), workdir, signals)
  if not runner.QUIET.value:
    print(_table(done.evaluated))
    print(f"records and figures: {workdir}")


if __name__ == "__main__":
  scripts.run(main)
