"""Runs one federated training and leaves its records in a folder.

With no flags: FAB-top-k on 5,000 real digits, one class per client, with k
learned on line. The same command goes on where a run in --workdir was stopped.

Exit codes: 0 the run is finished; 1 a setting, a file or a gradient is not as
it must be, as one line says; 130 it was stopped by Ctrl-C or SIGTERM and can be
taken up.
"""

import contextlib
import datetime
import shlex
import signal
import sys
from pathlib import Path

import numpy as np
from absl import app, flags, logging
from tqdm import tqdm

from agsfl import config as settings
from agsfl import errors, runs
from experiments import dashboards, drawing, scripts
from experiments import flags as run_flags

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(dashboards)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all that is written. Default: runs/ and the time.",
)

_CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    runs.CHECKPOINT_EVERY,
    "Rounds between checkpoints, from which the same command goes on; 0 for "
    "none.",
    lower_bound=0,
)
_CHECKPOINTS_KEPT = flags.DEFINE_integer(
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
_QUIET = flags.DEFINE_boolean("quiet", False, "Print errors alone.")

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
STOPPED = 130


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


def _log(row):
  """One line of a round."""
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
  logging.info(", ".join(told))


class _Progress:
  """A bar with rate and time left on a terminal, lines in a log."""

  def __init__(self, config):
    every = _LOG_EVERY.value
    if every is None:
      every = 0 if sys.stderr.isatty() else config.eval_every
    self._every = 0 if _QUIET.value else every
    self._bar = tqdm(
        total=config.num_rounds,
        unit="round",
        disable=_QUIET.value or not sys.stderr.isatty(),
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def row(self, row):
    """Shows a row."""
    self._bar.n = row["round"]
    self._bar.set_postfix(
        k=f"{row['k']:.0f}", loss=f"{row['minibatch_loss']:.3f}", refresh=False
    )
    self._bar.update(0)
    if self._every and row["round"] % self._every == 0:
      self._bar.clear()
      _log(row)


class _StopSignals:
  """Ctrl-C and SIGTERM end a run after its round; a second time, at once."""

  def __init__(self):
    self.seen = False
    self._before = {}

  def __enter__(self):
    for name in (signal.SIGINT, signal.SIGTERM):
      self._before[name] = signal.signal(name, self._note)
    return self

  def __exit__(self, *exception):
    for name, handler in self._before.items():
      signal.signal(name, handler)

  def _note(self, number, frame):
    del frame
    self.seen = True
    signal.signal(number, self._before[number])


def run(config: settings.Config, workdir: Path) -> runs.Run:
  """Runs `config` in `workdir`, or goes on there; draws its figures.

  Args:
    config: the settings.
    workdir: the folder.

  Returns:
    The run.

  Raises:
    ConfigError, DivergedError, StoppedError: with one line that says why.
  """
  with (
      _StopSignals() as signals,
      _Progress(config) as progress,
      dashboards.opened(config, workdir) as tell,
  ):

    def on_row(row):
      progress.row(row)
      tell(row)

    done = runs.simulate(
        config,
        workdir=workdir,
        checkpoint_every=_CHECKPOINT_EVERY.value,
        checkpoints_kept=_CHECKPOINTS_KEPT.value,
        on_row=on_row,
        should_stop=lambda: signals.seen,
    )
  drawing.draw(workdir)
  return done


@contextlib.contextmanager
def told_how_to_go_on():
  """Ends a stopped program with the command that takes it up."""
  try:
    yield
  except errors.StoppedError as error:
    again = shlex.join(["python", "-m", *_command()])
    print(f"{error}; to go on: {again}", file=sys.stderr)
    sys.exit(STOPPED)


def _command():
  """How this program was started, with its folder named."""
  main = sys.modules["__main__"].__spec__
  module = main.name if main else sys.argv[0]
  place = [] if WORKDIR.present else [f"--workdir={WORKDIR.value}"]
  return [module, *sys.argv[1:], *place]


def main(argv):
  scripts.start(argv)
  if WORKDIR.value is None:
    stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
    WORKDIR.value = f"runs/{stamp}"
  workdir = Path(WORKDIR.value)
  with scripts.one_line_errors(), told_how_to_go_on():
    done = run(run_flags.config_from_flags(), workdir)
  if not _QUIET.value:
    print(_table([row for row in done.rows if "test_loss" in row]))
    print(f"records and figures: {workdir}")


if __name__ == "__main__":
  app.run(main)
