"""What a run leaves on disk; the only file of the library that writes."""

import csv
import json
import os
import platform
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from agsfl.errors import ConfigError

# What a run makes late; a folder that has one of these is taken.
_FILES = ("metrics.jsonl", "clients.csv", "summary.json", "figures")

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


def _replace(path: Path, text: str):
  """Writes a file whole or not at all."""
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


class RunWriter:
  """The files of one run.

  `config.json` is written at once, `metrics.jsonl` a whole line per round,
  `clients.csv` and `summary.json` at the end.
  """

  def __init__(self, workdir: str | Path, config: dict[str, Any]):
    """Claims the folder.

    Args:
      workdir: made if need be.
      config: all settings and the environment.

    Raises:
      ConfigError: the folder cannot be written or already holds a run.
    """
    self.workdir = Path(workdir)
    try:
      self.workdir.mkdir(parents=True, exist_ok=True)
      for name in _FILES:
        if (self.workdir / name).exists():
          raise ConfigError(
              f"--workdir={workdir}: must not hold a run yet; it has {name}"
          )
      _replace(
          self.workdir / "config.json", json.dumps(config, indent=2) + "\n"
      )
      self._metrics = (self.workdir / "metrics.jsonl").open("x", buffering=1)
    except OSError as error:
      raise ConfigError(
          f"--workdir={workdir}: must be a folder that can be written "
          f"({error.strerror})"
      ) from error

  def __enter__(self):
    return self

  def __exit__(self, *exception):
    self._metrics.close()

  def row(self, row: dict[str, Any]):
    """Appends one round to metrics.jsonl."""
    self._metrics.write(json.dumps(row) + "\n")

  def finish(
      self,
      summary: dict[str, Any],
      clients: dict[str, Sequence],
  ):
    """Writes the closing files.

    Args:
      summary: for summary.json.
      clients: columns of clients.csv, [N] each: `client` (names), `contributed`
        (elements that the server used, over all rounds) and others.
    """
    with (self.workdir / "clients.csv").open("w", newline="") as file:
      rows = csv.writer(file)
      rows.writerow(clients)
      rows.writerows(zip(*clients.values(), strict=True))
    _replace(
        self.workdir / "summary.json", json.dumps(summary, indent=2) + "\n"
    )


def read_rows(workdir: str | Path) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl, in order."""
  with (Path(workdir) / "metrics.jsonl").open() as file:
    return [json.loads(line) for line in file]


def read_clients(workdir: str | Path) -> dict[str, list]:
  """The columns of clients.csv: names as text, all else as numbers."""
  with (Path(workdir) / "clients.csv").open(newline="") as file:
    header, *rows = csv.reader(file)
  columns = dict(zip(header, zip(*rows, strict=True), strict=True))
  return {
      name: list(column if name == "client" else map(float, column))
      for name, column in columns.items()
  }
