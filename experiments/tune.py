"""Searches for good settings with Optuna; each trial is the folder of a run.

    python -m experiments.tune --controller=fixed --trials=20 --at_time=500 \\
        --search=learning_rate=log:1e-3..1 --search=k=log:0.1%..10%

A trial stops where its objective is read, or earlier if it is worse than most
others (see --pruner). The same command goes on with the study in --workdir
after a stop. Several processes may run the same command at once; they share
the trials. Ctrl-C and SIGTERM stop the search.
"""

import contextlib
import dataclasses
import json
import shlex
import sys
import threading
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from agsfl import errors, files, simulation
from agsfl.config import Config
from agsfl.data.federated import fingerprint, load
from agsfl.errors import ConfigError, StoppedError, require
from agsfl.parts import Parts
from agsfl.records import strict_json, tables
from agsfl.records.fairness import SPREAD
from agsfl.records.folder import asked_of, refuse_other
from agsfl.records.moment import best_is, point_in_words
from agsfl.tasks import TASKS
from experiments.lib import (
    columns,
    groups,
    launchers,
    plugins,
    points,
    runner,
    scripts,
    search,
    stopping,
    trials,
)
from experiments.lib import flags as run_flags
from experiments.lib.followed import Study, end_of, run_trial
from experiments.lib.trials import Trials

flags.adopt_module_key_flags(launchers)
flags.adopt_module_key_flags(runner)
for _name in points.FLAGS:
  flags.declare_key_flag(_name)
_SEARCH = flags.DEFINE_multi_string(
    "search",
    [],
    "A setting and the values to try: learning_rate=log:1e-3..1 on a log "
    "scale, k=1%..100% or batch_size=8..64 on a linear one, or "
    "method=fab_top_k,send_all one of these. Whole numbers stay whole.",
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
    "same point, or those that Hyperband leaves out.",
)
_TUNE_SEED = flags.DEFINE_integer(
    "tune_seed",
    0,
    "Seed of the search. One process tries the same settings again.",
    lower_bound=0,
)

_SHOWN = 10  # trials of the table
_POLL_SECONDS = 1.0


def _settings_of(study, trial):
  """By name, the settings that an ended trial has tried."""
  return {one.name: one.value_of(trial) for one in study.space}


def _in_words(value):
  """The value of a setting; of a number that is not whole, four digits."""
  if isinstance(value, float) and not value.is_integer():
    return f"{value:.4g}"
  return groups.value_in_words(value)


def _bar(done):
  hidden = runner.QUIET.value or not sys.stderr.isatty()
  return tqdm(total=_TRIALS.value, initial=done, unit="trial", disable=hidden)


def _ended(all_trials: Trials) -> list:
  return [trial for trial in all_trials.all() if trial.state.is_finished()]


def work(study: Study, all_trials: Trials, signals: stopping.Signals):
  """Runs trials in this process until there are enough.

  Args:
    study: what is searched for.
    all_trials: of the study.
    signals: already entered.

  Raises:
    ConfigError: see `run_trial`.
    StoppedError: a signal came.
  """
  with _bar(len(_ended(all_trials))) as bar:
    while True:
      signals.check()
      trial = all_trials.next(_TRIALS.value)
      if trial is None:
        return
      outcome = run_trial(study, trial, signals, bar)
      all_trials.end(trial, outcome)
      bar.update()
      if not runner.QUIET.value:
        tried = ", ".join(
            f"{name}={_in_words(value)}"
            for name, value in trial.settings.items()
        )
        result = outcome.why or f"{study.objective} {outcome.value:.5g}"
        bar.clear()
        logging.info("trial %d: %s: %s", trial.number, tried, result)


