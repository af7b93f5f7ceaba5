"""The folder of one run: its files, and when a run may go on there."""

import contextlib
import fcntl
import functools
import io
import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, Self, TypeVar

import jax
import numpy as np

from agsfl import files, hosts
from agsfl.errors import refuse, require
from agsfl.records import client_evaluations, read, strict_json, tables
from agsfl.settings import require_utf8
from agsfl.words import whole

# Files of a run. Without a config.json they belong to another program.
_FILES = (
    "metrics.jsonl", client_evaluations.NAME, "clients.csv", "params.npy",
    "summary.json", "figures", "checkpoints",
)

_PACKAGES = ("agsfl", "jax", "jaxlib", "flax", "optax", "numpy")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Extent(NamedTuple):
  """How far a run is to go.

  Attributes:
    num_rounds: at most.
    time_budget: normalised time after which no round begins; None for no
      limit.
    seconds_budget: the same in simulated seconds.
  """

  num_rounds: int
  time_budget: float | None
  seconds_budget: float | None = None

  def is_reached(self, round_index: int, row: Mapping[str, Any]) -> bool:
    """Whether a run is at its end after a round with this time and seconds."""
    return round_index >= self.num_rounds or self.spent(row) is not None

  def spent(self, row: Mapping[str, Any]) -> str | None:
    """The column whose budget is spent; rounds compare it in float32 too."""
    for column, budget in (
        ("time", self.time_budget), ("seconds", self.seconds_budget)
    ):
      if budget is not None and np.float32(row[column]) >= np.float32(budget):
        return column
    return None


# Settings that may change when a run goes on, unless its identity has them.
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
  """Writes a JSON file to the disk, whole or not at all."""
  with files.written_whole(path) as temporary:
    temporary.write_text(
        strict_json.written(content, indent=2), encoding="utf-8"
    )


def refuse_other(on_disk: dict[str, Any], asked: dict[str, Any], setting: str):
  """Refuses a run of other settings.

  Args:
    on_disk: settings of the run in the folder, from JSON.
    asked: settings of the run that is to start.
    setting: names the place, such as "--workdir=runs/a".

  Raises:
    ConfigError: they differ; the text names each difference.
  """
  asked = json.loads(json.dumps(asked))
  other = [
      f"{name}={whole(on_disk.get(name))}, asked for {whole(asked.get(name))}"
      for name in sorted(on_disk.keys() | asked.keys())
      if on_disk.get(name) != asked.get(name)
  ]
  if other:
    refuse(
        setting,
        f"holds a run of other settings ({'; '.join(other)}); use another "
        "folder, or remove this one",
    )


def _refuses_in_one_line(
    method: Callable[Concatenate["RunFolder", _Arguments], _Result],
) -> Callable[Concatenate["RunFolder", _Arguments], _Result]:
  """A method of RunFolder, with errors of the disk as ConfigErrors."""

  @functools.wraps(method)
  def checked(self, *args, **kwargs):
    with files.usable(self._asked_for):
      return method(self, *args, **kwargs)

  return checked


def _writes(
    method: Callable[Concatenate["RunFolder", _Arguments], None],
) -> Callable[Concatenate["RunFolder", _Arguments], None]:
  """A method of RunFolder that only the first of several processes runs."""

  checked = _refuses_in_one_line(method)

  @functools.wraps(method)
  def of_first(self, *args, **kwargs):
    if hosts.is_first():
      checked(self, *args, **kwargs)

  return of_first


