"""Searches for good settings with Optuna; each trial is the folder of a run.

    python -m experiments.tune --controller=fixed --trials=20 --at_time=500 \\
        --search=learning_rate=log:1e-3..1 --search=k=log:0.1%..10%

A trial stops where its objective is read, or earlier if it is worse than most
others (see --pruner). The same command goes on with the study in --workdir
after a stop. Several processes may run the same command at once; they share
the trials. Ctrl-C and SIGTERM stop the search.
"""

import dataclasses
import shlex
import sys
from pathlib import Path

from absl import flags, logging

from agsfl import errors, files, simulation
from agsfl.data.federated import fingerprint, load
from agsfl.data.partitions import Partition
from agsfl.data.sources import SourceOptions
from agsfl.errors import ConfigError, StoppedError, require
from agsfl.parts import Parts
from agsfl.records import strict_json, tables
from agsfl.records.fairness import SPREAD
from agsfl.records.folder import asked_of, refuse_other
from agsfl.records.moment import best_is, point_in_words
from agsfl.settings import require_utf8
from agsfl.tasks import TASKS
from agsfl.words import whole
from experiments.lib import (
    columns,
    groups,
    launchers,
    plugins,
    points,
    runner,
    scripts,
    stopping,
    trials,
)
from experiments.lib import flags as run_flags
from experiments.lib.followed import Search, end_of, run_trial
from experiments.lib.search import Choices, dimensions_of
from experiments.lib.trials import Trials

flags.adopt_module_key_flags(launchers)
flags.adopt_module_key_flags(runner)
for _name in points.FLAGS:
  flags.declare_key_flag(_name)
_SEARCH = flags.DEFINE_multi_string(
    "search",
    [],
    "A setting and the values to try: a range such as k=1%..100% or "
    "batch_size=8..64, a range on a log scale such as "
    "learning_rate=log:1e-3..1, or a list such as method=fab_top_k,send_all. "
    "Whole numbers stay whole. With several of these flags the best "
    "combination is searched for.",
)
_TRIALS = flags.DEFINE_integer(
    "trials",
    20,
    "How many trials the study has at the end, with those of earlier starts. "
    "Those that are pruned or fail count too.",
    lower_bound=1,
)
_OBJECTIVE = flags.DEFINE_string(
    "objective",
    None,
    "The column that is to be best. Accuracies and Jain's index are best when "
    "they are large, all others when they are small. Default: test_accuracy, "
    "or test_loss where there is none.",
)
_PRUNER = flags.DEFINE_enum(
    "pruner",
    "median",
    list(trials.PRUNERS),
    "Which trials stop early: those worse than the median of the others at the "
    "same point, or those that the Hyperband algorithm stops.",
)
_TUNE_SEED = flags.DEFINE_integer(
    "tune_seed",
    0,
    "Seed of the search. One process tries the same settings again.",
    lower_bound=0,
)

_SHOWN = 10  # trials of the table
# Settings that decide which data a run has.
_OF_DATA = {"dataset"} | {
    field.name
    for part in (Partition, SourceOptions)
    for field in dataclasses.fields(part)
}


def _short(value):
  """The value of a setting; of a number that is not whole, four digits."""
  if isinstance(value, float) and not value.is_integer():
    return f"{value:.4g}"
  return groups.value_in_words(value)


def _bar(all_trials):
  done = len(all_trials.ended())
  return runner.bar(total=_TRIALS.value, initial=done, unit="trial")


def work(search: Search, all_trials: Trials, signals: stopping.Signals):
  """Runs trials in this process until there are enough.

  Args:
    search: what is searched for.
    all_trials: of the study.
    signals: already entered.

  Raises:
    ConfigError: see `run_trial`.
    StoppedError: a signal came.
  """
  with _bar(all_trials) as bar:
    while True:
      signals.check()
      trial = all_trials.next(_TRIALS.value)
      if trial is None:
        return
      try:
        outcome = run_trial(search, trial, signals, bar)
      except (ConfigError, StoppedError, KeyboardInterrupt):
        all_trials.stop(trial)
        raise
      all_trials.end(trial, outcome)
      bar.update()
      if not runner.QUIET.value:
        tried = ", ".join(
            f"{name}={_short(value)}"
            for name, value in trial.settings.items()
        )
        result = outcome.why or f"{search.objective} {outcome.value:.5g}"
        bar.clear()
        logging.info("trial %d: %s: %s", trial.number, tried, result)


