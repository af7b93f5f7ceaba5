"""A trial of a search: its run, followed until it ends or is stopped."""

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tqdm import tqdm

from agsfl import simulation
from agsfl.config import Config
from agsfl.errors import ConfigError, DivergedError, StoppedError, refuse
from agsfl.records.moment import Moment, end, point_in_words, value_at
from agsfl.records.read import Run, read_run
from experiments.lib import dashboards, runner, stopping, trials
from experiments.lib import flags as run_flags
from experiments.lib.search import Dimension
from experiments.lib.trials import Outcome, Trial

if TYPE_CHECKING:
  import optuna


class Search(NamedTuple):
  """What is searched for.

  Attributes:
    base: the settings that are common.
    space: the settings that are tried.
    objective: name of a column.
    at: where the objective is read; None for the end of each run.
    folder: of all files, absolute.
  """

  base: Config
  space: list[Dimension]
  objective: str
  at: Moment | None
  folder: Path

  def config_of(self, settings: dict[str, Any]) -> Config:
    """The run of a trial.

    It ends where the objective is read. A run whose rules depend on its length
    stays as long as it is, and the trial stops at that point.

    Args:
      settings: by name, what the trial tries.

    Raises:
      ConfigError: these settings do not fit together.
    """
    config = dataclasses.replace(self.base, **settings)
    if self.at is None or self.at.against == "bytes":
      return config
    name, most = {
        "round": ("num_rounds", math.ceil(self.at.value)),
        "time": ("time_budget", self.at.value),
        "seconds": ("seconds_budget", self.at.value),
    }[self.at.against]
    most = min(most, getattr(config, name) or most)
    shorter = dataclasses.replace(config, **{name: most})
    return shorter if shorter.identity() == config.identity() else config

  def settings_of(self, trial: "optuna.Trial") -> dict[str, Any]:
    """By name, the settings that a trial of Optuna's tries."""
    return {one.name: one.value_of(trial) for one in self.space}


class Follower:
  """Follows the rows of a trial, reports its objective, says when to stop.

  Attributes:
    pruned: whether the trial is worse than others.
    passed: whether it has passed the point where its objective is read.
  """

  def __init__(self, search: Search, trial: Trial, config: Config, place: Path):
    """Begins before the first row.

    Args:
      search: what is searched for.
      trial: that runs.
      config: its settings.
      place: the folder of its run.
    """
    self.pruned = self.passed = False
    self._search, self._trial, self._place = search, trial, place
    self._data_settings = config.data_settings()
    self._goal = search.at or end_of(config)
    self._step = trial.reported
    self._run: Run | None = None

  def row(self, row: dict[str, Any]):
    """Notes a row.

    Raises:
      ConfigError: the data have changed since an earlier trial; or a file of
        the run is damaged.
    """
    # The file has this row already, and all before it of a run that goes on.
    if self._run is None:
      self._run = read_run(self._place)
      self._require_same_data(self._run.config["data"])
    else:
      self._run.rows.append(row)
    if "test_loss" not in row:
      return
    against, value = self._goal
    reached = end(self._run, against) or 0.0
    # Steps are equal for all trials, so the values between two evaluations are
    # taken from the line between them.
    while not self.pruned and self._step < trials.STEPS - 1:
      at = Moment(against, value * (self._step + 1) / trials.STEPS)
      if at.value > reached:
        break
      self._step += 1
      found = value_at(self._run, self._search.objective, at)
      self._trial.own.report(math.nan if found is None else found, self._step)
      self.pruned = self._trial.own.should_prune()
    self.passed = self._search.at is not None and reached >= value

  def _require_same_data(self, data):
    """Trials that name the same data need the same fingerprint of them."""
    for other in self._trial.own.study.get_trials(deepcopy=False):
      if other.user_attrs.get("data", data) == data:
        continue
      config = self._search.config_of(self._search.settings_of(other))
      if config.data_settings() == self._data_settings:
        refuse(
            f"--workdir={self._search.folder}",
            f"the data have changed since trial {other.number}; use another "
            "folder, or bring the old data back and remove "
            f"{self._place.name} there",
        )
    self._trial.own.set_user_attr("data", data)


def end_of(config: Config) -> Moment:
  """Where a run ends, on the axis that its settings limit."""
  if config.time_budget:
    return Moment("time", config.time_budget)
  if config.seconds_budget:
    return Moment("seconds", config.seconds_budget)
  return Moment("round", config.num_rounds)


def run_trial(
    search: Search, trial: Trial, signals: stopping.Signals, bar: tqdm
) -> Outcome:
  """Runs a trial, or goes on with it.

  Args:
    search: what is searched for.
    trial: that is to run.
    signals: already entered.
    bar: shows the trial's rounds.

  Raises:
    ConfigError: the error has nothing to do with the trial's settings.
    StoppedError: a signal came; the trial can go on.
  """
  place = search.folder / trials.folder_of(trial.number)
  if trial.crashes >= trials.MOST_CRASHES:
    why = (
        f"its process crashed {trial.crashes} times, perhaps for want of memory"
    )
    return Outcome("failed", None, _rounds_of(place), why)
  try:
    config = search.config_of(trial.settings)
    follower = Follower(search, trial, config, place)
    with dashboards.opened(config, place) as log:

      def on_row(row):
        follower.row(row)
        log(row)
        bar.set_postfix(
            trial=trial.number, round=row["round"], refresh=False
        )
        bar.update(0)

      run = simulation.simulate(
          config,
          workdir=place,
          checkpoint_every=runner.CHECKPOINT_EVERY.value,
          checkpoints_kept=runner.CHECKPOINTS_KEPT.value,
          keep_state=runner.KEEP_STATE.value,
          on_row=on_row,
          should_stop=lambda: (
              signals.seen or follower.pruned or follower.passed
          ),
      )
  except ConfigError as error:
    # Other errors, such as a full disk, would end the next trials too.
    name = str(error).removeprefix("--").partition("=")[0]
    if name not in run_flags.NAMES:
      raise
    return Outcome("failed", why=str(error))
  except DivergedError as error:
    return Outcome("diverged", None, _rounds_of(place), str(error))
  except StoppedError:
    run = read_run(place)
    if follower.pruned:
      rounds = len(run.rows)
      return Outcome("pruned", None, rounds, f"pruned at round {rounds}")
    if not follower.passed:
      raise
  return _outcome_of(search, run)


def _rounds_of(place):
  """The rounds that the run in a folder has done."""
  begun = (place / "config.json").exists()
  return len(read_run(place).rows) if begun else 0


def _outcome_of(search, run):
  """How a trial ended whose run came to its end, or to its budget."""
  rounds = len(run.rows)
  value = value_at(run, search.objective, search.at)
  if value is not None:
    return Outcome("finished", value, rounds)
  where = point_in_words(search.at)
  why = f"no {search.objective} {where}: it ended at round {rounds}"
  return Outcome("failed", None, rounds, why)
