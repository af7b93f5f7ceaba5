"""The folder of one run: what is written, and when the run may go on there."""

import contextlib
import fcntl
import functools
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import jax
import numpy as np

from agsfl import files
from agsfl.errors import refuse, require
from agsfl.records import read, tables

# What a run makes; without its config.json they are of something else.
_FILES = (
    "metrics.jsonl", "clients.csv", "params.npy", "summary.json", "figures",
    "checkpoints",
)

_PACKAGES = ("agsfl", "jax", "jaxlib", "flax", "optax", "numpy")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Extent(NamedTuple):
  """How far a run is to go.

  Attributes:
    num_rounds: at most.
    time_budget: normalised time after which no round begins; None: no end.
  """

  num_rounds: int
  time_budget: float | None

  def is_reached(self, round_index: int, elapsed: float) -> bool:
    """Whether a run that is so far has come to its end."""
    return round_index >= self.num_rounds or self.is_spent(elapsed)

  def is_spent(self, elapsed: float) -> bool:
    """Whether no time is left, in float32 as the rounds compare it."""
    if self.time_budget is None:
      return False
    return bool(np.float32(elapsed) >= np.float32(self.time_budget))


# What may change of a run that goes on, if its identity does not hold it.
_FREE = (*Extent._fields, "eval_every")


def asked_of(
    identity: dict[str, Any], extent: Extent, eval_every: int
) -> dict[str, Any]:
  """The settings as the user gave them, for config.json."""
  return {**identity, **extent._asdict(), "eval_every": eval_every}


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


def write_json(path: Path, content: Any):
  """Writes a JSON file whole or not at all; it reaches the disk."""
  with files.written_whole(path) as temporary:
    text = json.dumps(content, indent=2, allow_nan=False)
    temporary.write_text(text + "\n", encoding="utf-8")


def _line(row):
  """A row as a line of metrics.jsonl."""
  return json.dumps(row, allow_nan=False) + "\n"


def refuse_other(held: dict[str, Any], asked: dict[str, Any], setting: str):
  """Refuses a run of other settings.

  Args:
    held: settings of the run that is there, from JSON.
    asked: those of now.
    setting: that names the place, such as "--workdir=runs/a".

  Raises:
    ConfigError: they differ; the text says where, and how.
  """
  asked = json.loads(json.dumps(asked))
  other = [
      f"{name}={held.get(name)}, asked for {asked.get(name)}"
      for name in sorted(held.keys() | asked.keys())
      if held.get(name) != asked.get(name)
  ]
  if other:
    refuse(
        setting,
        f"holds a run of other settings ({'; '.join(other)}); use another "
        "folder, or remove this one",
    )


def _on_disk(
    method: Callable[Concatenate["RunFolder", _Arguments], _Result],
) -> Callable[Concatenate["RunFolder", _Arguments], _Result]:
  """The method of a RunFolder, with what a disk refuses as one line."""

  @functools.wraps(method)
  def checked(self, *args, **kwargs):
    with files.usable(self._asked_for):
      return method(self, *args, **kwargs)

  return checked