@contextlib.contextmanager
def _watched(all_trials):
  """A bar of the trials that other processes run."""
  over = threading.Event()
  with _bar(len(_ended(all_trials))) as bar:

    def watch():
      while not over.wait(_POLL_SECONDS):
        bar.update(len(_ended(all_trials)) - bar.n)

    thread = threading.Thread(target=watch)
    if not bar.disable:
      thread.start()
    try:
      yield
    finally:
      over.set()
      if thread.is_alive():
        thread.join()


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
    StoppedError: a signal came.
  """
  given = run_flags.given(sys.modules[__name__], ("jobs", "workdir"))
  # -P: so that a folder `experiments` of the user does not replace this one.
  command = [
      sys.executable, "-P", "-m", "experiments.tune", *given,
      f"--workdir={folder}",
  ]
  jobs = min(launchers.JOBS.value, _TRIALS.value - len(_ended(all_trials)))
  commands = {
      folder / "jobs" / str(number): command for number in range(1, jobs + 1)
  }
  failed = {}
  with _watched(all_trials):
    for place, why in launchers.local(jobs, signals)(commands):
      if why is not None:
        failed[str(place.relative_to(folder))] = why
  return failed


def _ranked(all_trials):
  """The finished trials, the best first; then all others that ended."""
  sign = -1 if all_trials.maximize else 1
  is_other = lambda trial: trial.user_attrs["state"] != "finished"
  return sorted(
      _ended(all_trials),
      key=lambda x: (
          is_other(x), 0 if is_other(x) else sign * x.value, x.number
      ),
  )


def write_trials(study: Study, ranked: list, path: Path):
  """Writes trials.csv: a line for each trial, the best first.

  Args:
    study: what is searched for.
    ranked: Optuna's trials in this order.
    path: of the file.
  """
  names = [one.name for one in study.space]
  lines = [["trial", "state", study.objective, *names, "rounds", "why"]]
  for trial in ranked:
    has, tried = trial.user_attrs, _settings_of(study, trial)
    value = trial.value if has["state"] == "finished" else None
    lines.append([
        trials.folder_of(trial.number), has["state"], value,
        *tried.values(), has["rounds"], has["why"],
    ])
  with files.usable(path.parent), files.written_whole(path) as temporary:
    tables.write_csv(temporary, lines)


def _table(study, ranked):
  """The best trials in aligned text."""
  names = [one.name for one in study.space]
  lines = [["", "trial", study.objective, *names, "rounds", "state"]]
  for place, trial in enumerate(ranked[:_SHOWN]):
    has, tried = trial.user_attrs, _settings_of(study, trial)
    finished = has["state"] == "finished"
    lines.append([
        "best" if finished and not place else "",
        str(trial.number),
        f"{trial.value:.5g}" if finished else groups.NONE,
        *map(_in_words, tried.values()),
        str(has["rounds"]),
        has["state"],
    ])
  return columns.aligned(lines, "<>>" + ">" * len(names) + "><")


def command_of(config: Config) -> str:
  """The command of a run with all settings that are not defaults, and its seed.

  Args:
    config: the settings.
  """
  settings = [
      f"--{field.name}={value}".removesuffix(".0")
      for field in dataclasses.fields(Config)
      if (value := getattr(config, field.name)) != field.default
      or field.name == "seed"
  ]
  passed_on = run_flags.given(plugins, ())
  return shlex.join(
      ["python", "-m", "experiments.run", *settings, *passed_on]
  )


def finish(study: Study, all_trials: Trials):
  """Writes trials.csv; prints the best trials and the command of the best.

  Args:
    study: what is searched for.
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
  write_trials(study, ranked, study.folder / "trials.csv")
  best = ranked[0]
  if best.user_attrs["state"] != "finished":
    raise ConfigError(
        f"none of {len(ranked)} trials has finished; the first: "
        f"{best.user_attrs['why']}"
    )
  if runner.QUIET.value:
    return
  print(_table(study, ranked))
  if shares := all_trials.importances():
    words = [f"{name} {share:.0%}" for name, share in shares.items()]
    print(f"importance of the settings: {', '.join(words)}")
  config = study.config_of(_settings_of(study, best))
  print(f"the best again: {command_of(config)}")
  print(f"trials.csv, study.db and runs: {study.folder}")


def _study_of(base, folder):
  """The study of the flags, and what makes two studies different."""
  space = search.dimensions_of(_SEARCH.value)
  at, most = points.asked_as_number(), end_of(base)
  for flag, (against, _) in points.FLAGS.items():
    if at is not None and at.against == against == most.against:
      require(
          at.value <= most.value, flag, f"{at.value:g}",
          f"at most {most.value:g}, where the runs end",
      )
  data = load(*base.data_settings())
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
    asked[one.name] = str(one)
  return Study(base, space, objective, at, folder), {
      **asked,
      "data": fingerprint(data),
      "objective": objective,
      "at": point_in_words(at),
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
  study, identity = _study_of(run_flags.config_from_flags(), folder)
  _begin(folder, json.loads(json.dumps(identity)))
  direction = f"{best_is(study.objective)}imize"
  failed = {}
  with trials.opened(
      folder, direction, study.space, _TUNE_SEED.value, _PRUNER.value
  ) as all_trials:
    try:
      if launchers.JOBS.value == 1:
        work(study, all_trials, signals)
      elif len(_ended(all_trials)) < _TRIALS.value:
        failed = work_elsewhere(folder, all_trials, signals)
    except (StoppedError, KeyboardInterrupt) as error:
      why = "stopped" if isinstance(error, KeyboardInterrupt) else error
      done = len(_ended(all_trials))
      raise StoppedError(
          f"{why}; {done} of {_TRIALS.value} trials have ended"
      ) from error
    if failed and not _ended(all_trials):
      return failed
    finish(study, all_trials)
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
