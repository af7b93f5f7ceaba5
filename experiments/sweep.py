"""Runs every combination of some settings, one folder each.

    python -m experiments.sweep --flagfile=experiments/fixed_k.flags \
        --sweep=k=100,1000,10000 --sweep=seed=0..4 --jobs=2

Started again it goes on: finished runs are read, stopped ones taken up. A run
that fails does not stop the others; it is named at the end.
"""

import csv
import dataclasses
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent import futures
from pathlib import Path

from absl import app, flags
from tqdm import tqdm

from agsfl import config as settings
from agsfl import errors, files, lanes, records, runs
from experiments import drawing, results, run, scripts
from experiments import flags as run_flags

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
    "vmapped program of so many; for GPUs. They have no checkpoints.",
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


def values_of(text: str) -> tuple[str, list[str]]:
  """The setting and the values that a --sweep names.

  Raises:
    ConfigError: it is not of the form name=values.
  """
  name, equals, listed = text.partition("=")
  if name not in {field.name for field in dataclasses.fields(settings.Config)}:
    raise settings.ConfigError(
        f"--sweep={text}: must begin with a setting and ="
    )
  first, dots, last = listed.partition("..")
  try:
    if dots:
      values = [str(v) for v in range(int(first), int(last) + 1)]
    else:
      values = listed.split(",")
  except ValueError:
    values = []
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
    ConfigError: a value is out of range, or a setting is named twice.
  """
  names = [name for name, _ in sweeps]
  for name in names:
    if names.count(name) > 1:
      raise settings.ConfigError(f"--sweep={name}: must be named once")
  configs = {}
  for values in itertools.product(*[listed for _, listed in sweeps]):
    chosen = dict(zip(names, values, strict=True))
    parsed = {}
    for name, text in chosen.items():
      try:
        parsed[name] = flags.FLAGS[name].parser.parse(text)
      except ValueError as error:
        raise settings.ConfigError(f"--sweep={name}={text}: {error}") from error
    label = ",".join(
        f"{name}={text.replace('/', '_')}" for name, text in chosen.items()
    )
    configs[label or "run"] = dataclasses.replace(base, **parsed)
  return configs


def command(config: settings.Config, workdir: Path) -> list[str]:
  """The run of a Config as a command line."""
  told = [
      f"--{name}={value}"
      for name, value in dataclasses.asdict(config).items()
      if value is not None
  ]
  kept = [
      flags.FLAGS[name].serialize()
      for name in ("checkpoint_every", "checkpoints_kept")
  ]
  return [
      sys.executable, "-m", "experiments.run", *told, *kept,
      f"--workdir={workdir}",
  ]


def execute(arguments: list[str], workdir: Path, cores: set[int] | None) -> int:
  """Runs a command to its end, with its words in workdir/log.txt.

  Args:
    arguments: from `command`.
    workdir: of the run.
    cores: that it may use; None means all.

  Returns:
    Its exit code.
  """
  workdir.mkdir(parents=True, exist_ok=True)
  with (workdir / "log.txt").open("w") as log:
    return subprocess.run(
        arguments,
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        cwd=Path(__file__).parent.parent,
        env={
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "compiled")
            ),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        },
        preexec_fn=(
            (lambda: os.sched_setaffinity(0, cores)) if cores else None
        ),
        check=False,
    ).returncode


def local(jobs: int) -> Callable:
  """A launcher of so many processes at once, each with its share of cores."""

  def launch(commands):
    shares = [None] * jobs
    if jobs > 1 and hasattr(os, "sched_setaffinity"):
      cores = sorted(os.sched_getaffinity(0))
      shares = [set(cores[i::jobs]) or set(cores) for i in range(jobs)]
    free = list(shares)

    def one(arguments, workdir):
      share = free.pop()
      try:
        return execute(arguments, workdir, share)
      finally:
        free.append(share)

    with futures.ThreadPoolExecutor(jobs) as pool:
      started = {
          pool.submit(one, arguments, workdir): workdir
          for workdir, arguments in commands.items()
      }
      for future in futures.as_completed(started):
        yield started[future], future.result()

  return launch


def cluster(name: str, folder: Path, options: list[str]) -> Callable:
  """A launcher of submitit jobs: on "slurm", or "local" processes of it.

  Raises:
    ConfigError: submitit is not there, or an option is none.
  """
  try:
    import submitit
  except ImportError as error:
    raise settings.ConfigError(
        "--launcher=slurm: needs submitit: pip install 'agsfl[slurm]'"
    ) from error
  executor = submitit.AutoExecutor(folder=folder / "jobs", cluster=name)
  parsed = {}
  for option in options:
    key, equals, value = option.partition("=")
    if not equals:
      raise settings.ConfigError(f"--slurm={option}: must be name=value")
    parsed[key] = int(value) if value.isdigit() else value
  try:
    executor.update_parameters(**parsed)
  except (NameError, TypeError) as error:
    raise settings.ConfigError(
        f"--slurm={','.join(options)}: {error}"
    ) from error

  def launch(commands):
    jobs = {
        workdir: executor.submit(execute, arguments, workdir, None)
        for workdir, arguments in commands.items()
    }
    for workdir, job in jobs.items():
      try:
        yield workdir, job.result()
      except (submitit.core.utils.FailedJobError,
              submitit.core.utils.UncompletedJobError) as error:
        yield workdir, str(error).splitlines()[0]

  return launch


def run_lanes(configs: dict[Path, settings.Config], most: int) -> dict:
  """Runs what can be lanes of one program, in this process.

  Args:
    configs: by folder.
    most: lanes of a program.

  Returns:
    By folder name, why each run that failed did.
  """
  failed = {}
  by_place = {str(place): config for place, config in configs.items()}
  for labels in lanes.together(by_place, most):
    group = {Path(label): by_place[label] for label in labels}
    progress = tqdm(
        total=next(iter(group.values())).num_rounds,
        unit="round",
        desc=f"{len(group)} lanes",
        disable=not sys.stderr.isatty(),
    )
    first = next(iter(group))

    def on_row(place, row, first=first, progress=progress):
      if place == first:
        progress.update()

    try:
      outcomes = lanes.simulate(group, on_row)
    except settings.ConfigError:
      # Of one of them, perhaps: each by itself says so, or runs.
      outcomes = {}
      for place, config in group.items():
        try:
          outcomes[place] = runs.simulate(config, workdir=place)
        except (settings.ConfigError, errors.DivergedError) as error:
          outcomes[place] = error
    progress.close()
    for place, outcome in outcomes.items():
      if isinstance(outcome, Exception):
        failed[place.name] = outcome
  return failed


def write_csv(configs, finished, names, path: Path):
  """One line per finished run: what was swept, and how it ended."""
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


def sweep(base: settings.Config, folder: Path, launch: Callable) -> dict:
  """Runs what is not finished yet, then draws and tables all.

  Args:
    base: the settings that are common.
    folder: of the sweep.
    launch: {workdir: command} -> pairs of a workdir and its exit code, as they
      end.

  Returns:
    By folder name, the exit code or the error of each run that failed.
  """
  sweeps = [values_of(text) for text in _SWEEP.value]
  configs = configs_of(base, sweeps)
  places = {label: folder / label for label in configs}
  missing = {}
  for label, place in places.items():
    asked = dataclasses.asdict(configs[label])
    # Refuses a folder of other settings before anything runs.
    if not records.RunFolder(place, asked).finished:
      missing[place] = configs[label]
  failed = {}
  if _LANES.value > 1:
    failed = run_lanes(missing, _LANES.value)
    missing = {}
  commands = {place: command(one, place) for place, one in missing.items()}
  bar = tqdm(total=len(configs), initial=len(configs) - len(commands),
             unit="run", disable=not sys.stderr.isatty())
  with bar:
    for place, code in launch(commands):
      if code:
        failed[place.name] = code
      bar.update()
  finished = {
      label: results.read(place)
      for label, place in places.items()
      if (place / "summary.json").exists()
  }
  if finished:
    names = [name for name, _ in sweeps]
    write_csv(configs, finished, names, folder / "results.csv")
    fields = [name for name in names if name != "seed"]
    text = drawing.compare(
        list(finished.values()), fields, folder / "figure.png"
    )
    with files.written_whole(folder / "table.md") as path:
      path.write_text(text + "\n")
    print(text)
    print(f"results.csv, table.md, figure.png and runs: {folder}")
  return failed


def main(argv):
  scripts.start(argv)
  folder = Path(run.WORKDIR.value or "runs/sweep").absolute()
  with scripts.one_line_errors():
    if not _SWEEP.value:
      raise settings.ConfigError("--sweep=: must be given, such as seed=0..4")
    base = run_flags.config_from_flags()
    launch = local(_JOBS.value)
    if _LAUNCHER.value == "slurm":
      launch = cluster("slurm", folder, _SLURM.value)
    failed = sweep(base, folder, launch)
  for name, why in failed.items():
    log = folder / name / "log.txt"
    told = str(why)
    if log.exists():
      told = " ".join([f"({why})", *log.read_text().splitlines()[-1:]])
    print(f"failed: {name}: {told}", file=sys.stderr)
  if failed:
    sys.exit(1)


if __name__ == "__main__":
  app.run(main)
