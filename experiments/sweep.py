"""Runs every combination of some settings, one folder each.

    python -m experiments.sweep --flagfile=experiments/presets/fixed_k.flags \
        --sweep=k=100,1000,10000 --sweep=seed=0..4 --jobs=2

Started again it goes on: finished runs are read, stopped ones taken up. A run
that fails does not stop the others; it is named at the end. Ctrl-C and SIGTERM
stop the sweep and its runs, which can be taken up; jobs of Slurm go on.
"""

import csv
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from agsfl import config as settings
from agsfl import errors, files, lanes, runs
from experiments import run
from experiments.lib import drawing, launchers, scripts, stopping
from experiments.lib import flags as run_flags
from experiments.lib import groups as results

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(run)
_SWEEP = flags.DEFINE_multi_string(
    "sweep",
    [],
    "A setting and its values: k=100,1000 or seed=0..4. Several make the "
    "product.",
)
_JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "Runs at once, which share the cores; on a GPU leave it at 1.",
    lower_bound=1,
)
_LANES = flags.DEFINE_integer(
    "lanes",
    1,
    "Runs that differ in seed, k, learning_rate or comm_time alone, as one "
    "vmapped program of so many; for GPUs. They have no checkpoints; runs that "
    "have one, or a time_budget, go by themselves.",
    lower_bound=1,
)
_LAUNCHER = flags.DEFINE_enum(
    "launcher",
    "local",
    ["local", "slurm"],
    "Where runs go; slurm takes pip install 'agsfl[slurm]' and a folder that "
    "all nodes see.",
)
_SLURM = flags.DEFINE_list(
    "slurm",
    ["timeout_min=60"],
    "Of submitit's executor, such as timeout_min=60,slurm_partition=gpu.",
)

_COLUMNS = ("train_loss", "test_loss", "test_accuracy", "round", "time")
_LONGEST = 255  # bytes of a folder's name, on all common file systems
_SETTINGS = tuple(field.name for field in dataclasses.fields(settings.Config))


def values_of(text: str) -> tuple[str, list[str]]:
  """The setting and the values that a --sweep names.

  Raises:
    ConfigError: it is not of the form name=values.
  """
  name, equals, listed = text.partition("=")
  if name not in _SETTINGS:
    raise settings.ConfigError(
        f"--sweep={text}: must begin with a setting and ="
    )
  if re.fullmatch(r"-?\d+\.\.-?\d+", listed):
    first, last = map(int, listed.split(".."))
    values = [str(value) for value in range(first, last + 1)]
  else:
    values = listed.split(",")
  if not equals or not values or not all(values):
    raise settings.ConfigError(
        f"--sweep={text}: must name values, such as {name}=1,2 or {name}=0..4"
    )
  if len(set(values)) < len(values):
    raise settings.ConfigError(f"--sweep={text}: must name each value once")
  return name, values


def configs_of(
    base: settings.Config, sweeps: list[tuple[str, list[str]]]
) -> dict[str, settings.Config]:
  """Every combination, by the name of its folder.

  Raises:
    ConfigError: a value is out of range, a setting is named twice, or two
      combinations are the same settings or would have one folder, or one with
      too long a name.
  """
  names = [name for name, _ in sweeps]
  for name in names:
    if names.count(name) > 1:
      raise settings.ConfigError(f"--sweep={name}: must be named once")
  configs, labels = {}, {}
  for values in itertools.product(*[listed for _, listed in sweeps]):
    chosen = dict(zip(names, values, strict=True))
    parsed = {}
    for name, text in chosen.items():
      try:
        parsed[name] = flags.FLAGS[name].parser.parse(text)
      except ValueError as error:
        raise settings.ConfigError(
            f"--sweep={name}={text}: must be a value of --{name} ({error})"
        ) from error
    told = ",".join(f"{name}={text}" for name, text in chosen.items())
    label = told.replace("/", "_")
    if label in configs:
      raise settings.ConfigError(
          f"--sweep={told}: must differ from others in more than / and _, for "
          "it names a folder"
      )
    if len(label.encode()) > _LONGEST:
      raise settings.ConfigError(
          f"--sweep={told}: must have at most {_LONGEST} bytes, for it names a "
          "folder"
      )
    config = dataclasses.replace(base, **parsed)
    same = labels.setdefault(config, label)
    if same != label:
      raise settings.ConfigError(
          f"--sweep={told}: must not be the same settings as {same}"
      )
    configs[label] = config
  return configs


def command(config: settings.Config, workdir: Path) -> list[str]:
  """The run of a Config as a command line, with all else that is given."""
  told = [
      f"--{name}={value}"
      for name, value in dataclasses.asdict(config).items()
      if value is not None
  ]
  passed_on = [
      flag.serialize()
      for flag in flags.FLAGS.get_key_flags_for_module(run)
      if flag.present and flag.name not in (*_SETTINGS, "workdir")
  ]
  return [
      sys.executable, "-m", "experiments.run", *told, *passed_on,
      f"--workdir={workdir}",
  ]


def _bar(**told):
  hidden = run.QUIET.value or not sys.stderr.isatty()
  return tqdm(disable=hidden, **told)


def _side_by_side(group):
  """The outcomes of a group of lanes, by folder."""
  rounds = sum(config.num_rounds for config in group.values())
  with (
      stopping.Signals(run.tell_stop) as signals,
      _bar(total=rounds, unit="round", desc=f"{len(group)} lanes") as bar,
  ):
    return lanes.simulate(
        group,
        on_row=lambda place, row: bar.update(),
        should_stop=lambda: signals.seen,
    )


