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


def _first_line(error):
  return next(iter(str(error).splitlines()), type(error).__name__)


def _no_account(project, why):
  return ConfigError(
      f"--wandb={project}: must be of an account of Weights & Biases ({why}); "
      "log in by `wandb login`, or set WANDB_MODE=offline"
  )


def _check_wandb(wandb, project):
  """Refuses at once what would end the run at its first row.

  Args:
    wandb: the package.
    project: to log to.

  Raises:
    ConfigError: no project may have that name, or nobody is logged in.
  """
  try:
    if not project.strip():
      raise wandb.errors.UsageError("it is empty")
    settings = wandb.setup(
        settings=wandb.Settings(silent=True, project=project)
    ).settings
  except wandb.errors.UsageError as error:
    raise ConfigError(
        f"--wandb={project}: must be a project's name ({_first_line(error)})"
    ) from error
  if settings.mode in ("offline", "dryrun", "disabled"):
    return
  try:
    known = wandb.login(prompt=False)
  except wandb.errors.Error as error:
    raise _no_account(project, _first_line(error)) from error
  if not known:
    raise _no_account(project, "nobody is logged in")


@contextlib.contextmanager
def _wandb(project: str, config: Config, workdir: Path) -> Iterator[Sink]:
  try:
    import wandb
  except ImportError as error:
    raise _needed("wandb", "wandb") from error
  _check_wandb(wandb, project)
  session = None

  def row(row):
    nonlocal session
    if session is None:
      place = str(workdir.absolute())
      try:
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
      except wandb.errors.Error as error:
        raise _no_account(project, _first_line(error)) from error
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
    ConfigError: a package is not there, or W&B's project or account; when the
      first row comes, that W&B cannot be reached.
  """
  with contextlib.ExitStack() as stack:
    sinks = []
    if _TENSORBOARD.value:
      sinks.append(stack.enter_context(_tensorboard(workdir)))
    if _WANDB.value is not None:
      sinks.append(stack.enter_context(_wandb(_WANDB.value, config, workdir)))

    def row(row):
      for sink in sinks:
        sink(row)

    yield row
