"""The trials of a study of Optuna, which several processes share."""

import contextlib
import fcntl
import functools
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agsfl.errors import ConfigError, refuse, refused
from experiments.lib.search import Dimension

if TYPE_CHECKING:
  import optuna

# A trial reports its objective at so many equal steps of its budget. So trials
# compare at equal points, wherever their evaluations are.
STEPS = 20
PRUNERS = ("median", "hyperband", "none")
# A trial whose process crashed so often would only end further processes.
MOST_CRASHES = 3
_WARM_UP = 4  # steps before the median prunes
_BUSY_SECONDS = 60  # how long a process waits while others write


class Outcome(NamedTuple):
  """How a trial ended.

  Attributes:
    state: "finished", "pruned", "diverged" or "failed".
    value: of the objective, if it has finished.
    rounds: that were done.
    why: one line of text, or empty.
  """

  state: str
  value: float | None = None
  rounds: int = 0
  why: str = ""


class Trial(NamedTuple):
  """A trial that runs now, perhaps after a stop.

  Attributes:
    number: from 0.
    own: Optuna's own object.
    settings: by name, the values that it tries.
    reported: steps that it reported before.
    crashes: how many of its processes have ended without a stop or an error of
      the user's.
  """

  number: int
  own: "optuna.Trial"
  settings: dict[str, Any]
  reported: int
  crashes: int


def folder_of(number: int) -> str:
  """The name of a trial's folder, such as trial-00012."""
  return f"trial-{number:05d}"


def load_optuna():
  """The package, which writes only warnings to the log.

  Raises:
    ConfigError: it is missing.
  """
  try:
    import optuna
  except ImportError as error:
    raise ConfigError("tune needs Optuna: pip install optuna") from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  # Its version 4 says so of an option that version 5 has by default.
  warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
  return optuna


class Trials:
  """All trials of the study in a folder.

  Whether a trial's process is alive can be seen from locks on bytes of the file
  study.lock: byte 0 is for changes of the study, byte n + 1 for trial n. The
  system frees them when a process ends, however it ends.

  Every method raises an error of SQLAlchemy or Optuna if study.db cannot be
  read or written. Within `opened` it becomes a ConfigError.
  """

  def __init__(
      self, file: int, study: "optuna.Study", space: list[Dimension], seed: int
  ):
    """Made by `opened`."""
    self._file = file
    self._study = study
    self._space = space
    self._seed = seed

  def next(self, most: int) -> Trial | None:
    """A trial to run: one whose process has ended, or else a new one.

    The sampler's random numbers depend on the seed and on the trial's number
    only. So one process tries the same settings wherever it was stopped.

    Args:
      most: how many trials the study may have.

    Returns:
      The trial; None if there are enough, although some may run elsewhere.
    """
    optuna = load_optuna()
    with _locked(self._file):
      begun = self.all()
      states = optuna.trial.TrialState
      for trial in begun:
        if trial.state == states.RUNNING and self._claimed(trial.number):
          # Optuna has no public way to go on with a trial, but for this one.
          self._study.sampler = self._sampler(trial.number)
          own = optuna.trial.Trial(self._study, trial._trial_id)
          steps = trial.intermediate_values
          return self._trial(own, max(steps, default=0))
      if len(begun) >= most:
        return None
      self._study.sampler = self._sampler(len(begun))
      own = self._study.ask()
      self._claimed(own.number)
      return self._trial(own, 0)

  def _trial(self, own, reported):
    settings = {one.name: one.value_of(own) for one in self._space}
    # Each start counts as a crash until `stop` or `end` says how it ended.
    crashes = own.user_attrs.get("crashes", 0)
    own.set_user_attr("crashes", crashes + 1)
    return Trial(own.number, own, settings, reported, crashes)

  def _sampler(self, number):
    seed = np.random.SeedSequence([self._seed, number]).generate_state(1)[0]
    # constant_liar: it counts trials that run elsewhere as bad ones, so that
    # processes do not try nearly the same settings at once.
    return load_optuna().samplers.TPESampler(seed=int(seed), constant_liar=True)

  def _claimed(self, number):
    """Whether this process has the trial now: no other one runs it."""
    try:
      fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number + 1)
    except OSError:
      return False
    return True

  def stop(self, trial: Trial):
    """Records that a trial was stopped and can go on."""
    trial.own.set_user_attr("crashes", trial.crashes)

  def end(self, trial: Trial, outcome: Outcome):
    """Records how a trial ended.

    A diverged one gets the worst value, so that the sampler looks elsewhere.
    """
    for name in ("state", "rounds", "why"):
      trial.own.set_user_attr(name, getattr(outcome, name))
    states = load_optuna().trial.TrialState
    value, state = outcome.value, states.COMPLETE
    if outcome.state == "diverged":
      value = float("-inf" if self.maximize else "inf")
    elif outcome.state != "finished":
      state = states.PRUNED if outcome.state == "pruned" else states.FAIL
    self._study.tell(trial.own, value, state)

  @property
  def maximize(self) -> bool:
    """Whether a larger objective is better."""
    return self._study.direction.name == "MAXIMIZE"

  def all(self) -> list["optuna.trial.FrozenTrial"]:
    """All trials that have begun, by number."""
    return self._study.get_trials(deepcopy=False)

  def ended(self) -> list["optuna.trial.FrozenTrial"]:
    """The trials that have ended, by number."""
    return [trial for trial in self.all() if trial.state.is_finished()]

  def importances(self) -> dict[str, float]:
    """Each setting's share of what makes trials good, the largest first.

    Empty if there are fewer than ten finished trials, or the best tenth is no
    better than the others.
    """
    finished = [
        x for x in self.all() if x.user_attrs.get("state") == "finished"
    ]
    if len(finished) < 10 or len(self._space) < 2:
      return {}
    importance = load_optuna().importance
    with warnings.catch_warnings():
      # Optuna warns if the best tenth has all trials; then the sum is 0.
      warnings.simplefilter("ignore")
      shares = importance.get_param_importances(self._study, normalize=False)
    total = sum(shares.values())
    return {name: x / total for name, x in shares.items()} if total else {}


