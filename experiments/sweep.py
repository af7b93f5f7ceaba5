"""Runs every combination of some settings, one folder each.

    python -m experiments.sweep --sweep=seed=0..4 --sweep=k=100,1% --jobs=2

The same command goes on: it reads finished runs and continues stopped ones. A
run that fails does not stop the others; it is named at the end. Ctrl-C and
SIGTERM stop the sweep and its runs, which can go on later. They do not stop
jobs of Slurm.
"""

import dataclasses
import itertools
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags, logging
from tqdm import tqdm

from agsfl import errors, files, frame, simulation, sweeps
from agsfl.config import Config
from agsfl.errors import ConfigError, refuse, require
from agsfl.records.read import Run, find_runs, read_run
from experiments.lib import (
    comparison,
    drawing,
    groups,
    launchers,
    plugins,
    runner,
    scripts,
    stopping,
    values,
)
from experiments.lib import flags as run_flags

flags.adopt_module_key_flags(runner)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "A setting and its values, such as k=100,1000 or seed=0..4. None leaves a "
    "setting unset. Put a value that has commas in single quotes. With several "
    "of these flags every combination is run.",
)
flags.adopt_module_key_flags(launchers)
_LANES = flags.DEFINE_integer(
    "lanes",
    1,
    "How many runs go side by side in one program; for GPUs. Such runs differ "
    "only in plain numbers, such as seed, k, learning_rate or comm_time.",
    lower_bound=1,
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "slurm"],
    "Where runs go. slurm needs pip install submitit, and a --workdir that all "
    "nodes see.",
)
_SLURM = flags.DEFINE_list(
    "slurm",
    ["timeout_min=60"],
    "Options of submitit, such as timeout_min=60,slurm_partition=gpu.",
)

_LONGEST = 255  # bytes of a folder's name, on all common file systems
_MOST = 10_000  # runs of a sweep; they take some seconds to prepare
# Flags that lanes cannot have, and why.
_NOT_WITH_LANES = {
    "launcher": "lanes run in the process of the sweep",
    "jobs": "lanes run in one process",
    "tensorboard": "lanes send nothing to dashboards",
    "wandb": "lanes send nothing to dashboards",
    "trackio": "lanes send nothing to dashboards",
    "checkpoints_kept": "each lane has one checkpoint",
    "log_every": "a bar shows the rounds of all lanes",
}


def values_of(text: str) -> tuple[str, list[str]]:
  """The setting and the values that a --sweep names.

  >>> values_of("dataset='npz:a,b.npz',digits")
  ('dataset', ['npz:a,b.npz', 'digits'])

  Raises:
    ConfigError: it is not of the form name=values.
  """
  name, rest = values.split("sweep", text)
  if re.fullmatch(r"-?\d{1,18}\.\.-?\d{1,18}", rest):
    first, last = map(int, rest.split(".."))
    if last < first:
      refuse(f"--sweep={text}", "must name the smaller end first")
    _require_few(f"--sweep={text}", last + 1 - first)
    rest = ",".join(map(str, range(first, last + 1)))
  example = f"{name}=1,2 or {name}=0..4"
  return name, values.listed("sweep", name, rest, example)


def _require_few(flag, count):
  if count > _MOST:
    refuse(flag, f"must be at most {_MOST:,} runs, but is {count:,}")


def configs_of(
    base: Config, sweeps: list[tuple[str, list[str]]]
) -> dict[str, Config]:
  """Every combination, by the name of its folder.

  Args:
    base: the settings that are common.
    sweeps: names of settings, and their values as text.

  Raises:
    ConfigError: a value is out of range; a setting is named twice; two
      combinations are the same settings, or have the same folder; the name of
      a folder is too long; or there are too many combinations.
  """
  names = [name for name, _ in sweeps]
  for name in names:
    require(names.count(name) == 1, "sweep", name, "named once")
  count = math.prod(len(listed) for _, listed in sweeps)
  _require_few(f"--sweep={','.join(names)}", count)
  configs: dict[str, Config] = {}
  labels: dict[Config, str] = {}
  for texts in itertools.product(*[listed for _, listed in sweeps]):
    chosen = dict(zip(names, texts, strict=True))
    parsed = {
        name: values.parsed("sweep", name, text)
        for name, text in chosen.items()
    }
    combination = ",".join(f"{name}={text}" for name, text in chosen.items())
    flag, label = f"--sweep={combination}", combination.replace("/", "_")
    if label in configs:
      refuse(
          flag,
          "must differ from the others in more than / and _, because it names "
          "a folder",
      )
    if len(label.encode()) > _LONGEST:
      refuse(
          flag, f"must have at most {_LONGEST} bytes, as it names a folder"
      )
    config = dataclasses.replace(base, **parsed)
    same = labels.setdefault(config, label)
    if same != label:
      refuse(flag, f"must not be the same settings as {same}")
    configs[label] = config
  return configs


