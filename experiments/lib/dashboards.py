"""Rows of a run sent to TensorBoard or Weights & Biases as they come."""

import contextlib
import dataclasses
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from agsfl import files, hosts
from agsfl.config import Config
from agsfl.errors import ConfigError
from experiments.lib.scripts import first_line

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
  return ConfigError(f"--{flag}: needs {package}: pip install {package}")


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
      # A run that goes on may repeat rounds. Their earlier log is removed.
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



def _no_account(project, why):
  return ConfigError(
      f"--wandb={project}: must be of an account of Weights & Biases ({why}); "
      "log in by `wandb login`, or set WANDB_MODE=offline"
  )


def _check_wandb(wandb, project):
  """Refuses at once what would fail at the first row.

  Args:
    wandb: the package.
    project: to log to.

  Raises:
    ConfigError: the project's name is not allowed, or nobody is logged in.
  """
  try:
    if not project.strip():
      raise wandb.errors.UsageError("it is empty")
    settings = wandb.setup(
        settings=wandb.Settings(silent=True, project=project)
    ).settings
  except wandb.errors.UsageError as error:
    raise ConfigError(
        f"--wandb={project}: must be a project's name ({first_line(error)})"
    ) from error
  if settings.mode in ("offline", "dryrun", "disabled"):
    return
  try:
    known = wandb.login(prompt=False)
  except wandb.errors.Error as error:
    raise _no_account(project, first_line(error)) from error
  if not known:
    raise _no_account(project, "nobody is logged in")


def _wandb_id(workdir, is_first_round):
  """The id of a run: a new one in round 1, later the one of its folder."""
  path = workdir / "wandb_id.txt"
  if not is_first_round and path.exists():
    return path.read_text(encoding="utf-8").strip()
  new = secrets.token_hex(8)
  path.write_text(f"{new}\n", encoding="utf-8")
  return new


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
      with files.usable(workdir):
        run_id = _wandb_id(workdir, row["round"] == 1)
      try:
        session = wandb.init(
            project=project,
            name=workdir.name,
            id=run_id,
            resume="allow",
            config=dataclasses.asdict(config),
            dir=str(workdir.absolute()),
            settings=wandb.Settings(silent=True),
        )
      except wandb.errors.Error as error:
        raise _no_account(project, first_line(error)) from error
    session.log(_numbers(row), step=row["round"])

  try:
    yield row
  finally:
    if session is not None:
      session.finish()


@contextlib.contextmanager
def opened(config: Config, workdir: Path) -> Iterator[Sink]:
  """The dashboards that the flags ask for, as one function of a row.

  Raises:
    ConfigError: a package, W&B's project or its account is missing; with the
      first row, also if W&B cannot be reached.
  """
  with contextlib.ExitStack() as stack:
    sinks = []
    if _TENSORBOARD.value and hosts.is_first():
      sinks.append(stack.enter_context(_tensorboard(workdir)))
    if _WANDB.value is not None and hosts.is_first():
      sinks.append(stack.enter_context(_wandb(_WANDB.value, config, workdir)))

    def row(row):
      for sink in sinks:
        sink(row)

    yield row
