"""A run, and the one strict reader of what runs leave on disk."""

import contextlib
import csv
import dataclasses
import functools
import itertools
import math
import os
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from agsfl.errors import ConfigError, printable, refuse
from agsfl.files import expanded
from agsfl.names import AxisName
from agsfl.records import (
    client_evaluations,
    columns,
    npy,
    strict_json,
    tables,
    traffic,
)
from agsfl.records.columns import (
    COLUMNS,
    OF_TASKS,
    is_count,
    is_real,
    is_share,
    require,
)
from agsfl.words import natural_order

# Errors of files that are damaged or not there.
_DAMAGE = (OSError, ValueError, RecursionError, OverflowError, csv.Error)

# Files that a run writes at its end.
_LAST_FILES = ("clients.csv", "params.npy", "summary.json")

_CLIENT_COUNTS = ("samples", "test_samples", "contributed")
_CLIENT_COLUMNS = (*_CLIENT_COUNTS, "test_loss", "test_accuracy")


@dataclasses.dataclass(frozen=True, init=False, repr=False)
class Run:
  """A run, finished or not.

  Attributes:
    rows: a dict for each round, from round 1, as in metrics.jsonl.
    clients: columns by client, [N] each, as in clients.csv; empty if the run is
      unfinished.
    summary: the last row, the run's wall times and memory, and more, as in
      summary.json; empty if the run is unfinished.
    config: the settings as used and the environment, as in config.json.
    workdir: its folder; None for a run in memory.
    start: the evaluation of the first weights: a row of round 0, without k and
      what rounds have. None for runs of earlier versions.
  """

  rows: list[dict[str, Any]]
  clients: dict[str, list[Any]]
  summary: dict[str, Any]
  config: dict[str, Any]
  workdir: Path | None
  start: dict[str, Any] | None

  def __init__(
      self,
      rows: list[dict[str, Any]],
      clients: dict[str, list[Any]],
      summary: dict[str, Any],
      config: dict[str, Any],
      workdir: Path | None = None,
      start: dict[str, Any] | None = None,
      params: np.ndarray | None = None,
      client_evaluations: np.ndarray | None = None,
  ):
    """A run of these parts.

    Args:
      rows, clients, summary, config, workdir, start: see the class.
      params: [D] f32, the final weights; None if they are in `workdir`.
      client_evaluations: [E] records; None if they are in `workdir`.
    """
    fields = (rows, clients, summary, config, workdir, start)
    for field, value in zip(dataclasses.fields(self), fields, strict=True):
      object.__setattr__(self, field.name, value)
    if params is not None:
      vars(self)["params"] = params  # the cached property looks here first
    if client_evaluations is not None:
      vars(self)["client_evaluations"] = client_evaluations

  @functools.cached_property
  def params(self) -> np.ndarray:
    """[D] f32, the final weights, read from params.npy at the first use.

    Raises:
      ConfigError: there are no weights, or the file is damaged.
    """
    if self.workdir is None or not self.finished:
      refuse(
          str(self.workdir),
          "has no final weights (params.npy), because its run is not finished",
      )
    with _file(self.workdir, "params.npy") as path:
      return _read_params(path, self.config["num_weights"])

  @functools.cached_property
  def client_evaluations(self) -> np.ndarray:
    """[E] records, one for each row of `evaluated`, read at the first use.

    Their fields are `round` i32, and each client's `test_loss` [N] f32 and
    `test_accuracy` [N] f32, on its own test samples; NaN for a client without
    any. So `run.client_evaluations["test_accuracy"]` is [E, N].

    Raises:
      ConfigError: the file is damaged or missing, as for runs of version 0.1.
    """
    if self.workdir is None:
      refuse(str(self.workdir), f"has no {client_evaluations.NAME}")
    rounds = [row["round"] for row in self.evaluated]
    num_clients = self.config["num_clients_used"]
    records = read_client_evaluations(
        self.workdir, num_clients, rounds, may_have_more=not self.finished
    )
    if self.finished:
      with _file(self.workdir, client_evaluations.NAME):
        _check_last_record(records[-1], self.clients)
    return records

  @property
  def finished(self) -> bool:
    """Whether the run is done."""
    return bool(self.summary)

  @property
  def asked(self) -> dict[str, Any]:
    """The settings as the user gave them."""
    return self.config["asked"]

  @property
  def evaluated(self) -> list[dict[str, Any]]:
    """The rows with losses over all samples; `start` is the first."""
    start = [] if self.start is None else [self.start]
    return start + [row for row in self.rows if "test_loss" in row]

  @property
  def contributed(self) -> np.ndarray:
    """[N] i64, elements of each client that the server used in all rounds."""
    return np.array(self.clients.get("contributed", []), np.int64)

  @property
  def metrics(self) -> list[str]:
    """The names of all other columns: metrics of the task and the user."""
    names = dict.fromkeys(itertools.chain.from_iterable(self.rows))
    return [name for name in names if name not in COLUMNS - {*OF_TASKS}]

  def series(
      self, key: str, against: AxisName | str = "time"
  ) -> tuple[np.ndarray, np.ndarray]:
    """A column of the rows against another one.

    Args:
      key: name of the column, y.
      against: what x is: "round", "time", "seconds" (of runs with a clock), or
        "bytes", which all clients and the server have sent until then.

    Returns:
      (x, y), [points] f64 each, from the rows whose y is a finite number. The
      first point is that of the first weights, at x = 0, if they have y.
    """
    start = [] if self.start is None else [self.start]
    rows = start + self.rows
    if against == "bytes":
      xs = [0.0] * len(start) + traffic.both_ways(self).tolist()
    else:
      rows = [row for row in rows if against in row]
      xs = [row[against] for row in rows]
    x, y = np.array(
        [
            (x, row[key])
            for x, row in zip(xs, rows, strict=True)
            if row.get(key) is not None and math.isfinite(row[key])
        ],
        float,
    ).reshape(-1, 2).T
    return x, y

  def __repr__(self) -> str:
    state = "finished" if self.finished else "unfinished"
    where = f", {self.workdir}" if self.workdir else ""
    return f"Run({state}, {len(self.rows)} rounds{where})"


