"""Rows of a run sent to TensorBoard or Weights & Biases as they come."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from agsfl.config import Config, ConfigError

_TENSORBOARD = flags.DEFINE_boolean(
    "tensorboard",
    False,
    "Write event files for TensorBoard to the folder tensorboard of --workdir.",
)
_WANDB = flags.DEFINE_string(
    "wandb",
    None,
    "Project of Weights & Biases to log to; WANDB_MODE=offline sends nothing.",
)

Sink = Callable[[dict], None]


def _numbers(row):
  return {
      name: value
      for name, value in row.items()
      if name != "round" and value is not None
  }


def _needed(flag, package):
  return ConfigError(
      f"--{flag}: needs {package}: pip install 'agsfl[dashboards]'"
  )


@contextlib.contextmanager
def _tensorboard(workdir: Path) -> Iterator[Sink]:
  try:
    import tensorboardX
  except ImportError as error:
    raise _needed("tensorboard", "tensorboardX") from error
  writer = None

  def row(row):
    nonlocal writer
    if writer is None:
      # A run that is taken up repeats rounds: what was told of them goes.
      writer = tensorboardX.SummaryWriter(
          str(workdir / "tensorboard"), purge_step=row["round"]
      )
    for name, value in _numbers(row).items():
      writer.add_scalar(name, value, row["round"])

  try:
    yield row
  finally:
    if writer is not None:
      writer.close()


@contextlib.contextmanager
def _wandb(project: str, config: Config, workdir: Path) -> Iterator[Sink]:
  try:
    import wandb
  except ImportError as error:
    raise _needed("wandb", "wandb") from error
  session = None

  def row(row):
    nonlocal session
    if session is None:
      place = str(workdir.absolute())
      session = wandb.init(
          project=project,
          name=workdir.name,
          # The same for a run that is taken up.
          id=hashlib.sha256(place.encode()).hexdigest()[:16],
          resume="allow",
          config=dataclasses.asdict(config),
          dir=place,
          settings=wandb.Settings(silent=True),
      )
    session.log(_numbers(row), step=row["round"])

  try:
    yield row
  finally:
    if session is not None:
      session.finish()


@contextlib.contextmanager
def opened(config: Config, workdir: Path) -> Iterator[Sink]:
  """What the flags ask for, as one function of a row.

  Raises:
    ConfigError: a package is not there.
  """
  with contextlib.ExitStack() as stack:
    sinks = []
    if _TENSORBOARD.value:
      sinks.append(stack.enter_context(_tensorboard(workdir)))
    if _WANDB.value:
      sinks.append(stack.enter_context(_wandb(_WANDB.value, config, workdir)))

    def row(row):
      for sink in sinks:
        sink(row)

    yield row
