"""Several runs for one figure: run what is missing, read all of it back.

A study is a folder: one folder per setting, in it one per seed, each as
`experiments.run` leaves it. Started again, it does what is not finished yet.
"""

import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from agsfl import files, runs
from agsfl.config import Config, ConfigError
from agsfl.records import folder as records
from agsfl.types import PyTree
from experiments import run
from experiments.lib import drawing, scripts, stopping
from experiments.lib import flags as run_flags
from experiments.lib import groups as results

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(run)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds: a run of each setting each.")


def folder() -> Path:
  """The study's folder: --workdir, or runs/ and the script's name."""
  return Path(run.WORKDIR.value or Path("runs") / Path(sys.argv[0]).stem)


def say(text: str):
  """Prints it, but for --quiet."""
  if not run.QUIET.value:
    print(text, flush=True)


def progress(steps: Iterable, total: int | None = None) -> Iterable:
  """The steps, with a bar on a terminal, but for --quiet."""
  hidden = run.QUIET.value or None  # None: without a terminal
  return tqdm(steps, total=total, unit="round", disable=hidden)


def seeds() -> list[int]:
  """The seeds that the flags ask for; see `numbers`."""
  return numbers("seeds", int)


def items(name: str) -> list[str]:
  """The items of a list flag.

  Raises:
    ConfigError: there are none.
  """
  if not flags.FLAGS[name].value:
    raise ConfigError(f"--{name}=: must name at least one")
  return flags.FLAGS[name].value


def numbers(name: str, number: type = float) -> list:
  """The items of a list flag as numbers.

  Raises:
    ConfigError: there are none, one is no number, or one is named twice.
  """
  texts = items(name)
  try:
    values = [number(text) for text in texts]
  except ValueError as error:
    kind = "whole numbers" if number is int else "numbers"
    raise ConfigError(
        f"--{name}={','.join(texts)}: must be {kind} with commas"
    ) from error
  if len(set(values)) < len(values):
    raise ConfigError(
        f"--{name}={','.join(texts)}: must name each number once"
    )
  return values


def seeded(config: Config) -> Callable[[int], Config]:
  """The same settings for any seed."""
  return lambda seed: dataclasses.replace(config, seed=seed)


def share_compiled_code():
  """Keeps compiled programs, for other seeds and later starts.

  Where the environment says, or else in the folder.
  """
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(folder() / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run_all(
    settings: dict[str, Callable[[int], Config]],
) -> dict[str, list[results.Run]]:
  """The runs of a study, seed by seed within each setting.

  Seeds of one setting share compiled code, by JAX's cache in the folder.

  Args:
    settings: by label, which names a folder: seed -> Config.

  Returns:
    The runs of each label, in the order of the seeds.

  Raises:
    ConfigError: the folder holds a run of other settings or other data.
  """
  study = folder()
  share_compiled_code()
  done, told = {}, functools.cache(runs.fingerprint_of)
  for label, config_of in settings.items():
    done[label] = []
    for seed in seeds():
      workdir, config = study / label / f"seed{seed}", config_of(seed)
      if not runs.is_finished(config, workdir, told):
        say(f"{label}, seed {seed}")
        with stopping.Signals(run.tell_stop) as signals:
          run.run(config, workdir, signals)
      done[label].append(results.read(workdir))
  return done


def kept(
    path: Path, asked: dict[str, Any], make: Callable[[], PyTree]
) -> PyTree:
  """What an earlier start made and wrote to a file, or makes and writes it.

  Args:
    path: of the file, whole or not there.
    asked: the settings that decide the outcome.
    make: gives something that JSON can hold.

  Returns:
    The outcome, as JSON has it.

  Raises:
    ConfigError: the file is of other settings, none of a study, or cannot be
      written.
  """
  if path.exists():
    try:
      held = json.loads(path.read_text())
      theirs, made = dict(held["asked"]), held["made"]
    except (ValueError, KeyError, TypeError) as error:
      raise ConfigError(
          f"{path}: must be a file of this study ({error!r})"
      ) from error
    records.refuse_other(theirs, asked, path)
    return made
  made = make()
  with files.usable(folder()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(path) as temporary:
      temporary.write_text(json.dumps({"asked": asked, "made": made}) + "\n")
  return made


def finish(figure, text: str):
  """Writes the study's figure.png and table.md.

  Args:
    figure: of Matplotlib.
    text: the table.

  Raises:
    ConfigError: the folder cannot be written.
  """
  study = folder()
  with files.usable(study):
    study.mkdir(parents=True, exist_ok=True)
    with files.written_whole(study / "figure.png") as path:
      drawing.save(figure, path)
    with files.written_whole(study / "table.md") as path:
      path.write_text(text + "\n")
  say(text)
  say(f"figure and table: {study}")


def main(script: Callable[[Config], None]) -> Callable[[list[str]], None]:
  """A script's main: gives it the Config of the flags; errors in one line."""

  def checked(argv):
    scripts.start(argv)
    with scripts.one_line_errors(), stopping.told_how_to_go_on(folder()):
      script(run_flags.config_from_flags())

  return checked