def find_runs(folder: str | Path) -> list[Path]:
  """The runs of a folder: itself, or all runs below it.

  Symbolic links are followed. A run that is reached twice counts once. The
  folder of a run is not searched further.

  Args:
    folder: as the user gave it; ~ is the home folder.

  Returns:
    Folders that hold a config.json; seed2 comes before seed10.

  Raises:
    ConfigError: the folder is not there, cannot be read, or holds no run.
  """
  root = expanded(folder)

  def cannot_be_read(error):
    # Another process may remove a folder during the search.
    if not isinstance(error, FileNotFoundError):
      refuse(str(error.filename), f"cannot be read ({error.strerror})")

  if not root.is_dir():
    problem = "is no folder" if root.exists() else "there is no such folder"
    refuse(str(root), problem)
  found, seen = [], set()
  for place, below, files in os.walk(
      root, onerror=cannot_be_read, followlinks=True
  ):
    below.sort()  # so that always the same one of two links counts
    real = os.path.realpath(place)
    if real in seen:
      below.clear()
      continue
    seen.add(real)
    if "config.json" in files:
      found.append(Path(place))
      below.clear()
  if not found:
    refuse(str(root), "holds no run: there is no config.json in it or below it")
  return sorted(found, key=natural_order)


def read_all(*folders: str | Path) -> list[Run]:
  """The runs of several folders, each once.

  Args:
    *folders: see `find_runs`.

  Returns:
    The runs, also unfinished ones.

  Raises:
    ConfigError: no folder is given; see also `find_runs` and `read_run`.
  """
  if not folders:
    raise ConfigError("no folder of runs is given, such as runs/first")
  found: dict[Path, Path] = {}
  for folder in folders:
    for workdir in find_runs(folder):
      found.setdefault(workdir.resolve(), workdir)
  return [read_run(workdir) for workdir in found.values()]


