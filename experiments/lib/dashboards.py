"""Rows of a run sent to dashboards as they come."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from absl import flags

from agsfl import hosts
from agsfl.config import Config
from agsfl.records import traffic
from agsfl.records.read import Run, read_run
from experiments.lib import trackers

_TENSORBOARD = flags.DEFINE_boolean(
    "tensorboard",
    False,
    "Write event files for TensorBoard to the folder tensorboard of --workdir. "
    "Evaluations are there against rounds, time and kilobytes.",
)
_WANDB = flags.DEFINE_string(
    "wandb",
    None,
    "Project of Weights & Biases to log to; WANDB_MODE=offline sends nothing.",
)
_TRACKIO = flags.DEFINE_string(
    "trackio",
    None,
    "Project of trackio to log to, on this machine. trackio show "
    "--project=PROJECT shows it.",
)


def _bytes_until(workdir: Path) -> Callable[[dict[str, Any]], float]:
  """A function of each row in turn: the bytes that all have sent until then."""
  total, config = 0.0, None

  def until(row):
    nonlocal total, config
    new = [row] if row["round"] else []
    if config is None:  # an earlier start of this run may have left rows
      run = read_run(workdir)
      new = run.rows[: max(row["round"] - 1, 0)] + new
      config = run.config
    if new:
      total += float(traffic.both_ways(Run(new, {}, {}, config))[-1])
    return total

  return until


@contextlib.contextmanager
def opened(
    config: Config, workdir: Path
) -> Iterator[Callable[[dict[str, Any]], None]]:
  """The dashboards that the flags ask for, as one function of a row.

  Raises:
    ConfigError: a package, W&B's project or its account is missing; with the
      first row, also if W&B cannot be reached.
  """
  with contextlib.ExitStack() as stack:
    sinks: list[trackers.Sink] = []
    if hosts.is_first():
      if _TENSORBOARD.value:
        sinks.append(stack.enter_context(trackers.tensorboard(workdir)))
      for flag, tracker in (
          (_WANDB, trackers.wandb), (_TRACKIO, trackers.trackio)
      ):
        if flag.value is not None:
          sinks.append(
              stack.enter_context(tracker(flag.value, config, workdir))
          )
    bytes_until = _bytes_until(workdir)

    def row(row):
      if not sinks:
        return
      row = row | {"bytes": bytes_until(row)}
      numbers = {
          name: value
          for name, value in row.items()
          if name != "round" and isinstance(value, (int, float))
      }
      for sink in sinks:
        sink(row["round"], numbers)

    yield row
