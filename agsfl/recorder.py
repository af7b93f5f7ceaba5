"""One run as it goes: rounds become rows, and in the end a `Run`."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from agsfl.config import Config
from agsfl.data.federated import FederatedData
from agsfl.errors import DivergedError
from agsfl.records import checkpoints
from agsfl.records.folder import Extent, RunFolder
from agsfl.records.read import Run
from agsfl.records.summary import by_client, summarize
from agsfl.training.evaluation import Evaluation
from agsfl.types import PyTree, RoundInfo, RoundState

_BYTES_PER_NUMBER = 4

OnRow = Callable[[dict[str, Any]], None]


class Recorder:
  """Records one run, in memory and, where there is one, in a folder.

  Attributes:
    config: the settings.
    rows: of all rounds so far.
    outcome: the Run, or the error that ended it; None while it goes on.
  """

  def __init__(
      self,
      config: Config,
      data: FederatedData,
      evaluate: Callable[[jax.Array], Evaluation],
      *,
      description: dict[str, Any],
      folder: RunFolder | None = None,
      states: checkpoints.States | None = None,
      every: int = 0,
      keeps_state: bool = False,
      on_row: OnRow = lambda row: None,
  ):
    """Begins with no rows.

    Args:
      config: the settings.
      data: what is trained on.
      evaluate: [D] weights -> Evaluation.
      description: what config.json says.
      folder: entered and begun; None for none.
      states: where states of the run are saved; None for nowhere, or later
        by `save_in`.
      every: rounds between saved states; 0 for none on the way.
      keeps_state: whether the last state stays after the end.
      on_row: called with each new row.
    """
    self.config = config
    self.extent = Extent(config.num_rounds, config.time_budget)
    self.rows: list[dict[str, Any]] = []
    self.outcome: Run | Exception | None = None
    self._every = every
    self._keeps_state = keeps_state
    self._data = data
    self._evaluate = evaluate
    self._description = description
    self._folder = folder
    self._states = states
    self._on_row = on_row
    self._seconds: list[float] = []
    self._contributed = np.zeros(len(data.client_names), np.int64)
    self._evaluation: Evaluation | None = None

  def save_in(self, states: checkpoints.States):
    """Names where states are saved, of a run that has begun nothing yet."""
    self._states = states

  def restore(self, like: PyTree) -> PyTree | None:
    """Goes back to the newest saved state, and drops the rows after it.

    Args:
      like: a saved state's structure, shapes and types.

    Returns:
      The state as it was saved; None where the run begins anew.

    Raises:
      ConfigError: what is there can't be read, or has more rounds than are
        asked for.
    """
    found = None
    if self._states is not None:
      found = self._states.newest((like, self._contributed))
    done = 0
    state = None
    if found is not None:
      done, (state, self._contributed) = found
    if self._folder is not None:
      self._folder.require_ahead(done)
      self.rows = self._folder.truncate(done)
    return state

  def restart(self):
    """Begins anew: drops all rows and saved states."""
    self.rows = []
    self._contributed[:] = 0
    if self._states is not None:
      self._states.clear()
    if self._folder is not None:
      self._folder.truncate(0)

  @property
  def stops(self) -> list[int]:
    """Every so many rounds there is something to do beside rounds."""
    saves = self._every and self._states is not None
    return [self.config.eval_every, *([self._every] if saves else [])]

  def add(
      self, infos: Sequence[RoundInfo], state: RoundState, seconds: float
  ):
    """Records rounds; sets the outcome if the run ends with them.

    Args:
      infos: of the rounds, NumPy; all clients, those of padding last.
      state: after them.
      seconds: that they took.
    """
    for place, info in enumerate(infos, 1):
      self._seconds.append(seconds / len(infos))
      done = len(self.rows) + 1
      if not info.finite:
        self._diverge(done, "a gradient")
        return
      last = self.extent.is_reached(done, info.elapsed)
      due = last or done % self.config.eval_every == 0
      evaluation = None
      # Only the last of these rounds can be due: calls end at evaluations.
      if due and place == len(infos):
        evaluation = self._evaluate(state.params)
        if not math.isfinite(evaluation.train_loss):
          self._diverge(done, "the loss")
          return
      self._append(info, evaluation)
      if last:
        self._finish(state, evaluation)

  def _append(self, info, evaluation):
    row = as_row(info, evaluation)
    self._contributed += info.contributed[: len(self._contributed)]
    self.rows.append(row)
    if self._folder is not None:
      self._folder.row(row)
    self._on_row(row)

  def _finish(self, state, evaluation):
    clients = by_client(self._data, self._contributed, evaluation)
    summary = summarize(self.rows[-1], self._seconds, clients)
    params = np.array(state.params)
    workdir: Path | None = None
    if self._folder is not None:
      workdir = self._folder.workdir
      if self._states is not None:
        self._states.wait()
      self._folder.finish(summary, clients, params)
    self.outcome = Run(
        self.rows, clients, summary, self._description, workdir, params
    )

  def _diverge(self, round_index, what):
    self.outcome = DivergedError(diverged(round_index, what, self.config))

  def end_if_reached(self, state: RoundState):
    """Ends a run that was stopped between its last round and its records."""
    if self.rows:
      last = self.rows[-1]
      if self.extent.is_reached(last["round"], last["time"]):
        evaluation = self._evaluate(state.params)
        self.rows[-1] = last | _evaluated(evaluation)
        self._finish(state, evaluation)

  def is_save_due(self, stopping: bool) -> bool:
    """Whether the state after these rows is to be saved.

    Args:
      stopping: whether the run stops here.
    """
    if self._states is None:
      return False
    if self.outcome is not None:
      return isinstance(self.outcome, Run) and self._keeps_state
    return stopping or (self._every > 0 and len(self.rows) % self._every == 0)

  def save(self, state: PyTree):
    """Saves a state of the run, while the caller goes on.

    Args:
      state: after the last row, as `restore` gives it back.
    """
    assert self._states is not None
    if self._folder is not None:
      self._folder.sync()
    self._states.save(len(self.rows), (state, self._contributed))

  def settle(self):
    """Waits for what is being written; of a finished run one state stays."""
    if self._states is None:
      return
    if not isinstance(self.outcome, Run):
      self._states.wait()
    elif self._keeps_state:
      self._states.keep_only(len(self.rows))
    else:
      self._states.remove()


def diverged(round_index: int, what: str, config: Config) -> str:
  """Says that numbers are not finite, and which flag may help."""
  flag, value = "learning_rate", config.learning_rate
  if config.server_learning_rate is not None:
    flag, value = "server_learning_rate", config.server_learning_rate
  return (
      f"round {round_index}: {what} is not finite; a smaller --{flag} than "
      f"{value:g} may help"
  )


def as_row(
    info: RoundInfo, evaluation: Evaluation | None = None
) -> dict[str, Any]:
  """A round as one flat JSON object; what is per client is left out.

  Args:
    info: NumPy.
    evaluation: of the weights after the round, if there was one.

  Returns:
    The row. `sign` is None where there was no estimate. `bytes_up` is the
    message of one client, `bytes_down` that of the server.
  """
  row = {
      "round": int(info.round_index),
      "time": float(info.elapsed),
      "k": float(info.k),
      "k_probe": float(info.k_probe),
      "k_up": int(info.k_up),
      "k_down": int(info.k_down),
      "bytes_up": _BYTES_PER_NUMBER * int(info.volume_up),
      "bytes_down": _BYTES_PER_NUMBER * int(info.volume_down),
      "minibatch_loss": float(info.minibatch_loss),
      "sign": int(info.sign) if info.has_sign else None,
  }
  if evaluation is not None:
    row |= _evaluated(evaluation)
  return row | {name: _number(x) for name, x in info.metrics.items()}


def _evaluated(evaluation):
  """The numbers of an evaluation that are not per client."""
  return {
      name: _number(value)
      for name, value in evaluation._asdict().items()
      if np.ndim(value) == 0
  }


def _number(value):
  """A number for JSON, which has neither NaN nor infinity."""
  value = float(value)
  return value if math.isfinite(value) else None
