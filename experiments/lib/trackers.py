"""TensorBoard, Weights & Biases and trackio, each as a function of a row."""

import contextlib
import dataclasses
import importlib
import io
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import logging

from agsfl import files
from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records.columns import EVALUATED
from experiments.lib.scripts import first_line

# A row's round, and its numbers by their names.
Sink = Callable[[int, dict[str, float]], None]

# Columns that only grow, so that others can be drawn against them.
AXES = ("time", "seconds", "bytes")

# TensorBoard draws against whole numbers only. So the columns of evaluations
# are there once more for each axis. By axis: the folder, whose name also begins
# theirs, and the unit.
_UNITS = {
    "time": ("by_time", 1),
    "seconds": ("by_milliseconds", 0.001),  # a round may take less than 1 s
    "bytes": ("by_kilobytes", 1000),
}


def _imported(flag: str, package: str) -> ModuleType:
  """A package that only this flag needs."""
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise ConfigError(
        f"--{flag}: needs {package}: pip install {package}"
    ) from error


@contextlib.contextmanager
def tensorboard(workdir: Path) -> Iterator[Sink]:
  """Event files in the folder tensorboard of a run.

  Each axis has event files of its own: a run that goes on repeats some rounds,
  and TensorBoard removes all points of a file from a certain step on.

  Raises:
    ConfigError: the package is missing.
  """
  tensorboardx = _imported("tensorboard", "tensorboardX")
  writers: dict[str, Any] = {}

  def write(folder, step, numbers):
    if folder not in writers:
      writers[folder] = tensorboardx.SummaryWriter(
          str(workdir / "tensorboard" / folder), purge_step=step
      )
    for name, value in numbers.items():
      writers[folder].add_scalar(name, value, step)

  def row(index, numbers):
    write("", index, numbers)
    evaluated = [name for name in EVALUATED if name in numbers]
    for axis, (folder, unit) in _UNITS.items():
      if evaluated and axis in numbers:
        shown = {f"{folder}/{name}": numbers[name] for name in evaluated}
        write(folder, round(numbers[axis] / unit), shown)

  try:
    yield row
  finally:
    for writer in writers.values():
      writer.close()


@contextlib.contextmanager
def wandb(project: str, config: Config, workdir: Path) -> Iterator[Sink]:
  """A run of Weights & Biases; its columns can be drawn against `AXES`.

  Raises:
    ConfigError: the package, the project or the account is missing; with the
      first row, also if W&B cannot be reached.
  """
  package = _imported("wandb", "wandb")
  _check_wandb(package, project)

  def begin(run_id):
    try:
      session = package.init(
          project=project,
          name=workdir.name,
          id=run_id,
          resume="allow",
          config=dataclasses.asdict(config),
          dir=str(workdir.absolute()),
          settings=package.Settings(silent=True),
      )
    except package.errors.Error as error:
      raise _no_account(project, first_line(error)) from error
    for axis in AXES:  # without a figure of its own
      session.define_metric(axis, hidden=True)
    return session

  with _tracked(begin, workdir / "wandb_id.txt") as row:
    yield row


def _no_account(project, why):
  return ConfigError(
      f"--wandb={project}: must be of an account of Weights & Biases ({why}); "
      "log in by `wandb login`, or set WANDB_MODE=offline"
  )


def _check_wandb(package, project):
  """Refuses at once what would fail at the first row.

  Args:
    package: wandb.
    project: to log to.

  Raises:
    ConfigError: the project's name is not allowed, or nobody is logged in.
  """
  try:
    if not project.strip():
      raise package.errors.UsageError("it is empty")
    settings = package.setup(
        settings=package.Settings(silent=True, project=project)
    ).settings
  except package.errors.UsageError as error:
    raise ConfigError(
        f"--wandb={project}: must be a project's name ({first_line(error)})"
    ) from error
  if settings.mode in ("offline", "dryrun", "disabled"):
    return
  try:
    known = package.login(prompt=False)
  except package.errors.Error as error:
    raise _no_account(project, first_line(error)) from error
  if not known:
    raise _no_account(project, "nobody is logged in")


class _Trackio:
  """A run of trackio with the methods that one of W&B has."""

  def __init__(self, package, **kwargs):
    self._package = package
    with contextlib.redirect_stdout(io.StringIO()):
      self._run = package.init(**kwargs)

  def log(self, numbers, step):
    # trackio has a column "time" of its own.
    renamed = {
        "normalised_time" if name == "time" else name: value
        for name, value in numbers.items()
    }
    self._run.log(renamed, step=step)

  def finish(self):
    with contextlib.redirect_stdout(io.StringIO()):
      self._package.finish()


@contextlib.contextmanager
def trackio(project: str, config: Config, workdir: Path) -> Iterator[Sink]:
  """A run of trackio, in the folder that trackio has for all runs.

  Raises:
    ConfigError: the package is missing; with the first row, also if the name of
      the project is not allowed.
  """
  # Of users who are logged in at Hugging Face trackio would ask for their name
  # there, even though the run stays on this machine.
  if not {"TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"} & os.environ.keys():
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
  package = _imported("trackio", "trackio")

  def begin(run_id):
    try:
      return _Trackio(
          package,
          project=project,
          name=f"{workdir.name}-{run_id}",  # a run goes on by its name
          resume="allow",
          config=dataclasses.asdict(config),
          embed=False,
      )
    except (ValueError, OSError) as error:
      raise ConfigError(
          f"--trackio={project}: must be a project that can be used "
          f"({first_line(error)})"
      ) from error

  with _tracked(begin, workdir / "trackio_id.txt") as row:
    yield row


@contextlib.contextmanager
def _tracked(begin: Callable[[str], Any], place: Path) -> Iterator[Sink]:
  """A run of a tracker, begun with the first row and ended with the context.

  Args:
    begin: of the run's id; returns what has `log` and `finish`.
    place: the file of the id.
  """
  session = None

  def row(index, numbers):
    nonlocal session
    if session is None:
      with files.usable(place.parent):
        run_id = _id_in(place, is_new=index == 0)
      session = begin(run_id)
    session.log(numbers, step=index)

  try:
    yield row
  finally:
    if session is not None:
      session.finish()


def _id_in(place: Path, *, is_new: bool) -> str:
  """The id of a folder's run: a new one at its begin, and in a copied folder.

  Args:
    place: a file with the id, and with the folder that the id was made for.
    is_new: whether the run begins.
  """
  owner = os.fsencode(place.parent.resolve())
  if not is_new and place.exists():
    run_id, _, of = place.read_bytes().partition(b"\n")
    if of == owner:
      return run_id.decode()
    logging.info(
        "%s: this folder was copied or moved, so its run has a new id", place
    )
  new = secrets.token_hex(8)
  place.write_bytes(new.encode() + b"\n" + owner)
  return new
