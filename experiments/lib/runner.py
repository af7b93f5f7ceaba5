"""One run of a command: its flags, its progress, its figures."""

import sys
import time
from pathlib import Path
from typing import Any

from absl import flags, logging
from tqdm import tqdm

from agsfl import hosts, simulation
from agsfl.config import Config
from agsfl.files import expanded
from agsfl.records.columns import OF_TASKS
from agsfl.records.read import Run, read_run
from agsfl.records.titles import title_of
from experiments.lib import compilation, dashboards, plugins, stopping
from experiments.lib import flags as run_flags

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(compilation)
flags.adopt_module_key_flags(dashboards)
flags.adopt_module_key_flags(plugins)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for all files. Default: a folder in runs/ with the time or the "
    "command as its name.",
)
CHECKPOINT_EVERY = flags.DEFINE_integer(
    "checkpoint_every",
    simulation.CHECKPOINT_EVERY,
    "Rounds between checkpoints; 0 means none. The same command goes on from "
    "the newest one.",
    lower_bound=0,
)
CHECKPOINTS_KEPT = flags.DEFINE_integer(
    "checkpoints_kept",
    simulation.CHECKPOINTS_KEPT,
    "How many of the newest checkpoints stay until the run ends.",
    lower_bound=1,
)
KEEP_STATE = flags.DEFINE_boolean(
    "keep_state",
    True,
    "Keep the last state, so that the run can go on with more rounds. It takes "
    "at most about 4 (N + 1) D bytes.",
)
_LOG_EVERY = flags.DEFINE_integer(
    "log_every",
    None,
    "Rounds between lines in the log; 0 means none. Default: none on a "
    "terminal, elsewhere eval_every.",
    lower_bound=0,
)
QUIET = flags.DEFINE_boolean("quiet", False, "Print only errors.")


def workdir(default: str) -> Path:
  """The folder that --workdir names, or else the default."""
  return expanded(_WORKDIR.value or default)


def bar(**options: Any) -> tqdm:
  """A bar on a terminal, with options of tqdm; none elsewhere or if quiet."""
  return tqdm(disable=QUIET.value or not sys.stderr.isatty(), **options)


# At 80 columns the bar has what the text leaves.
_BAR = "{desc}{unit} {n_fmt}/{total_fmt} |{bar}| {remaining} left{postfix}"


class _Progress:
  """Progress with the time left: a bar on a terminal, lines in a log."""

  def __init__(self, config):
    every = _LOG_EVERY.value
    if every is None:
      every = 0 if sys.stderr.isatty() else config.eval_every
    self._every = 0 if QUIET.value else every
    # A run with a budget ends by its time, not by its rounds.
    of = {
        "time": config.time_budget,
        "seconds": config.seconds_budget,
        "round": config.num_rounds,
    }
    self._of, self._goal = next(
        (column, goal) for column, goal in of.items() if goal
    )
    self._first = None
    self._evaluated = []  # words about the newest evaluation
    self._bar = bar(
        total=self._goal,
        unit=self._of,
        bar_format=_BAR,
        dynamic_ncols=True,
    )

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._bar.close()

  def stage(self, name):
    """Says what begins, such as "compiling"."""
    self._bar.set_description(name)
    if self._every:
      logging.info(name)

  def row(self, row):
    """Shows a row; that of round 0 has no k, and compiling goes on after it."""
    done = min(row.get(self._of, 0), self._goal)
    if row["round"] and self._first is None:
      # The time left is of the rate without compilation, and without rounds of
      # an earlier start.
      self._first, self._start = done, time.perf_counter()
      self._bar.set_description(refresh=False)
      self._bar.reset()
      self._bar.initial = self._bar.last_print_n = done
    if "test_loss" in row:
      key = next(key for key in (*OF_TASKS, "test_accuracy") if key in row)
      self._evaluated = [f"{title_of(key)} {_text(row[key])}"]
    self._bar.n = round(done, 1)
    words = []
    if "k" in row:
      words = [f"k {row['k']:.0f}", f"loss {_text(row['minibatch_loss'])}"]
    self._bar.set_postfix_str(", ".join(words + self._evaluated), refresh=False)
    self._bar.update(0)
    if self._every and row["round"] % self._every == 0:
      self._bar.clear()
      self._log(row, done)

  def end(self):
    """Says if the run was at its end already."""
    if self._first is None and not QUIET.value:
      logging.info("this run was finished before; nothing was left to compute")

  def _log(self, row, done):
    words = [f"round {row['round']}", f"time {row['time']:.1f}"]
    if "k" in row:
      words.append(f"k {row['k']:.0f}")
    if "test_loss" in row:
      words += [f"train loss {_text(row['train_loss'])}", *self._evaluated]
    else:
      words.append(f"minibatch loss {_text(row['minibatch_loss'])}")
    if self._first is not None and done > self._first:
      rate = (done - self._first) / (time.perf_counter() - self._start)
      left = tqdm.format_interval((self._goal - done) / rate)
      words.append(f"{rate:.3g} {self._of}/s, {left} left")
    logging.info(", ".join(words))


def _text(value):
  """A number with about four digits, or "none"."""
  if value is None:
    return "none"
  return f"{value:.4f}" if abs(value) < 10 else f"{value:.2f}"


class _Figures:
  """Figures of a run while it goes on: after 20 s, 40 s, 80 s and so on."""

  FIRST = 20.0  # seconds after the start; a drawing takes one or two

  def __init__(self, workdir: Path):
    self._workdir = workdir
    self._start, self._wait = time.perf_counter(), self.FIRST

  def row(self, row):
    """Draws the run so far if it is time, and the row has an evaluation."""
    passed = time.perf_counter() - self._start
    if row["round"] and "test_loss" in row and passed >= self._wait:
      self._wait = 2 * passed
      try:
        draw(read_run(self._workdir))
      except Exception as error:  # no figure is worth the end of a training
        logging.warning("no figures can be drawn yet: %s", error)


def draw(run: Run):
  """See `drawing.draw`; the first words of a run do not wait for Matplotlib."""
  from experiments.lib import drawing

  drawing.draw(run)


def say_stopping():
  """Says that a signal came."""
  if not QUIET.value:
    print("stopping; a second signal stops at once", file=sys.stderr)


def run(config: Config, workdir: Path, signals: stopping.Signals) -> Run:
  """Runs `config` in `workdir`, or goes on there; draws figures on the way.

  Args:
    config: the settings.
    workdir: the folder.
    signals: already entered; after a signal the run stops at a round's end.

  Returns:
    The run.

  Raises:
    ConfigError, DivergedError, StoppedError: one line says why.
  """
  with (
      _Progress(config) as progress,
      dashboards.opened(config, workdir) as log,
  ):

    figures = _Figures(workdir)

    def on_row(row):
      progress.row(row)
      log(row)
      if hosts.is_first():
        figures.row(row)

    done = simulation.simulate(
        config,
        workdir=workdir,
        checkpoint_every=CHECKPOINT_EVERY.value,
        checkpoints_kept=CHECKPOINTS_KEPT.value,
        keep_state=KEEP_STATE.value,
        on_row=on_row,
        on_stage=progress.stage,
        should_stop=lambda: signals.seen,
    )
  if hosts.is_first():
    progress.end()
    draw(done)
  hosts.wait_for_all()
  return done
