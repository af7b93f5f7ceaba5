"""Runs one federated training and leaves its records in a folder.

With no flags: FAB-top-k on 5,000 real digits, one class per client, with k
learned on line. The same command goes on where a run in --workdir was stopped.

Exit codes: 0 the run is finished; 1 a setting, a file or a gradient is not as
it must be, as one line says; 130 it was stopped by Ctrl-C, SIGTERM or SIGHUP,
and can be taken up; 143 SIGTERM came before the flags were read, or twice.
"""

import datetime
import sys
import time
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from agsfl import config as settings
from agsfl import runs
from experiments.lib import dashboards, drawing, scripts, stopping
from experiments.lib import flags as run_flags

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(dashboards)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all that is written. Default: runs/ and the time.",
)

CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    runs.CHECKPOINT_EVERY,
    "Rounds between checkpoints, from which the same command goes on; 0 for "
    "none.",
    lower_bound=0,
)
CHECKPOINTS_KEPT = flags.DEFINE_integer(
    "checkpoints_kept",
    runs.CHECKPOINTS_KEPT,
    "The newest so many checkpoints stay until the run ends.",
    lower_bound=1,
)
_LOG_EVERY = flags.DEFINE_integer(
    "log_every",
    None,
    "Rounds between lines in the log; 0 for none. Default: eval_every where "
    "standard error is no terminal.",
    lower_bound=0,
)
QUIET = flags.DEFINE_boolean("quiet", False, "Print errors alone.")

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


class _Progress:
  """A bar with rate and time left on a terminal, lines with them in a log."""

  def __init__(self, config):
    every = _LOG_EVERY.value
    if every is None:
      every = 0 if sys.stderr.isatty() else config.eval_every
    self._every = 0 if QUIET.value else every
    # What ends a run with a budget is its time, not its rounds.
    self._of = "time" if config.time_budget else "round"
    self._goal = config.time_budget or config.num_rounds
    self._first = None
    self._bar = tqdm(
        total=self._goal,
        unit=self._of,
        disable=QUIET.value or not sys.stderr.isatty(),
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def row(self, row):
    """Shows a row."""
    done = min(row[self._of], self._goal)
    if self._first is None:
      # Neither compilation nor rounds of an earlier start are of the rate.
      self._first, self._start = done, time.perf_counter()
      self._bar.reset()
      self._bar.initial = self._bar.last_print_n = done
    self._bar.n = done
    self._bar.set_postfix(
        k=f"{row['k']:.0f}", loss=f"{row['minibatch_loss']:.3f}", refresh=False
    )
    self._bar.update(0)
    if self._every and row["round"] % self._every == 0:
      self._bar.clear()
      self._log(row, done)

  def _log(self, row, done):
    told = [
        f"round {row['round']}", f"time {row['time']:.1f}", f"k {row['k']:.0f}"
    ]
    if "train_loss" in row:
      told += [
          f"train loss {row['train_loss']:.4f}",
          f"test accuracy {row['test_accuracy']:.4f}",
      ]
    else:
      told.append(f"minibatch loss {row['minibatch_loss']:.4f}")
    if done > self._first:
      rate = (done - self._first) / (time.perf_counter() - self._start)
      left = tqdm.format_interval((self._goal - done) / rate)
      told.append(f"{rate:.3g} {self._of}/s, {left} left")
    logging.info(", ".join(told))


def tell_stop():
  """Says that a signal was seen."""
  if not QUIET.value:
    print("stopping; once more to stop at once", file=sys.stderr)


def run(
    config: settings.Config, workdir: Path, signals: stopping.Signals
) -> runs.Run:
  """Runs `config` in `workdir`, or goes on there; draws its figures.

  Args:
    config: the settings.
    workdir: the folder.
    signals: entered; once it has seen one, the run stops after a round.

  Returns:
    The run.

  Raises:
    ConfigError, DivergedError, StoppedError: with one line that says why.
  """
  with (
      _Progress(config) as progress,
      dashboards.opened(config, workdir) as tell,
  ):

    def on_row(row):
      progress.row(row)
      tell(row)

    done = runs.simulate(
        config,
        workdir=workdir,
        checkpoint_every=CHECKPOINT_EVERY.value,
        checkpoints_kept=CHECKPOINTS_KEPT.value,
        on_row=on_row,
        should_stop=lambda: signals.seen,
    )
  drawing.draw(workdir)
  return done


def main(argv):
  stopping.end_with_parent()
  scripts.start(argv)
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  workdir = Path(WORKDIR.value or f"runs/{stamp}")
  with (
      scripts.one_line_errors(),
      stopping.told_how_to_go_on(workdir),
      # Before data are read and programs compiled, which may take minutes.
      stopping.Signals(tell_stop) as signals,
  ):
    done = run(run_flags.config_from_flags(), workdir, signals)
  if not QUIET.value:
    print(_table([row for row in done.rows if "test_loss" in row]))
    print(f"records and figures: {workdir}")


if __name__ == "__main__":
  app.run(main)