class RunFolder:
  """The files of one run, a new one or one that goes on.

  `config.json` is written first. `metrics.jsonl` gets a line for round 0, the
  evaluation of the first weights, and then a whole line per round.
  `client_evaluations.npy` gets a record per evaluation, before its line.
  `clients.csv`, `params.npy` and `summary.json` are written at the end, in this
  order: with a `summary.json` the run is finished. `checkpoints` has states.

  Every method that writes raises a ConfigError if the disk refuses. Of several
  processes the first one calls `begin` and `go_on`; the others write nothing.

  Attributes:
    workdir: absolute.
    setting: the folder's name in messages.
  """

  def __init__(
      self, workdir: str | Path, identity: dict[str, Any], extent: Extent
  ):
    """Looks into the folder; writes nothing yet.

    Args:
      workdir: the folder, which may not exist yet.
      identity: the settings in which a run of this folder must agree.
      extent: how far the run is to go.

    Raises:
      ConfigError: the folder holds a run of other settings, or other files.
    """
    require_utf8("workdir", str(workdir))
    self.workdir = files.expanded(workdir).absolute()
    self.setting = f"--workdir={workdir}"
    self._asked_for = workdir
    self._identity = identity
    self._extent = extent
    self._config = self.workdir / "config.json"
    self._content: dict[str, Any] = {}
    self._metrics: Any = None
    self._evaluations: client_evaluations.Writer | None = None
    self._look()

  @_refuses_in_one_line
  def _look(self) -> dict[str, Any] | None:
    """The folder's config.json, checked; None if there is none yet."""
    if not self._config.exists():
      for name in _FILES:
        path = self.workdir / name
        # A run that was killed at its start leaves an empty metrics.jsonl.
        empty = (
            name == "metrics.jsonl" and path.is_file()
            and not path.stat().st_size
        )
        if path.exists() and not empty:
          refuse(
              self.setting,
              f"has {name} but no config.json, so it is not the folder of a "
              "run; use another folder",
          )
      return None
    on_disk = read.read_config(self.workdir)
    # The extent of a run may change, if its identity does not contain it.
    settings = {
        name: value
        for name, value in on_disk["asked"].items()
        if name in self._identity or name not in _FREE
    }
    refuse_other(settings, self._identity, self.setting)
    return on_disk

  @property
  def finished(self) -> bool:
    """Whether the run has reached the extent that is asked for.

    Raises:
      ConfigError: it has gone beyond, or one of its files is damaged.
    """
    if not self._summary.exists():
      return False
    rows = read.read_run(self.workdir).rows
    self._require_ahead(rows)
    return self._extent.is_reached(len(rows), rows[-1])

  def _require_ahead(self, rows):
    """Refuses an extent that ends before the rounds that are already done."""
    num_rounds = self._extent.num_rounds
    require(
        len(rows) <= num_rounds,
        "num_rounds",
        num_rounds,
        f"at least {len(rows)}, because the run in {self.workdir} has done so "
        "many rounds; or use another --workdir",
    )
    before = rows[-2] if len(rows) > 1 else {"time": 0.0, "seconds": 0.0}
    if column := self._extent.spent(before):
      budget = getattr(self._extent, f"{column}_budget")
      refuse(
          f"--{column}_budget={whole(budget)}",
          f"must be more than {before[column]:g}, because the run in "
          f"{self.workdir} began its last round at this time; or use another "
          "--workdir",
      )

  @property
  def _summary(self):
    return self.workdir / "summary.json"

  @property
  def checkpoints(self) -> Path:
    """The folder of its states."""
    return self.workdir / "checkpoints"

  def refuse_other_data(self, data: str):
    """Refuses a run of other data.

    Args:
      data: the fingerprint of the data that are to be used.

    Raises:
      ConfigError: the run in the folder had other data.
    """
    on_disk = self._look() or {}
    refuse_other({"data": on_disk.get("data")}, {"data": data}, self.setting)

  @_refuses_in_one_line
  def begin(self, config: dict[str, Any]):
    """Locks the folder until `close`.

    Another process may just have finished the run: check `finished` again. The
    files of an earlier run do not change before `go_on`.

    Args:
      config: for config.json: the settings as used, `data` (the fingerprint of
        the data) and the environment.

    Raises:
      ConfigError: the folder cannot be written, another process runs there, or
        another process has begun a run of other settings or other data.
    """
    with contextlib.ExitStack() as undo:
      undo.callback(self.close)
      self.workdir.mkdir(parents=True, exist_ok=True)
      # This file is never replaced, so all processes lock the same file.
      self._metrics = (self.workdir / "metrics.jsonl").open(
          "a", buffering=1, encoding="utf-8"
      )
      try:
        fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except BlockingIOError:
        refuse(
            self.setting,
            "another run is writing to this folder now; wait until it ends, or "
            "use another folder",
        )
      # Since the first look another process may have begun a run, or ended it.
      on_disk = self._look()
      if on_disk is not None:
        self.refuse_other_data(config["data"])
      asked = asked_of(self._identity, self._extent, config["eval_every"])
      self._content = {**config, "asked": json.loads(json.dumps(asked))}
      if on_disk is None:
        write_json(self._config, self._content)
      undo.pop_all()

  def close(self):
    """Unlocks the folder."""
    opened = self._opened()
    self._metrics = self._evaluations = None
    for file in opened:
      # The write has already raised its error.
      with contextlib.suppress(OSError):
        file.close()

  def _opened(self):
    """The files that are open."""
    evaluations = self._evaluations and self._evaluations.file
    return [file for file in (self._metrics, evaluations) if file is not None]

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *exception):
    self.close()

  @_refuses_in_one_line
  def go_on(
      self, count: int
  ) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Removes all rows after the first `count`, and their evaluations.

    A finished run becomes unfinished.

    Args:
      count: rounds before the newest checkpoint, 0 if there is none.

    Returns:
      The row of round 0 and those of the first `count` rounds. The first is
      None if there is no checkpoint, or in a run of an earlier version.

    Raises:
      ConfigError: there are fewer rows or evaluations, or one is damaged. Or
        there are more than are asked for. Or a finished run has no checkpoint.
    """
    if not count and self._summary.exists():
      refuse(
          self.setting,
          "holds a finished run without its last state (it ran with "
          "keep_state=False, or its checkpoints were removed), so it cannot go "
          "on; use another folder, or remove this one",
      )
    with (self.workdir / "metrics.jsonl").open("rb+") as file:
      # The rows before the checkpoint.
      lines = [file.readline() for _ in range(count and count + 1)]
      if lines and not read.is_start(lines[0]):
        lines.pop()
      if not all(line.endswith(b"\n") for line in lines):
        refuse(
            self.setting,
            f"metrics.jsonl has lost some of the {count} rows before its "
            "checkpoint; use another folder, or remove this one",
        )
      on_disk = read.read_config(self.workdir)
      start, rows = read.parse_rows(
          self.workdir, lines, on_disk["num_weights"]
      )
      self._require_ahead(rows)
      evaluated = [] if start is None else [0]
      evaluated += [row["round"] for row in rows if "test_loss" in row]
      num_clients = on_disk["num_clients_used"]
      if evaluated:
        read.read_client_evaluations(
            self.workdir, num_clients, evaluated, may_have_more=True
        )

      # The run is unfinished, its extent may be new, and later rows go.
      self._summary.unlink(missing_ok=True)
      if on_disk["asked"] != self._content["asked"]:
        write_json(self._config, self._content)
      file.truncate(sum(map(len, lines)))
    self._evaluations = client_evaluations.Writer(
        self.workdir / client_evaluations.NAME, num_clients, evaluated
    )
    return start, rows

  @_writes
  def replace_last(self, row: dict[str, Any], evaluation: np.ndarray):
    """Writes the last row again, with the columns of an evaluation.

    It is one write of a longer line, so a killed process loses no row.

    Args:
      row: with these columns.
      evaluation: of all clients, see `client_evaluations.record`.
    """
    self.sync()
    self._append(evaluation)
    with (self.workdir / "metrics.jsonl").open("rb+") as file:
      *before, _ = file.readlines()
      file.seek(sum(map(len, before)))
      file.write(strict_json.written(row).encode())

  @_writes
  def row(self, row: dict[str, Any], evaluation: np.ndarray | None = None):
    """Appends one round to metrics.jsonl.

    Args:
      row: of the round; that of round 0 is first.
      evaluation: of all clients, if the row has one.
    """
    if evaluation is not None:
      self._append(evaluation)
    self._metrics.write(strict_json.written(row))

  def _append(self, evaluation):
    """Adds an evaluation to client_evaluations.npy."""
    assert self._evaluations is not None
    self._evaluations.append(evaluation)

  @_writes
  def sync(self):
    """Brings rows and evaluations to the disk, for a checkpoint needs them.

    Raises:
      ConfigError: the folder was removed or replaced during the run.
    """
    for file in self._opened():
      file.flush()
      os.fsync(file.fileno())
      try:
        there = Path(file.name).stat()
      except FileNotFoundError:
        there = None
      if there is None or not os.path.samestat(os.fstat(file.fileno()), there):
        refuse(
            self.setting,
            "another program removed or replaced this folder during the run",
        )

  @_writes
  def finish(
      self,
      summary: dict[str, Any],
      clients: Mapping[str, Sequence],
      params: np.ndarray,
  ):
    """Writes the files of a finished run.

    Args:
      summary: for summary.json.
      clients: columns of clients.csv, [N] each, from `summary.by_client`.
      params: [D], the final weights.
    """
    self.sync()
    with files.written_whole(self.workdir / "clients.csv") as path:
      tables.write_clients(path, clients)
    # NumPy's own writing to a file does not say why a disk refuses.
    weights = io.BytesIO()
    np.save(weights, params)
    with files.written_whole(self.workdir / "params.npy") as path:
      path.write_bytes(weights.getbuffer())
    write_json(self._summary, summary)