def read_run(workdir: str | Path) -> Run:
  """Reads a run and checks that it is whole and that its files agree.

  Args:
    workdir: its folder.

  Returns:
    The run. Without a summary.json it is unfinished; then a last line that was
    not written whole is no row.

  Raises:
    ConfigError: a file is missing or damaged; the text names it and the line.
  """
  workdir = expanded(workdir)
  config = read_config(workdir)
  finished = (workdir / "summary.json").exists()
  start, rows = _read_rows(workdir, config["num_weights"], finished)
  if not finished:
    return Run(rows, {}, {}, config, workdir, start)
  summary = read_summary(workdir)
  with _file(workdir, "summary.json"):
    _check_end(summary, rows)
  with _file(workdir, "clients.csv") as path:
    clients = tables.read_clients(path)
    _check_clients(clients, config, len(rows))
  return Run(rows, clients, summary, config, workdir, start)


def read_config(workdir: Path) -> dict[str, Any]:
  """config.json of a run; raises ConfigError."""
  with _file(workdir, "config.json") as path:
    config = strict_json.parsed(path.read_bytes())
    _check_config(config)
  return config


def read_summary(workdir: Path) -> dict[str, Any]:
  """summary.json of a finished run; raises ConfigError."""
  with _file(workdir, "summary.json") as path:
    summary = strict_json.parsed(path.read_bytes())
    columns.check(summary)
  return summary


def read_client_evaluations(
    workdir: Path, num_clients: int, rounds: list[int], *, may_have_more: bool
) -> np.ndarray:
  """[E] of a run's records, see `client_evaluations.read`.

  Raises:
    ConfigError: the file is damaged, or cannot be read.
  """
  with _file(workdir, client_evaluations.NAME) as path:
    return client_evaluations.read(
        path, num_clients, rounds, may_have_more=may_have_more
    )


def is_start(line: bytes) -> bool:
  """Whether a line of metrics.jsonl is the row of round 0."""
  with contextlib.suppress(*_DAMAGE):
    return strict_json.parsed(line).get("round") == 0
  return False