def command(config: Config, workdir: Path) -> list[str]:
  """The command line of a run, with the other flags that were given."""
  passed_on = run_flags.given(runner, (*run_flags.NAMES, "workdir"))
  # -P: so that a folder `experiments` of the user does not replace this one.
  return [
      sys.executable, "-P", "-m", "experiments.run",
      *run_flags.words_of(config), *passed_on, f"--workdir={workdir}",
  ]


def _side_by_side(group, signals):
  """The outcomes of a group of lanes, by folder."""
  rounds = sum(config.num_rounds for config in group.values())
  lanes = f"{len(group)} lanes"
  begun = f"{lanes}, compiling"
  with runner.bar(total=rounds, unit="round", desc=begun) as bar:

    def on_row(place, row):
      del place
      if row["round"]:  # the row of round 0 comes before the round is compiled
        bar.set_description(lanes, refresh=False)
        bar.update()

    return sweeps.simulate_lanes(
        group,
        checkpoint_every=runner.CHECKPOINT_EVERY.value,
        keep_state=runner.KEEP_STATE.value,
        on_row=on_row,
        should_stop=lambda: signals.seen,
    )


def run_lanes(
    group: dict[Path, Config], signals: stopping.Signals
) -> dict[str, str]:
  """Runs a group of `sweeps.group_by_program` in this process.

  Args:
    group: configs by folder.
    signals: already entered.

  Returns:
    By folder name, the error of each run that failed.

  Raises:
    StoppedError: a signal came.
  """
  failed = {}
  try:
    outcomes = _side_by_side(group, signals)
  except ConfigError:
    # These runs cannot be one program, so they go one by one. They stay in
    # this process, which may have taken the GPU's memory already.
    outcomes = {}
    for place, config in group.items():
      try:
        runner.run(config, place, signals)
      except (ConfigError, errors.DivergedError) as error:
        outcomes[place] = error
  for place, outcome in outcomes.items():
    if isinstance(outcome, Exception):
      failed[place.name] = str(outcome)
    else:
      drawing.draw(outcome)
  return failed


def run_all(
    missing: dict[Path, Config],
    launch: Callable,
    bar: tqdm,
    signals: stopping.Signals,
) -> dict[str, str]:
  """Runs all of these, side by side where they can be lanes.

  Args:
    missing: configs by folder.
    launch: see `launchers`.
    bar: moves on with each run that ended.
    signals: already entered.

  Returns:
    By folder name, the error of each run that failed.

  Raises:
    StoppedError: a signal came.
  """
  lanes = [
      group
      for group in sweeps.group_by_program(missing, _LANES.value)
      if len(group) > 1
  ]
  in_lanes = {place for group in lanes for place in group}
  failed = {}
  # Processes first: after the lanes this one would hold a GPU's memory.
  commands = {
      place: command(config, place)
      for place, config in missing.items()
      if place not in in_lanes
  }
  for count, (place, why) in enumerate(launch(commands), bar.n + 1):
    if why is not None:
      failed[place.name] = why
    bar.update()
    if bar.disable and not runner.QUIET.value:
      how = "finished" if why is None else "failed"
      logging.info("run %d of %d %s: %s", count, bar.total, how, place.name)
  for group in lanes:
    signals.check()
    failed |= run_lanes({place: missing[place] for place in group}, signals)
    bar.update(len(group))
  return failed


def finished_below(folder: Path) -> tuple[list[Run], dict[str, str]]:
  """The finished runs below a folder; the errors of damaged ones, by name."""
  try:
    places = find_runs(folder)
  except ConfigError:  # every run failed before it began
    return [], {}
  runs, failed = [], {}
  for place in places:
    try:
      run = read_run(place)
    except ConfigError as error:
      failed[str(place.relative_to(folder))] = str(error)
    else:
      if run.finished:
        runs.append(run)
  return runs, failed