def work_elsewhere(
    folder: Path, all_trials: Trials, signals: stopping.Signals
) -> dict[str, str]:
  """Runs trials in several processes until there are enough.

  Args:
    folder: of the study.
    all_trials: of the study.
    signals: already entered.

  Returns:
    By its folder in the study's, the error of each process that failed.

  Raises:
    ConfigError: study.db cannot be read.
    StoppedError: a signal came.
  """
  given = run_flags.given(sys.modules[__name__], ("jobs", "workdir"))
  # -P: so that a folder `experiments` of the user does not replace this one.
  command = [
      sys.executable, "-P", "-m", "experiments.tune", *given,
      f"--workdir={folder}",
  ]
  jobs = min(launchers.JOBS.value, _TRIALS.value - len(all_trials.ended()))
  commands = {
      folder / "jobs" / str(number): command for number in range(1, jobs + 1)
  }
  failed = {}
  with _bar(all_trials) as bar:

    def look():
      if not bar.disable:
        bar.update(len(all_trials.ended()) - bar.n)

    for place, why in launchers.local(jobs, signals, look)(commands):
      if why is not None:
        failed[str(place.relative_to(folder))] = why
  return failed


def _ranked(all_trials):
  """The finished trials, the best first; then all others that ended."""
  sign = -1 if all_trials.maximize else 1
  is_other = lambda trial: trial.user_attrs["state"] != "finished"
  return sorted(
      all_trials.ended(),
      key=lambda x: (
          is_other(x), 0 if is_other(x) else sign * x.value, x.number
      ),
  )


def write_trials(search: Search, ranked: list, path: Path):
  """Writes trials.csv: a line for each trial, the best first.

  Args:
    search: what is searched for.
    ranked: Optuna's trials in this order.
    path: of the file.
  """
  names = [one.name for one in search.space]
  lines = [["trial", "state", search.objective, *names, "rounds", "why"]]
  for trial in ranked:
    has, tried = trial.user_attrs, search.settings_of(trial)
    value = trial.value if has["state"] == "finished" else None
    lines.append([
        trials.folder_of(trial.number), has["state"], value,
        *tried.values(), has["rounds"], has["why"],
    ])
  with files.usable(path.parent), files.written_whole(path) as temporary:
    tables.write_csv(temporary, lines)


def _table(search, ranked):
  """The best trials in aligned text; those with the best value are marked."""
  names = [one.name for one in search.space]
  point = "" if search.at is None else f" {point_in_words(search.at)}"
  objective = f"{search.objective}{point}"
  lines = [["", "trial", objective, *names, "rounds", "state"]]
  for trial in ranked[:_SHOWN]:
    has, tried = trial.user_attrs, search.settings_of(trial)
    finished = has["state"] == "finished"
    lines.append([
        "best" if finished and trial.value == ranked[0].value else "",
        str(trial.number),
        f"{trial.value:.5g}" if finished else groups.NONE,
        *map(_short, tried.values()),
        str(has["rounds"]),
        has["state"],
    ])
  return columns.aligned(lines, "<>>" + ">" * len(names) + "><")


def finish(search: Search, all_trials: Trials):
  """Writes trials.csv; prints the best trials and the command of the best.

  Args:
    search: what is searched for.
    all_trials: of the study.

  Raises:
    ConfigError: no trial has finished; or the file cannot be written.
  """
  ranked = _ranked(all_trials)
  elsewhere = len(all_trials.all()) - len(ranked)
  if elsewhere and not runner.QUIET.value:
    print(f"trials that other processes still run: {elsewhere}")
  if not ranked:
    return
  write_trials(search, ranked, search.folder / "trials.csv")
  best = ranked[0]
  if best.user_attrs["state"] != "finished":
    raise ConfigError(
        f"none of {len(ranked)} trials has finished; the first: "
        f"{best.user_attrs['why']}"
    )
  if runner.QUIET.value:
    return
  print(_table(search, ranked))
  if shares := all_trials.importances():
    words = [f"{name} {share:.0%}" for name, share in shares.items()]
    print(f"importance of the settings: {', '.join(words)}")
  config = search.config_of(search.settings_of(best))
  again = [*run_flags.words_of(config), *run_flags.given(plugins, ())]
  print(f"the best again: python -m experiments.run {shlex.join(again)}")
  print(f"trials.csv, study.db and runs: {search.folder}")


