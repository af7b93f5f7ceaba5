"""A run from its first line to its last, in memory or in a folder."""

import contextlib
import dataclasses
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from agsfl import simulation
from agsfl.config import Config
from agsfl.data.federated import EMBEDDED, FederatedData, fingerprint, load
from agsfl.data.partitions import Partition
from agsfl.errors import ConfigError, StoppedError
from agsfl.records import checkpoints
from agsfl.records import folder as records
from agsfl.training.evaluation import Evaluation

CHECKPOINT_EVERY = 100
CHECKPOINTS_KEPT = 2


class Run(NamedTuple):
  """A finished run.

  Attributes:
    rows: a dict per round, as in metrics.jsonl.
    clients: columns by client, [N] each, as in clients.csv.
    summary: the last row, and what the run took.
    params: [D] f32, the final weights.
  """

  rows: list[dict[str, Any]]
  clients: dict[str, list]
  summary: dict[str, Any]
  params: np.ndarray


def fingerprint_of(dataset: str, partition: Partition) -> str:
  """The fingerprint of data as they are now; see `data.load`."""
  return fingerprint(load(dataset, partition))


def is_finished(
    config: Config,
    workdir: str | Path,
    told: Callable[[str, Partition], str] = fingerprint_of,
) -> bool:
  """Whether a folder holds this run, done.

  Args:
    config: the settings.
    workdir: the folder, which need not be there.
    told: `fingerprint_of`, perhaps with a cache for several runs.

  Raises:
    ConfigError: it holds a run of other settings or, done, of other data.
  """
  folder = records.RunFolder(workdir, dataclasses.asdict(config))
  if folder.finished and config.dataset not in EMBEDDED:
    folder.refuse_other_data(told(config.dataset, config.as_partition()))
  return folder.finished


