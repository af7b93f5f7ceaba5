"""What a run leaves on disk."""

import contextlib
import csv
import fcntl
import functools
import json
import os
import platform
import shutil
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agsfl import files
from agsfl.errors import ConfigError

# What a run makes; without its config.json they are of something else.
_FILES = (
    "metrics.jsonl", "clients.csv", "params.npy", "summary.json", "figures",
    "checkpoints",
)

_PACKAGES = ("agsfl", "jax", "jaxlib", "flax", "optax", "numpy")


def environment() -> dict[str, Any]:
  """Versions and device of this process."""
  device = jax.devices()[0]
  return {
      "python": platform.python_version(),
      "versions": {name: metadata.version(name) for name in _PACKAGES},
      "device": device.device_kind,
      "platform": device.platform,
      "device_count": jax.device_count(),
  }


def _write(path: Path, content: Any):
  with files.written_whole(path) as temporary:
    temporary.write_text(json.dumps(content, indent=2) + "\n")


def refuse_other(held: dict[str, Any], asked: dict[str, Any], place: Path):
  """Refuses a run of other settings.

  Args:
    held: settings of the run that lies at `place`, from JSON.
    asked: those of now.
    place: for the message.

  Raises:
    ConfigError: they differ; the text says where, and how.
  """
  asked = json.loads(json.dumps(asked))
  other = [
      f"{name}={held.get(name)}, asked for {asked[name]}"
      for name in sorted(asked)
      if held.get(name) != asked[name]
  ]
  if other:
    raise ConfigError(
        f"--workdir={place}: must hold no run, or one of the same settings; "
        f"it has {'; '.join(other)}"
    )


def _checked(method):
  """The method of a RunFolder, OSErrors as ConfigErrors."""

  @functools.wraps(method)
  def checked(self, *arguments):
    with files.usable(self._asked_for):
      return method(self, *arguments)

  return checked