def _at(base, space):
  """Where the objective is read; trials can come that far."""
  if (at := points.asked_as_number()) is None:
    return None
  flag = next(x for x in points.FLAGS if points.FLAGS[x][0] == at.against)
  has_clock = base.clock or "clock" in {one.name for one in space}
  most = end_of(base)
  for fits, allowed in (
      (at.value > 0, "above 0"),
      (at.against != "seconds" or has_clock, "unset without --clock"),
      (
          at.against != most.against or at.value <= most.value,
          f"at most {most.value:g}, where the runs end",
      ),
  ):
    require(fits, flag, at.value, allowed)
  return at


def _search_of(base, folder):
  """The search of the flags, and what makes two studies different."""
  space = dimensions_of(_SEARCH.value)
  at = _at(base, space)
  # Of data that are searched the first ones; each trial compares its own with
  # those of the trials before it.
  firsts = {
      one.name: one.first
      for one in space
      if isinstance(one, Choices) and one.name in _OF_DATA
  }
  data = load(*dataclasses.replace(base, **firsts).data_settings())
  task = TASKS[data.task]
  accuracies = ("test_accuracy", *SPREAD) if task.share_right else ()
  allowed = (*accuracies, "test_loss", "train_loss", *task.derived)
  objective = _OBJECTIVE.value or allowed[0]
  require(
      objective in allowed, "objective", objective,
      f"one of {', '.join(allowed)}",
  )
  asked = asked_of(
      simulation.identity_of(base, Parts()),
      simulation.extent_of(base),
      base.eval_every,
  )
  for one in space:
    asked[one.name] = one.identity
  return Search(base, space, objective, at, folder), {
      **asked,
      "data": fingerprint(data),
      "objective": objective,
      "at": at and [at.against, whole(at.value)],
      "pruner": _PRUNER.value,
      "tune_seed": _TUNE_SEED.value,
  }


def _begin(folder, identity):
  """Makes the folder and its tune.json; refuses that of another study."""
  path = folder / "tune.json"
  with files.usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    if not path.exists():
      with files.written_whole(path) as temporary:
        text = strict_json.written(identity, 2)
        temporary.write_text(text, encoding="utf-8")
  with errors.refused(str(path), "is damaged", (OSError, ValueError)):
    on_disk = strict_json.parsed(path.read_bytes())
  refuse_other(on_disk, identity, f"--workdir={folder}")


def tune(folder: Path, signals: stopping.Signals) -> dict[str, str]:
  """Goes on until the study has enough trials, then tables them.

  Args:
    folder: of the study, absolute.
    signals: already entered.

  Returns:
    By its folder, the error of each process that failed.

  Raises:
    ConfigError: a flag or the folder cannot be used, or no trial has finished.
    StoppedError: a signal came; the text says how many trials have ended.
  """
  trials.load_optuna()
  require_utf8("workdir", str(folder))
  search, identity = _search_of(run_flags.config_from_flags(), folder)
  _begin(folder, identity)
  direction = f"{best_is(search.objective)}imize"
  failed = {}
  with trials.opened(
      folder, direction, search.space, _TUNE_SEED.value, _PRUNER.value
  ) as all_trials:
    try:
      if launchers.JOBS.value == 1:
        work(search, all_trials, signals)
      elif len(all_trials.ended()) < _TRIALS.value:
        failed = work_elsewhere(folder, all_trials, signals)
    except (StoppedError, KeyboardInterrupt) as error:
      why = "stopped" if isinstance(error, KeyboardInterrupt) else error
      done = len(all_trials.ended())
      raise StoppedError(
          f"{why}; {done} of {_TRIALS.value} trials have ended"
      ) from error
    if failed and not all_trials.ended():
      return failed
    finish(search, all_trials)
  return failed


def main(argv):
  stopping.end_with_parent()
  scripts.start(argv)
  folder = runner.workdir("runs/tune").absolute()
  with (
      scripts.one_line_errors(),
      stopping.continue_hint(folder),
      # Before data are read and programs compiled, which may take minutes.
      stopping.Signals(runner.say_stopping) as signals,
  ):
    plugins.load()
    failed = tune(folder, signals)
  if failed:
    scripts.fail([f"failed: {name}: {why}" for name, why in failed.items()])


if __name__ == "__main__":
  scripts.run(main)