def simulate(
    config: Config,
    *,
    data: FederatedData | None = None,
    workdir: str | Path | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    checkpoints_kept: int = CHECKPOINTS_KEPT,
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
  """Runs `config`; with a folder, goes on where a run there was stopped.

  What a run that was stopped and taken up leaves is bit for bit what it leaves
  in one go, but for the wall times of its summary. A finished run is read, not
  repeated.

  Args:
    config: the settings.
    data: what to train on; None means what the settings name.
    workdir: for the files of `records.RunFolder`; None means none.
    checkpoint_every: rounds between checkpoints, 0 for none.
    checkpoints_kept: the newest so many stay.
    on_row: called with each new row.
    should_stop: asked after each call of the compiled rounds.

  Returns:
    The run.

  Raises:
    ConfigError: a setting, a file or the folder cannot be used, or the folder
      holds a run of other settings or other data.
    DivergedError: a gradient or the loss was not finite.
    StoppedError: `should_stop` said so; a checkpoint is in the folder.
  """
  for name, value, least in (
      ("checkpoint_every", checkpoint_every, 0),
      ("checkpoints_kept", checkpoints_kept, 1),
  ):
    if value < least:
      raise ConfigError(f"--{name}={value}: must be at least {least}")
  asked = dataclasses.asdict(config)
  folder = records.RunFolder(workdir, asked) if workdir is not None else None
  if data is None:
    if workdir is not None and is_finished(config, workdir):
      return read(workdir)
    data = load(config.dataset, config.as_partition())
  elif folder is not None and folder.finished:
    folder.refuse_other_data(fingerprint(data))
    return read(workdir)
  built = simulation.build(config, data)
  contributed = np.zeros(len(data.clients.counts), np.int64)
  rows, kept_at, manager = [], 0, None
  with contextlib.ExitStack() as stack:
    if folder is not None:
      stack.enter_context(folder)
      folder.begin(describe(config, data, built.model.dim))
      if folder.finished:
        return read(workdir)
      manager = stack.enter_context(
          checkpoints.open_folder(folder.checkpoints, checkpoints_kept)
      )
      shapes = jax.eval_shape(built.pack, built.state)
      found = checkpoints.restore(manager, (shapes, contributed))
      if found is not None:
        kept_at, (state, contributed) = found
        built = built._replace(state=built.unpack(state))
      rows = folder.keep(kept_at)
    seconds = []
    every = checkpoint_every if manager is not None else 0
    for step in simulation.run(config, built, kept_at, every):
      row = simulation.as_row(step)
      rows.append(row)
      if folder is not None:
        folder.row(row)
      on_row(row)
      contributed += step.info.contributed
      seconds.append(step.seconds)
      if step.state is None or step.last:
        continue
      stop = should_stop()
      due = every and len(rows) % every == 0
      if manager is not None and (stop or due):
        folder.sync()
        checkpoints.save(
            manager, len(rows), (built.pack(step.state), contributed)
        )
      if stop:
        raise StoppedError(f"round {len(rows)}: stopped")
    clients = by_client(data, contributed, step.evaluation)
    summary = summarize(row, seconds, clients)
    params = np.array(step.state.params)
    if folder is not None:
      checkpoints.wait(manager)
      folder.finish(summary, clients, params)
  return Run(rows, clients, summary, params)


def by_client(
    data: FederatedData, contributed: np.ndarray, evaluation: Evaluation
) -> dict[str, list]:
  """The columns of clients.csv.

  Args:
    data: whose clients they are.
    contributed: [N].
    evaluation: of the final weights.
  """
  owners, counts = data.test_clients, data.clients.counts
  columns = {
      "client": data.client_names,
      "samples": counts,
      "test_samples": np.bincount(owners[owners >= 0], minlength=len(counts)),
      "test_loss": evaluation.client_test_loss,
      "test_accuracy": evaluation.client_test_accuracy,
      "contributed": contributed,
  }
  return {name: column.tolist() for name, column in columns.items()}


def _peak_memory():
  """Bytes that this process held at most."""
  try:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status).group(1))
  except OSError:  # macOS; on Linux this begins with the parent's
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def summarize(
    row: dict[str, Any], seconds: list[float], clients: dict[str, list]
) -> dict[str, Any]:
  """summary.json: the end of the run, and what it took.

  Args:
    row: the last.
    seconds: of each round of this process.
    clients: from `by_client`.
  """
  contributed = clients["contributed"]
  tested = np.array(clients["test_samples"]) > 0
  own = np.array(clients["test_accuracy"])[tested]
  summary = {
      **row,
      "first_round_seconds": seconds[0],
      "median_round_seconds": float(np.median(seconds)),
      "peak_memory_mb": _peak_memory() / 1e6,
      "least_contributed": min(contributed),
      "most_contributed": max(contributed),
  }
  if len(own):
    for name, share in (("min", 0), ("p10", 10), ("median", 50)):
      summary[f"client_test_accuracy_{name}"] = float(np.percentile(own, share))
  return summary


def read(workdir: str | Path) -> Run:
  """The finished run in a folder.

  Raises:
    ConfigError: a file of it cannot be read.
  """
  try:
    return Run(
        records.read_rows(workdir),
        records.read_clients(workdir),
        records.read_summary(workdir),
        records.read_params(workdir),
    )
  except (OSError, ValueError, KeyError) as error:
    raise ConfigError(
        f"--workdir={workdir}: must hold all files of its finished run "
        f"({error})"
    ) from error


def describe(
    config: Config, data: FederatedData, dim: int
) -> dict[str, Any]:
  """config.json: the settings with what None stands for, and where it ran."""
  counts = data.clients.counts
  return {
      **dataclasses.asdict(config),
      "controller": config.used_controller,
      "local_steps": config.used_local_steps(dim),
      "data": fingerprint(data),
      "num_weights": dim,
      "num_clients_used": len(counts),
      "num_train": int(counts.sum()),
      "num_test": len(data.test_rows),
      **records.environment(),
  }