def write_results(runs: list[Run], names: list[str], folder: Path):
  """Writes results.csv: a line per run, with its settings and its results.

  It has no path outside of the folder, so it survives a move. Its columns are
  those of `agsfl.read_runs`, without the settings that are the same.

  Args:
    runs: finished, below the folder.
    names: settings that come first; others that differ follow.
    folder: of the sweep.
  """
  names = list(dict.fromkeys([*names, *frame.differing(runs), "seed"]))
  values = lambda run: [
      groups.in_order(frame.value_of(run.asked, name)) for name in names
  ]
  runs = sorted(runs, key=values)
  table = frame.by_run(runs, frame.names_of(runs, folder), names)
  with files.written_whole(folder / "results.csv") as path:
    frame.write(table, path)


def _write_all(runs, names, folder):
  """Writes the sweep's files; returns the table."""
  write_results(runs, names, folder)
  others = [name for name in frame.differing(runs) if name not in names]
  fields = [name for name in (*names, *others) if name != "seed"]
  with files.written_whole(folder / "figure.png") as path:
    text = comparison.compare(runs, fields, path)
  with files.written_whole(folder / "table.md") as path:
    path.write_text(text + "\n", encoding="utf-8")
  return text


def _missing(configs, signals):
  """The runs to start. Folders of other settings are refused before any run."""
  fingerprint_of, missing = simulation.data_fingerprints(), {}
  for place, config in configs.items():
    signals.check()
    try:
      if (place / "config.json").exists():
        read_run(place)
    except ConfigError:  # damaged; it is named at the end
      continue
    if not simulation.is_finished(config, place, fingerprint_of):
      missing[place] = config
  return missing


def sweep(
    base: Config, folder: Path, launch: Callable, signals: stopping.Signals
) -> dict[str, str]:
  """Runs what is not finished yet, then draws and tables all.

  Args:
    base: the settings that are common.
    folder: of the sweep, absolute.
    launch: see `launchers`.
    signals: already entered.

  Returns:
    By folder name, the error of each run that failed.

  Raises:
    ConfigError: a flag or the folder cannot be used.
    StoppedError: a signal came; the text says how many runs are finished.
  """
  swept = [values_of(text) for text in _SWEEP.value]
  configs = {
      folder / label: config
      for label, config in configs_of(base, swept).items()
  }
  with files.usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
  # Data that several runs share are read once.
  missing = _missing(configs, signals)
  done = len(configs) - len(missing)
  with runner.bar(total=len(configs), initial=done, unit="run") as bar:
    try:
      failed = run_all(missing, launch, bar, signals)
    except (errors.StoppedError, KeyboardInterrupt) as error:
      why = "stopped" if isinstance(error, KeyboardInterrupt) else error
      done = sum((place / "summary.json").exists() for place in configs)
      raise errors.StoppedError(
          f"{why}; {done} of {len(configs)} runs are finished"
      ) from error
  runs, damaged = finished_below(folder)
  if runs:
    names = [name for name, _ in swept]
    with files.usable(folder):
      text = _write_all(runs, names, folder)
    if not runner.QUIET.value:
      print(text)
      print(f"results.csv, table.md, figure.png and runs: {folder}")
  failed = damaged | failed
  in_turn = [place.name for place in configs]
  return {name: failed[name] for name in (*in_turn, *failed) if name in failed}


def _check_flags():
  """Refuses a missing --sweep, and flags that contradict --lanes."""
  require(_SWEEP.value, "sweep", "", "given, such as seed=0..4")
  if _LANES.value == 1:
    return
  for name, why in _NOT_WITH_LANES.items():
    flag = flags.FLAGS[name]
    require(
        flag.value == flag.default,
        name,
        flag.value,
        f"unset with --lanes={_LANES.value}: {why}",
    )


def main(argv):
  scripts.start(argv)
  folder = runner.workdir("runs/sweep").absolute()
  with (
      scripts.one_line_errors(),
      stopping.continue_hint(folder),
      # Preparing many runs takes seconds, and their data more.
      stopping.Signals(runner.say_stopping) as signals,
  ):
    _check_flags()
    plugins.load()
    base = run_flags.config_from_flags()
    if _LAUNCHER.value == "slurm":
      launch = launchers.slurm(folder, _SLURM.value, signals)
    else:
      launch = launchers.local(launchers.JOBS.value, signals)
    failed = sweep(base, folder, launch, signals)
  if failed:
    scripts.fail([f"failed: {name}: {why}" for name, why in failed.items()])


if __name__ == "__main__":
  scripts.run(main)