def run_lanes(group: dict[Path, settings.Config]) -> dict[str, str]:
  """Runs a group of `lanes.together` in this process.

  Args:
    group: configs by folder.

  Returns:
    By folder name, why each run that failed did.

  Raises:
    StoppedError: a signal came.
  """
  failed = {}
  try:
    outcomes = _side_by_side(group)
  except settings.ConfigError:
    # They cannot be one program. Here one by one, for this process may hold
    # the memory of the GPU by now.
    outcomes = {}
    with stopping.Signals(run.tell_stop) as signals:
      for place, config in group.items():
        try:
          run.run(config, place, signals)
        except (settings.ConfigError, errors.DivergedError) as error:
          outcomes[place] = error
  for place, outcome in outcomes.items():
    if isinstance(outcome, Exception):
      failed[place.name] = str(outcome)
    else:
      drawing.draw(place)
  return failed


def run_all(
    missing: dict[Path, settings.Config], launch: Callable, bar: tqdm
) -> dict[str, str]:
  """Runs all of these, side by side where they can be lanes.

  Args:
    missing: configs by folder.
    launch: see `launchers`.
    bar: is told of each that ended.

  Returns:
    By folder name, why each run that failed did.

  Raises:
    StoppedError: a signal came.
  """
  fresh = {
      place: config
      for place, config in missing.items()
      if not (place / "checkpoints").exists()
  }
  groups = [
      group
      for group in lanes.together(fresh, _LANES.value)
      if len(group) > 1
  ]
  in_lanes = {place for group in groups for place in group}
  failed = {}
  # Processes first: after the lanes this one would hold a GPU's memory.
  commands = {
      place: command(config, place)
      for place, config in missing.items()
      if place not in in_lanes
  }
  for place, why in launch(commands):
    if why is not None:
      failed[place.name] = why
    bar.update()
  for group in groups:
    failed |= run_lanes({place: missing[place] for place in group})
    bar.update(len(group))
  return failed


def write_csv(
    configs: dict[str, settings.Config],
    finished: dict[str, results.Run],
    names: list[str],
    path: Path,
):
  """One line per finished run: what was swept, and how it ended.

  Args:
    configs: by folder name.
    finished: the runs, too.
    names: of the settings that were swept.
    path: of the file.
  """
  with files.written_whole(path) as temporary:
    with temporary.open("w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow([*names, *_COLUMNS, "workdir"])
      for label, done in finished.items():
        asked = dataclasses.asdict(configs[label])
        rows.writerow(
            [asked[name] for name in names]
            + [done.summary[key] for key in _COLUMNS]
            + [done.workdir]
        )


def _write_all(configs, finished, names, folder):
  """Writes the sweep's files; the table."""
  write_csv(configs, finished, names, folder / "results.csv")
  fields = [name for name in names if name != "seed"]
  with files.written_whole(folder / "figure.png") as path:
    text = drawing.compare(list(finished.values()), fields, path)
  with files.written_whole(folder / "table.md") as path:
    path.write_text(text + "\n")
  return text


def sweep(base: settings.Config, folder: Path, launch: Callable) -> dict:
  """Runs what is not finished yet, then draws and tables all.

  Args:
    base: the settings that are common.
    folder: of the sweep.
    launch: see `launchers`.

  Returns:
    By folder name, why each run that failed did.

  Raises:
    ConfigError: a flag or the folder cannot be used.
    StoppedError: a signal came; the text says how far it is.
  """
  sweeps = [values_of(text) for text in _SWEEP.value]
  configs = configs_of(base, sweeps)
  places = {label: folder / label for label in configs}
  with files.usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
  missing, told = {}, functools.cache(runs.fingerprint_of)
  for label, place in places.items():
    # Refuses a folder of other settings before anything runs.
    if not runs.is_finished(configs[label], place, told):
      missing[place] = configs[label]
  started = len(configs) - len(missing)
  ended = lambda: [
      label for label, place in places.items()
      if (place / "summary.json").exists()
  ]
  with _bar(total=len(configs), initial=started, unit="run") as bar:
    try:
      failed = run_all(missing, launch, bar)
    except (errors.StoppedError, KeyboardInterrupt) as error:
      raise errors.StoppedError(
          f"{'stopped' if isinstance(error, KeyboardInterrupt) else error}; "
          f"{len(ended())} of {len(configs)} runs are finished"
      ) from error
  finished = {}
  for label in ended():
    try:
      finished[label] = results.read(places[label])
    except settings.ConfigError as error:
      failed[label] = str(error)
  if finished:
    with files.usable(folder):
      text = _write_all(configs, finished, [name for name, _ in sweeps], folder)
    if not run.QUIET.value:
      print(text)
      print(f"results.csv, table.md, figure.png and runs: {folder}")
  return {label: failed[label] for label in configs if label in failed}


def _check_flags():
  """Refuses what says nothing, and what contradicts itself."""
  if not _SWEEP.value:
    raise settings.ConfigError("--sweep=: must be given, such as seed=0..4")
  if _LANES.value == 1:
    return
  for name in ("launcher", "jobs", "tensorboard", "wandb"):
    flag = flags.FLAGS[name]
    if flag.value != flag.default:
      raise settings.ConfigError(
          f"--{name}={flag.value}: must be unset with --lanes={_LANES.value}, "
          "which are one process here"
      )


def main(argv):
  scripts.start(argv)
  folder = Path(run.WORKDIR.value or "runs/sweep").absolute()
  with scripts.one_line_errors(), stopping.told_how_to_go_on(folder):
    _check_flags()
    base = run_flags.config_from_flags()
    if _LAUNCHER.value == "slurm":
      launch = launchers.slurm(folder, _SLURM.value)
    else:
      launch = launchers.local(_JOBS.value, run.tell_stop)
    failed = sweep(base, folder, launch)
  for name, why in failed.items():
    print(f"failed: {name}: {why}", file=sys.stderr)
  if failed:
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