class RunFolder:
  """The files of one run, a new one or one that goes on.

  `config.json` is written at once, `metrics.jsonl` a whole line per round,
  `clients.csv`, `params.npy` and `summary.json` at the end, the last as the
  sign that the run is finished. `checkpoints` holds states.

  All that writes raises a ConfigError where the disk refuses.

  Attributes:
    workdir: absolute.
    setting: names the folder in messages.
  """

  def __init__(
      self, workdir: str | Path, identity: dict[str, Any], extent: Extent
  ):
    """Looks; nothing is written yet.

    Args:
      workdir: the folder, which need not be there.
      identity: the settings in which a run of this folder must agree.
      extent: how far the run is to go.

    Raises:
      ConfigError: the folder holds a run of other settings, or other files.
    """
    self.workdir = Path(workdir).expanduser().absolute()
    self.setting = f"--workdir={workdir}"
    self._asked_for = workdir
    self._identity = identity
    self._extent = extent
    self._config = self.workdir / "config.json"
    self._content: dict[str, Any] = {}
    self._metrics: Any = None
    self._look()

  @_on_disk
  def _look(self) -> dict[str, Any] | None:
    """What the folder's config.json says; None if there is none yet."""
    if not self._config.exists():
      for name in _FILES:
        path = self.workdir / name
        # An empty metrics.jsonl is of a run that was killed at its start.
        empty = (
            name == "metrics.jsonl" and path.is_file()
            and not path.stat().st_size
        )
        if path.exists() and not empty:
          refuse(
              self.setting,
              f"must hold no other program's files; it has {name}",
          )
      return None
    held = read.read_config(self.workdir)
    # How far a run goes may change, but where its identity says it.
    settings = {
        name: value
        for name, value in held["asked"].items()
        if name in self._identity or name not in _FREE
    }
    refuse_other(settings, self._identity, self.setting)
    return held

  @property
  def finished(self) -> bool:
    """Whether the run has gone as far as is asked for.

    Raises:
      ConfigError: it has gone further, or one of its files is damaged.
    """
    if not self._summary.exists():
      return False
    rows = read.read_run(self.workdir).rows
    self._require_ahead(rows)
    return self._extent.is_reached(len(rows), rows[-1]["time"])

  def _require_ahead(self, rows):
    """Refuses to end before the rounds that are done already."""
    num_rounds, time_budget = self._extent
    done = f"that the run in {self.workdir} has done; or use another --workdir"
    require(
        len(rows) <= num_rounds,
        "num_rounds",
        num_rounds,
        f"at least {len(rows)}, the rounds {done}",
    )
    before = rows[-2]["time"] if len(rows) > 1 else 0.0
    require(
        not self._extent.is_spent(before),
        "time_budget",
        time_budget,
        f"more than {before:g}, the time before the last round {done}",
    )

  @property
  def _summary(self):
    return self.workdir / "summary.json"

  @property
  def checkpoints(self) -> Path:
    """Where its states are."""
    return self.workdir / "checkpoints"

  def refuse_other_data(self, data: str):
    """Refuses a run of other data.

    Args:
      data: the fingerprint of those of now.

    Raises:
      ConfigError: the run that the folder holds had others.
    """
    held = self._look() or {}
    refuse_other({"data": held.get("data")}, {"data": data}, self.setting)

  @_on_disk
  def begin(self, config: dict[str, Any]):
    """Claims the folder until `close`; the run may be `finished` by now.

    Nothing of a run that is there changes before `go_on`.

    Args:
      config: for config.json: the settings as used, `data` (what tells one set
        of data from another) and the environment.

    Raises:
      ConfigError: the folder cannot be written, another process runs there, or
        it has begun a run of other settings or other data.
    """
    with contextlib.ExitStack() as undo:
      undo.callback(self.close)
      self.workdir.mkdir(parents=True, exist_ok=True)
      # Never replaced, so that all who lock it lock the same file.
      self._metrics = (self.workdir / "metrics.jsonl").open(
          "a", buffering=1, encoding="utf-8"
      )
      try:
        fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        refuse(self.setting, "must not be in use; a run is on there")
      # Another process may have begun, or ended, since the first look.
      held = self._look()
      if held is not None:
        self.refuse_other_data(config["data"])
      asked = asked_of(self._identity, self._extent, config["eval_every"])
      self._content = {**config, "asked": json.loads(json.dumps(asked))}
      if held is None:
        write_json(self._config, self._content)
      undo.pop_all()

  def close(self):
    """Lets go of the folder."""
    metrics, self._metrics = self._metrics, None
    if metrics is not None:
      # What could not be written was an error when it was tried.
      with contextlib.suppress(OSError):
        metrics.close()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception):
    self.close()

  @_on_disk
  def go_on(self, count: int) -> list[dict[str, Any]]:
    """Makes ready for the rows after the first `count`; drops what is there.

    A run that was finished is unfinished from here on.

    Args:
      count: rows before the newest checkpoint, 0 if there is none.

    Returns:
      The rows that stay.

    Raises:
      ConfigError: there are fewer rows, or one is damaged; more are done than
        are asked for; or a finished run has no checkpoint to go on from.
    """
    if not count and self._summary.exists():
      refuse(
          self.setting,
          "holds a finished run without its last state (it ran with "
          "keep_state=False, or its checkpoints were removed), so it cannot go "
          "on; use another folder, or remove this one",
      )
    with (self.workdir / "metrics.jsonl").open("rb+") as file:
      lines = [file.readline() for _ in range(count)]
      require(
          all(line.endswith(b"\n") for line in lines),
          "workdir",
          self.workdir,
          f"a folder with the {count} rows before its checkpoint; "
          "metrics.jsonl has lost some",
      )
      rows = [
          read.parse_row(self.workdir, number, line)
          for number, line in enumerate(lines, 1)
      ]
      self._require_ahead(rows)
      self._summary.unlink(missing_ok=True)
      held = read.read_config(self.workdir)
      if held["asked"] != self._content["asked"]:
        write_json(self._config, self._content)
      file.truncate(sum(map(len, lines)))
    return rows

  @_on_disk
  def replace_last(self, row: dict[str, Any]):
    """Writes the last row anew, with more columns.

    One write of a longer line: no death of the process can lose a row.
    """
    self.sync()
    with (self.workdir / "metrics.jsonl").open("rb+") as file:
      *before, _ = file.readlines()
      file.seek(sum(map(len, before)))
      file.write(_line(row).encode())

  @_on_disk
  def row(self, row: dict[str, Any]):
    """Appends one round to metrics.jsonl."""
    self._metrics.write(_line(row))

  @_on_disk
  def sync(self):
    """Brings the rows to the disk, before a checkpoint counts on them.

    Raises:
      ConfigError: the folder was removed or replaced while the run was on.
    """
    self._metrics.flush()
    os.fsync(self._metrics.fileno())
    ours = os.fstat(self._metrics.fileno())
    try:
      there = (self.workdir / "metrics.jsonl").stat()
    except FileNotFoundError:
      there = None
    if there is None or not os.path.samestat(ours, there):
      refuse(self.setting, "was removed or replaced while its run was on")

  @_on_disk
  def finish(
      self,
      summary: dict[str, Any],
      clients: Mapping[str, Sequence],
      params: np.ndarray,
  ):
    """Writes the closing files.

    Args:
      summary: for summary.json.
      clients: columns of clients.csv, [N] each: `client` (names), `contributed`
        (elements that the server used, over all rounds) and others.
      params: [D], the final weights.
    """
    self.sync()
    with files.written_whole(self.workdir / "clients.csv") as path:
      tables.write_clients(path, clients)
    with files.written_whole(self.workdir / "params.npy") as path:
      with path.open("wb") as file:
        np.save(file, params)
    write_json(self._summary, summary)