def parse_rows(
    workdir: Path, lines: list[bytes], num_weights: int
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
  """The first rows of metrics.jsonl.

  Args:
    workdir: of the run, for messages.
    lines: of the file, from its first one.
    num_weights: D.

  Returns:
    The row of round 0, or None if the file has none, and those of the rounds.

  Raises:
    ConfigError: a line is no row of its round, or does not follow the row
      before it.
  """
  start = None
  rows: list[dict[str, Any]] = []
  for number, line in enumerate(lines, 1):
    with _file(workdir, f"metrics.jsonl, line {number}"):
      row = strict_json.parsed(line)
      columns.check(row)
      if number == 1 and row["round"] == 0:
        start = row
        continue
      require(row["round"] == len(rows) + 1, "round", row["round"])
      for name in ("k_up", "k_down"):
        require(row[name] <= num_weights, name, row[name])
      if rows and row["time"] < rows[-1]["time"]:
        raise ValueError(f"time is {row['time']}, less than one line before")
    rows.append(row)
  return start, rows


def _read_rows(workdir, num_weights, finished):
  with _file(workdir, "metrics.jsonl") as path:
    # A run that was stopped at its start may not have the file.
    content = path.read_bytes() if finished or path.exists() else b""
    *lines, rest = content.split(b"\n")
    if rest and finished:
      raise ValueError("its last line is not whole")
  return parse_rows(workdir, lines, num_weights)


@contextlib.contextmanager
def _file(workdir: Path, name: str) -> Iterator[Path]:
  """The path of a run's file; errors become one line that names both."""
  try:
    yield workdir / name
  except _DAMAGE as error:
    problem = f"{name} is damaged: {error}"
    if isinstance(error, OSError):
      problem = f"{name} cannot be read ({error.strerror or error})"
    if name in _LAST_FILES:
      problem += (
          "; if you remove summary.json, the command of this run writes it "
          "again"
      )
    raise ConfigError(printable(f"{workdir}: {problem}")) from error


def _check_config(config):
  asked = config.get("asked")
  require(isinstance(asked, dict), "asked", asked)
  for name in ("method", "controller"):
    value = config.get(name)
    require(isinstance(value, str), name, value)
  for name in ("num_weights", "num_clients_used", "num_rounds"):
    value = config.get(name)
    require(is_count(value) and 0 < value < 2**31, name, value)
  # Runs of an earlier version may lack these.
  for name in ("num_train", "num_test", "num_clients_training"):
    value = config.get(name, 0)
    require(is_count(value), name, value)
  _check_values("", config)


def _check_values(name, value):
  """Refuses numbers that are not finite, and text that cannot be printed."""
  if isinstance(value, dict):
    for key, inner in value.items():
      _check_values("a name", key)
      _check_values(key, inner)
  elif isinstance(value, list):
    for inner in value:
      _check_values(name, inner)
  elif isinstance(value, str):
    columns.check_text(name, value)
  elif not isinstance(value, bool) and value is not None:
    require(is_real(value), name, value)


def _check_end(summary, rows):
  """Refuses a summary that does not belong to these rows."""
  if summary["round"] != len(rows) or not rows:
    raise ValueError(
        f"round is {summary['round']}, metrics.jsonl has {len(rows)} rows"
    )
  if "test_loss" not in rows[-1]:
    raise ValueError("the last row of metrics.jsonl has no test_loss")
  for name, value in rows[-1].items():
    known = strict_json.finite
    if name not in summary or known(summary[name]) != known(value):
      raise ValueError(
          f"{name} is {reprlib.repr(summary.get(name))}, in the last row "
          f"{reprlib.repr(value)}"
      )


def _check_clients(clients, config, num_rounds):
  """Refuses columns of clients that do not belong to this run."""
  lacking = [name for name in _CLIENT_COLUMNS if name not in clients]
  if lacking:
    raise ValueError(f"no column {', '.join(lacking)}")
  num_clients = config["num_clients_used"]
  if len(clients["client"]) != num_clients:
    raise ValueError(
        f"{len(clients['client'])} clients, config.json has {num_clients}"
    )
  for name in (*_CLIENT_COUNTS, "rounds"):
    for value in clients.get(name, []):
      require(is_count(value), name, value)
  for value in clients.get("rounds", []):
    require(value <= num_rounds, "rounds", value)
  most = config["num_weights"] * num_rounds
  for value in clients["contributed"]:
    require(value <= most, "contributed", value)
  for value in clients["test_accuracy"]:
    require(is_share(value), "test_accuracy", value)
  samples, tested = sum(clients["samples"]), sum(clients["test_samples"])
  if samples != config.get("num_train", samples):
    raise ValueError(
        f"{samples} samples, config.json has {config['num_train']}"
    )
  if tested > config.get("num_test", tested):
    raise ValueError(
        f"{tested} test samples, config.json has {config['num_test']}"
    )


def _check_last_record(last, clients):
  """Refuses a last evaluation of clients that is not that of clients.csv."""
  for name in ("test_loss", "test_accuracy"):
    with np.errstate(over="ignore"):
      values = np.array(clients[name], np.float32)
    if not np.array_equal(last[name], values, equal_nan=True):
      raise ValueError(f"its last {name} are not those of clients.csv")


def _read_params(path, num_weights):
  """[D] f32 of an npy file; its header is checked before the data are read."""
  with path.open("rb") as file:
    shape, dtype = npy.read_header(file)
    if (shape, dtype) != ((num_weights,), np.dtype("<f4")):
      raise ValueError(
          f"must hold [{num_weights}] float32, not {list(shape)} {dtype}"
      )
    content = bytearray(file.read())
    if len(content) != 4 * num_weights:
      raise ValueError(f"must hold {num_weights} numbers, not more or less")
  return np.frombuffer(content, "<f4")
