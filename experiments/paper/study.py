"""Several runs for one figure: does the missing runs, then reads all of them.

A study is a folder. It has a folder for each setting, and in that one a run's
folder for each seed. The same command goes on where a study was stopped.
"""

import dataclasses
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from absl import flags
from tqdm import tqdm

from agsfl import files, simulation
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.errors import refused, require
from agsfl.records import strict_json
from agsfl.records.folder import refuse_other
from agsfl.records.read import Run, read_run
from agsfl.types import PyTree
from experiments.lib import (
    curves,
    drawing,
    plugins,
    runner,
    scripts,
    stopping,
)
from experiments.lib import flags as run_flags

flags.adopt_module_key_flags(runner)
flags.DEFINE_list("seeds", ["0"], "Seeds; each setting has a run for each.")


def folder() -> Path:
  """The study's folder: --workdir, or runs/ and the script's name."""
  return runner.workdir(f"runs/{Path(sys.argv[0]).stem}")


def say(text: str):
  """Prints a text, unless --quiet is given."""
  if not runner.QUIET.value:
    print(text, flush=True)


def progress(steps: Iterable, total: int | None = None) -> Iterable:
  """The steps, with a bar on a terminal, unless --quiet is given.

  Raises:
    StoppedError: a signal came.
  """
  hidden = runner.QUIET.value or None  # None: without a terminal
  with stopping.Signals(runner.say_stopping) as signals:
    for step in tqdm(steps, total=total, unit="round", disable=hidden):
      yield step
      signals.check()


def seeds() -> list[int]:
  """The seeds that the flags ask for; see `numbers`."""
  return numbers("seeds", int)


def items(name: str) -> list[str]:
  """The items of a list flag.

  Raises:
    ConfigError: there are none.
  """
  values = flags.FLAGS[name].value
  require(values, name, "", "a list with at least one item")
  return values


def numbers(name: str, number: type = float, once: bool = True) -> list:
  """The items of a list flag as numbers.

  Args:
    name: of the flag.
    number: int or float.
    once: whether each may be named only once.

  Raises:
    ConfigError: there are none, one is no number, or is named twice.
  """
  texts = items(name)
  listed = ",".join(texts)
  kind = "whole numbers" if number is int else "numbers"
  with refused(f"--{name}={listed}", f"must be {kind} with commas", ValueError):
    values = [number(text) for text in texts]
  require(
      not once or len(set(values)) == len(values),
      name,
      listed,
      "a list that names each number once",
  )
  return values


def rules(name: str) -> list[str]:
  """The items of a list flag, which are controllers that learn k.

  Raises:
    ConfigError: there are none, or one is no such controller.
  """
  learned = [key for key, rule in CONTROLLERS.items() if rule.learns]
  chosen = items(name)
  for rule in chosen:
    require(rule in learned, name, rule, f"of {', '.join(learned)}")
  return chosen


def seeded(config: Config) -> Callable[[int], Config]:
  """The same settings for any seed."""
  return lambda seed: dataclasses.replace(config, seed=seed)


def run_all(
    settings: dict[str, Callable[[int], Config]],
) -> dict[str, list[Run]]:
  """The runs of a study, seed by seed within each setting.

  Args:
    settings: by label, which names a folder: seed -> Config.

  Returns:
    The runs of each label, in the order of the seeds.

  Raises:
    ConfigError: the folder holds a run of other settings or other data.
  """
  study = folder()
  done, fingerprint_of = {}, simulation.data_fingerprints()
  with stopping.Signals(runner.say_stopping) as signals:
    for label, config_of in settings.items():
      done[label] = []
      for seed in seeds():
        signals.check()
        workdir, config = study / label / f"seed{seed}", config_of(seed)
        if not simulation.is_finished(config, workdir, fingerprint_of):
          say(f"{label}, seed {seed}")
          runner.run(config, workdir, signals)
        done[label].append(read_run(workdir))
  return done


def cached(
    path: Path, asked: dict[str, Any], make: Callable[[], PyTree]
) -> PyTree:
  """Reads an outcome that an earlier start wrote; else makes and writes it.

  Args:
    path: of the file.
    asked: the settings that decide the outcome.
    make: returns the outcome, of a type that JSON can hold.

  Returns:
    The outcome, as JSON has it.

  Raises:
    ConfigError: the file is of other settings, is not a file of a study, or
      cannot be written.
  """
  if path.exists():
    problem = "must be a file of this study"
    damage = (OSError, ValueError, KeyError, TypeError, RecursionError)
    with refused(str(path), problem, damage):
      saved = strict_json.parsed(path.read_bytes())
      asked_then, made = dict(saved["asked"]), saved["made"]
    refuse_other(asked_then, asked, str(path))
    return made
  made = make()
  with files.usable(folder()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(path) as temporary:
      text = strict_json.written({"asked": asked, "made": made})
      temporary.write_text(text, encoding="utf-8")
  return made


def lay_out(axes, key: str, title: str, xlabel: str = curves.TIME):
  """Says above the axes what lines over time show; time begins at 0.

  Args:
    axes: of Matplotlib, with all lines.
    key: name of the column that is drawn; see `drawing.scale_y`.
    title: what the lines show.
    xlabel: the unit of x.
  """
  axes.set(title=title, xlabel=xlabel)
  axes.set_xlim(left=0)
  axes.grid(alpha=0.3)
  drawing.scale_y(axes, key)


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
      path.write_text(text + "\n", encoding="utf-8")
  say(text)
  say(f"figure and table: {study}")


def run(script: Callable[[Config], None]):
  """Runs a script that takes the Config of the flags, as a command."""

  def main(argv):
    scripts.start(argv)
    with scripts.one_line_errors(), stopping.continue_hint(folder()):
      plugins.load()
      script(run_flags.config_from_flags())

  scripts.run(main)
