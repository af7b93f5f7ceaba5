"""A trial of a search: its run, followed until it ends or is stopped."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from agsfl import simulation
from agsfl.config import Config
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.records.moment import Moment, end, point_in_words, value_at
from agsfl.records.read import Run, read_run
from experiments.lib import dashboards, runner, search, stopping, trials
from experiments.lib import flags as run_flags
from experiments.lib.trials import Outcome, Trial


class Study(NamedTuple):
  """What is searched for.

  Attributes:
    base: the settings that are common.
    space: the settings that are tried.
    objective: name of a column.
    at: where the objective is read; None for the end of each run.
    folder: of all files, absolute.
  """

  base: Config
  space: list[search.Dimension]
  objective: str
  at: Moment | None
  folder: Path

  def config_of(self, settings: dict[str, Any]) -> Config:
    """The run of a trial.

    It ends where the objective is read, if its rounds do not depend on how far
    a run is to go. Otherwise the trial stops there.

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


class Follower:
  """Follows the rows of a trial, reports its objective, says when to stop.

  Attributes:
    pruned: whether the trial is worse than others.
    passed: whether it has passed the point where its objective is read.
  """

  def __init__(self, study: Study, trial: Trial, config: Config, place: Path):
    """Begins before the first row.

    Args:
      study: what is searched for.
      trial: that runs.
      config: its settings.
      place: the folder of its run.
    """
    self.pruned = self.passed = False
    self._study, self._trial, self._place = study, trial, place
    self._goal = study.at or end_of(config)
    self._step = trial.reported
    self._run: Run | None = None

  def row(self, row: dict[str, Any]):
    """Notes a row."""
    # The file has this row already, and all before it of a run that goes on.
    if self._run is None:
      self._run = read_run(self._place)
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
      found = value_at(self._run, self._study.objective, at)
      self._trial.own.report(math.nan if found is None else found, self._step)
      self.pruned = self._trial.own.should_prune()
    self.passed = self._study.at is not None and reached >= value


def end_of(config: Config) -> Moment:
  """Where a run ends, on the axis that its settings limit."""
  if config.time_budget:
    return Moment("time", config.time_budget)
  if config.seconds_budget:
    return Moment("seconds", config.seconds_budget)
  return Moment("round", config.num_rounds)


def run_trial(
    study: Study, trial: Trial, signals: stopping.Signals, bar: tqdm
) -> Outcome:
  """Runs a trial, or goes on with it.

  Args:
    study: what is searched for.
    trial: that is to run.
    signals: already entered.
    bar: shows the trial's rounds.

  Raises:
    ConfigError: the error has nothing to do with the trial's settings.
    StoppedError: a signal came; the trial can go on.
  """
  place = study.folder / trials.folder_of(trial.number)
  try:
    config = study.config_of(trial.settings)
    follower = Follower(study, trial, config, place)
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
    rounds = len(read_run(place).rows)
    return Outcome("diverged", rounds=rounds, why=str(error))
  except StoppedError:
    run = read_run(place)
    rounds = len(run.rows)
    if follower.pruned:
      return Outcome("pruned", None, rounds, f"pruned at round {rounds}")
    if not follower.passed:
      raise
  return _outcome_of(study, run)


def _outcome_of(study, run):
  """How a trial ended whose run came to its end, or to its budget."""
  rounds = len(run.rows)
  value = value_at(run, study.objective, study.at)
  if value is not None:
    return Outcome("finished", value, rounds)
  where = point_in_words(study.at)
  why = f"no {study.objective} {where}: it ended at round {rounds}"
  return Outcome("failed", None, rounds, why)