@contextlib.contextmanager
def _locked(file):
  """The study, for this process alone."""
  fcntl.lockf(file, fcntl.LOCK_EX, 1, 0)
  try:
    yield
  finally:
    fcntl.lockf(file, fcntl.LOCK_UN, 1, 0)


def _pruner(name):
  pruners = load_optuna().pruners
  if name == "median":
    return pruners.MedianPruner(n_warmup_steps=_WARM_UP)
  if name == "hyperband":
    return pruners.HyperbandPruner(max_resource=STEPS)
  return pruners.NopPruner()


@contextlib.contextmanager
def _database_refused(folder):
  """Errors of study.db in one line, without the query that met them."""
  optuna = load_optuna()
  import sqlalchemy.exc

  try:
    yield
  except (
      sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError
  ) as error:
    # Optuna hides the database's error behind one of its own.
    inner = error.__cause__ if hasattr(error.__cause__, "orig") else error
    refuse(
        f"--workdir={folder}",
        f"study.db cannot be read or written ({getattr(inner, 'orig', inner)})",
    )


@contextlib.contextmanager
def opened(
    folder: Path,
    direction: str,
    space: list[Dimension],
    seed: int,
    pruner: str,
) -> Iterator[Trials]:
  """The study in a folder, a new one if there is none.

  Args:
    folder: where study.db and study.lock are, or will be.
    direction: "maximize" or "minimize".
    space: what trials try.
    seed: of the sampler.
    pruner: one of `PRUNERS`.

  Raises:
    ConfigError: Optuna is missing, or a file cannot be read or written.
  """
  optuna = load_optuna()
  # Not by a URL, in which some characters of a path mean something else.
  connect = functools.partial(
      sqlite3.connect,
      folder / "study.db",
      timeout=_BUSY_SECONDS,
      check_same_thread=False,
  )
  path = folder / "study.lock"
  with refused(str(path), "must be a file that can be written"):
    lock = path.open("ab")
  with lock, _database_refused(folder):
    with _locked(lock.fileno()):
      study = optuna.create_study(
          storage=optuna.storages.RDBStorage(
              "sqlite:///study.db", engine_kwargs={"creator": connect}
          ),
          pruner=_pruner(pruner),
          study_name="agsfl",
          direction=direction,
          load_if_exists=True,
      )
    yield Trials(lock.fileno(), study, space, seed)