class RunFolder:
  """The files of one run, new or taken up again.

  `config.json` is written at once, `metrics.jsonl` a whole line per round,
  `clients.csv`, `params.npy` and `summary.json` at the end, the last as the
  sign that the run is finished. `checkpoints` is there until then.

  All that writes raises a ConfigError where the disk refuses.
  """

  def __init__(self, workdir: str | Path, asked: dict[str, Any]):
    """Looks; nothing is written yet.

    Args:
      workdir: the folder, which need not be there.
      asked: the settings.

    Raises:
      ConfigError: the folder holds a run of other settings, or other files.
    """
    self.workdir = Path(workdir).absolute()
    self._asked_for = workdir
    self._asked = asked
    self._config = self.workdir / "config.json"
    self._open = []
    self._look()

  @_checked
  def _look(self):
    """What the folder's config.json says, None if there is none yet."""
    if not self._config.exists():
      for name in _FILES:
        path = self.workdir / name
        # An empty metrics.jsonl is of a run that was killed at its start.
        if path.exists() and not (
            name == "metrics.jsonl" and path.is_file()
            and not path.stat().st_size
        ):
          raise ConfigError(
              f"--workdir={self._asked_for}: must hold no other program's "
              f"files; it has {name}"
          )
      return None
    try:
      held = json.loads(self._config.read_text())
      asked = dict(held["asked"])
    except (ValueError, KeyError, TypeError) as error:
      raise ConfigError(
          f"--workdir={self._asked_for}: must not hold another program's "
          "config.json"
      ) from error
    refuse_other(asked, self._asked, self._asked_for)
    return held

  @property
  def finished(self) -> bool:
    """Whether the run is done."""
    return (self.workdir / "summary.json").exists()

  @property
  def checkpoints(self) -> Path:
    """Where its checkpoints are."""
    return self.workdir / "checkpoints"

  def refuse_other_data(self, data: str | None):
    """Refuses a run of other data.

    Args:
      data: the fingerprint of those of now.

    Raises:
      ConfigError: the run that the folder holds had others.
    """
    held = {"data": self._look().get("data")}
    refuse_other(held, {"data": data}, self._asked_for)

  @_checked
  def begin(self, config: dict[str, Any]):
    """Claims the folder until `close`; it may be `finished` by now.

    Args:
      config: for config.json of a new run: the settings as used, `data` (what
        tells one set of data from another) and the environment.

    Raises:
      ConfigError: the folder cannot be written, another process runs there, or
        it has begun a run of other settings or other data.
    """
    with contextlib.ExitStack() as undo:
      undo.callback(self.close)
      self.workdir.mkdir(parents=True, exist_ok=True)
      # Never replaced, so that all who lock it lock the same file.
      self._metrics = (self.workdir / "metrics.jsonl").open("a", buffering=1)
      self._open.append(self._metrics)
      try:
        fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError as error:
        raise ConfigError(
            f"--workdir={self._asked_for}: must not be in use; a run is on "
            "there"
        ) from error
      # Another process may have begun, or ended, since the first look.
      if self._look() is None:
        _write(self._config, {**config, "asked": self._asked})
      else:
        self.refuse_other_data(config.get("data"))
      undo.pop_all()

  def close(self):
    """Lets go of the folder."""
    while self._open:
      # What could not be written was told when it was tried.
      with contextlib.suppress(OSError):
        self._open.pop().close()

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self.close()

  @_checked
  def keep(self, count: int) -> list[dict[str, Any]]:
    """Drops all but the first `count` rows, which a checkpoint stands for.

    Raises:
      ConfigError: there are fewer, or one is damaged.
    """
    with (self.workdir / "metrics.jsonl").open("rb+") as file:
      lines = [file.readline() for _ in range(count)]
      if not all(line.endswith(b"\n") for line in lines):
        raise ConfigError(
            f"--workdir={self._asked_for}: must hold the {count} rows that its "
            "checkpoint stands for; metrics.jsonl has lost some"
        )
      try:
        rows = _rows_of(lines)
      except ValueError as error:
        raise ConfigError(
            f"--workdir={self._asked_for}: must hold rows that can be read "
            f"({error})"
        ) from error
      file.truncate(sum(map(len, lines)))
    return rows

  def restart(self):
    """Drops all rows and checkpoints of an earlier start."""
    shutil.rmtree(self.checkpoints, ignore_errors=True)
    self.keep(0)

  @_checked
  def row(self, row: dict[str, Any]):
    """Appends one round to metrics.jsonl."""
    self._metrics.write(json.dumps(row) + "\n")

  @_checked
  def sync(self):
    """Brings the rows to the disk, before a checkpoint counts on them."""
    self._metrics.flush()
    os.fsync(self._metrics.fileno())

  @_checked
  def finish(
      self,
      summary: dict[str, Any],
      clients: dict[str, Sequence],
      params: np.ndarray,
  ):
    """Writes the closing files and removes the checkpoints.

    Args:
      summary: for summary.json.
      clients: columns of clients.csv, [N] each: `client` (names), `contributed`
        (elements that the server used, over all rounds) and others.
      params: [D], the final weights.
    """
    with files.written_whole(self.workdir / "clients.csv") as path:
      with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(clients)
        rows.writerows(zip(*clients.values(), strict=True))
    with files.written_whole(self.workdir / "params.npy") as path:
      with path.open("wb") as file:
        np.save(file, params)
    _write(self.workdir / "summary.json", summary)
    shutil.rmtree(self.checkpoints, ignore_errors=True)


@contextlib.contextmanager
def _named(path):
  """Names the file that is damaged; an OSError does so by itself."""
  try:
    yield
  except (ValueError, EOFError, csv.Error) as error:
    raise ValueError(f"{path.name}: {error}") from error


def _read_json(path):
  with _named(path):
    return json.loads(path.read_text())


def read_config(workdir: str | Path) -> dict[str, Any]:
  """config.json of a run."""
  return _read_json(Path(workdir) / "config.json")


def read_summary(workdir: str | Path) -> dict[str, Any]:
  """summary.json of a finished run."""
  return _read_json(Path(workdir) / "summary.json")


def read_params(workdir: str | Path) -> np.ndarray:
  """[D] f32, the final weights of a finished run."""
  path = Path(workdir) / "params.npy"
  with _named(path):
    return np.load(path, allow_pickle=False)


def _rows_of(lines):
  """The rows of metrics.jsonl; a ValueError names the line."""
  rows = []
  for number, line in enumerate(lines, 1):
    try:
      rows.append(json.loads(line))
    except ValueError as error:
      raise ValueError(
          f"metrics.jsonl, line {number}: no JSON ({error})"
      ) from error
  return rows


def read_rows(workdir: str | Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, in order."""
  with (Path(workdir) / "metrics.jsonl").open("rb") as file:
    return _rows_of(file)


def read_clients(workdir: str | Path) -> dict[str, list]:
  """The columns of clients.csv: names as text, all else as numbers."""
  path = Path(workdir) / "clients.csv"
  with _named(path), path.open(newline="") as file:
    header, *rows = csv.reader(file)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True))
    return {
        name: list(column if name == "client" else map(float, column))
        for name, column in columns.items()
    }
