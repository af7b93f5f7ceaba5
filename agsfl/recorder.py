"""Records a run: rounds become rows, and at the end a `Run`."""

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import jax
import numpy as np

from agsfl import hosts
from agsfl.clocks import CAUSES
from agsfl.config import Config
from agsfl.data.federated import FederatedData
from agsfl.errors import ConfigError, DivergedError, require
from agsfl.records import checkpoints, client_evaluations, fairness
from agsfl.records.folder import Extent, RunFolder
from agsfl.records.read import Run
from agsfl.records.strict_json import finite
from agsfl.records.summary import by_client, summarize
from agsfl.records.traffic import BYTES_PER_NUMBER
from agsfl.training.evaluation import Evaluation
from agsfl.types import PyTree, RoundInfo, RoundState

OnRow = Callable[[dict[str, Any]], None]

_Arguments = ParamSpec("_Arguments")


def _ends_the_run(
    method: Callable[Concatenate["Recorder", _Arguments], None],
) -> Callable[Concatenate["Recorder", _Arguments], None]:
  """A method of Recorder; a ConfigError in it becomes the outcome."""

  @functools.wraps(method)
  def checked(self, *args, **kwargs):
    try:
      method(self, *args, **kwargs)
    except ConfigError as error:
      self.outcome = error

  return checked


class Recorder:
  """Records one run in memory and, if it has one, in its folder.

  Attributes:
    config: the settings.
    start: the row of round 0; None before `begin`.
    rows: of all rounds so far.
    outcome: the Run, or the error that ended it; None until then.
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
      description: the content of config.json.
      folder: begun before the first row; None for a run in memory.
      states: of the folder, entered before the first row.
      every: rounds between saved states; 0 for none before the end.
      keeps_state: whether the last state stays after the end.
      on_row: called with each new row, first with that of round 0.
    """
    self.config = config
    self.extent = Extent(
        config.num_rounds, config.time_budget, config.seconds_budget
    )
    self.start: dict[str, Any] | None = None
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
    self._evaluations: list[np.ndarray] = []  # of a run without a folder
    # By client, over all rounds.
    self._totals = {
        name: np.zeros(len(data.client_names), np.int64)
        for name in ("rounds", "contributed")
    }

  def restore(self, like: PyTree) -> PyTree | None:
    """Goes back to the newest saved state, and drops the rows after it.

    Args:
      like: a saved state's structure, shapes and types.

    Returns:
      The state as it was saved; None if the run starts from the beginning.

    Raises:
      ConfigError: a file cannot be read, or there are more rounds than are
        asked for.
    """
    found = None
    if self._states is not None:
      found = self._states.newest((like, self._totals))
    done, state = 0, None
    if found is not None:
      done, (state, self._totals) = found
    if self._folder is not None:
      go_on = functools.partial(self._folder.go_on, done)
      self.start, self.rows = hosts.from_first(go_on)
    return state

  @_ends_the_run
  def begin(self, state: RoundState):
    """Evaluates the first weights, unless the run goes on from later ones.

    A loss that is not finite does not end the run here. It then ends in round
    1, with a gradient that is not finite.

    Args:
      state: before the next round.
    """
    if self.rows:
      return
    evaluation = self._evaluate(state.params)
    seconds = {} if self.config.clock is None else {"seconds": 0.0}
    self.start = {
        "round": 0, "time": 0.0, **seconds, **_evaluated(evaluation)
    }
    self._write(self.start, evaluation)

  @property
  def rounds_ahead(self) -> int:
    """Rounds until the next evaluation, saved state or end."""
    done = len(self.rows)
    periods = [self.config.eval_every]
    if self._every and self._states is not None:
      periods.append(self._every)
    return min(
        self.config.num_rounds - done,
        *(period - done % period for period in periods),
    )

  @_ends_the_run
  def add(
      self, infos: Sequence[RoundInfo], state: RoundState, seconds: float
  ):
    """Records rounds, and sets the outcome if the run ends with them.

    Args:
      infos: of the rounds, NumPy.
      state: after these rounds.
      seconds: wall time of these rounds.
    """
    for place, info in enumerate(infos, 1):
      self._seconds.append(seconds / len(infos))
      done = len(self.rows) + 1

      # A round whose numbers are not finite ends the run without a row.
      if not info.finite:
        self._diverge(done, "a gradient")
        return
      if not math.isfinite(info.k):
        self.outcome = DivergedError(
            f"round {done}: the controller's k is not finite"
        )
        return

      # The row, with an evaluation if one is due.
      passed = {"time": float(info.elapsed)}
      if info.timing is not None:
        passed["seconds"] = float(info.timing.seconds)
      last = self.extent.is_reached(done, passed)
      due = last or done % self.config.eval_every == 0
      evaluation = None
      # A call never goes beyond an evaluation, so only its last round has one.
      if due and place == len(infos):
        evaluation = self._evaluate_at(done, state)
        if evaluation is None:
          return
      self._append(info, evaluation)
      if last:
        self._finish(state, evaluation)

  def _evaluate_at(self, done, state):
    """The Evaluation; None if the loss is not finite, which ends the run."""
    evaluation = self._evaluate(state.params)
    if math.isfinite(evaluation.train_loss):
      return evaluation
    self._diverge(done, "the loss")
    return None

  def _append(self, info, evaluation):
    row = as_row(info, evaluation)
    self._count(info)
    self.rows.append(row)
    self._write(row, evaluation)

  def _write(self, row, evaluation):
    """Passes on a new row and its evaluation, which may be None."""
    record = None
    if evaluation is not None:
      record = client_evaluations.record(row["round"], evaluation)
    if self._folder is not None:
      self._folder.row(row, record)
    elif record is not None:
      self._evaluations.append(record)
    self._on_row(row)

  def _count(self, info):
    """Adds a round to the totals of the clients that took part."""
    rounds, contributed = self._totals["rounds"], self._totals["contributed"]
    clients = info.clients
    if clients is None:
      clients = np.arange(len(info.contributed))
    # Larger numbers are empty places, or clients of padding.
    there = clients < len(rounds)
    there[there] = self._data.clients.counts[clients[there]] > 0
    np.add.at(rounds, clients[there], 1)
    np.add.at(contributed, clients[there], info.contributed[there])

  def _finish(self, state, evaluation):
    clients = by_client(self._data, self._totals, evaluation)
    summary = summarize(self.rows[-1], self._seconds, clients)
    params = np.array(state.params)
    workdir: Path | None = None
    evaluations = None
    if self._folder is None:
      evaluations = np.stack(self._evaluations)
    else:
      workdir = self._folder.workdir
      if self._states is not None:
        self._states.wait()
      self._folder.finish(summary, clients, params)
    self.outcome = Run(
        self.rows, clients, summary, self._description, workdir, self.start,
        params, evaluations,
    )

  def _diverge(self, round_index, what):
    self.outcome = DivergedError(diverged(round_index, what, self.config))

  @_ends_the_run
  def end_if_reached(self, state: RoundState):
    """Ends a run that was restored after its last round.

    It was killed before its end was recorded. Or it was stopped, and now no
    more rounds are asked for.
    """
    done = len(self.rows)
    if not done or not self.extent.is_reached(done, self.rows[-1]):
      return
    evaluation = self._evaluate_at(done, state)
    if evaluation is not None:
      self.rows[-1] |= _evaluated(evaluation)
      if self._folder is not None:
        self._folder.replace_last(
            self.rows[-1], client_evaluations.record(done, evaluation)
        )
      self._finish(state, evaluation)

  def is_save_due(self, stopping: bool) -> bool:
    """Whether to save the state after these rows.

    Args:
      stopping: whether the run stops here.
    """
    if self._states is None:
      return False
    if self.outcome is not None:
      return isinstance(self.outcome, Run) and self._keeps_state
    return stopping or (self._every > 0 and len(self.rows) % self._every == 0)

  @_ends_the_run
  def save(self, state: PyTree):
    """Saves a state of the run, while the caller goes on.

    Args:
      state: after the last row, in the form that `restore` returns.
    """
    assert self._states is not None
    if self._folder is not None:
      self._folder.sync()
    self._states.save(len(self.rows), (state, self._totals))

  @_ends_the_run
  def settle(self):
    """Waits for writes; of a finished run the last state stays, or none."""
    if self._states is None or isinstance(self.outcome, Exception):
      return
    if self._folder is not None:
      self._folder.sync()  # the states to remove are those of this run
    if self.outcome is None:
      self._states.wait()
    elif self._keeps_state:
      self._states.keep_only(len(self.rows))
    else:
      self._states.remove()


def diverged(round_index: int, what: str, config: Config) -> str:
  """The message that numbers are not finite, with the flags that may help."""
  rates = {
      "learning_rate": config.learning_rate,
      "server_learning_rate": config.server_learning_rate,
  }
  if rates["server_learning_rate"] is None:
    del rates["server_learning_rate"]  # the server uses learning_rate
  elif config.sends_plain_gradients:
    del rates["learning_rate"]  # the clients send plain gradients
  flags = " or a smaller ".join(
      f"--{flag} than {rate:g}" for flag, rate in rates.items()
  )
  problem = f"round {round_index}: {what} is not finite"
  return f"{problem}; a smaller {flags} may help"


def as_row(
    info: RoundInfo, evaluation: Evaluation | None = None
) -> dict[str, Any]:
  """A round as one flat JSON object, without numbers by client.

  Args:
    info: NumPy.
    evaluation: of the weights after the round, if there was one.

  Returns:
    The row. `sign` is None if there was no estimate. `bytes_up` is the size of
    the largest message of a client, `bytes_down` that of the server to the
    client that needs most.

  Raises:
    ConfigError: a metric is not a single number.
  """
  for name, metric in info.metrics.items():
    require(np.ndim(metric) == 0, "metrics", name, "a single number")
  volume_down = float(info.volume_down)
  if info.behind is not None:
    volume_down += float(info.behind)
  row = {
      "round": int(info.round_index),
      "time": float(info.elapsed),
      "k": float(info.k),
      "k_probe": float(info.k_probe),
      "k_up": int(info.k_up),
      "k_down": int(info.k_down),
      "bytes_up": math.ceil(BYTES_PER_NUMBER * float(info.volume_up)),
      "bytes_down": math.ceil(BYTES_PER_NUMBER * volume_down),
      "minibatch_loss": finite(float(info.minibatch_loss))
      if info.heard is None or info.heard > 0
      else None,
      "sign": int(info.sign) if info.has_sign else None,
  }
  if info.heard is not None:
    row |= {
        "participants": int(info.heard),
        "dropped": int(info.lost or 0),
    }
  if info.all_up is not None:
    row |= {
        "all_bytes_up": math.ceil(BYTES_PER_NUMBER * float(info.all_up)),
        "all_bytes_down": math.ceil(
            BYTES_PER_NUMBER * float(info.all_down or 0)
        ),
    }
  if info.timing is not None:
    row |= _timed(info.timing)
  if evaluation is not None:
    row |= _evaluated(evaluation)
  return row | {name: finite(float(x)) for name, x in info.metrics.items()}


def _timed(timing):
  """The simulated seconds of a round; `slowest` is a row of clients.csv."""
  return {
      "seconds": float(timing.seconds),
      "late": int(timing.late),
      "slowest": int(timing.slowest) if timing.slowest >= 0 else None,
      "slow_because": CAUSES[int(timing.cause)],
  }


def _evaluated(evaluation):
  """The numbers of an evaluation; those by client as their spread."""
  numbers = {
      "train_loss": evaluation.train_loss,
      "test_loss": evaluation.test_loss,
      "test_accuracy": evaluation.test_accuracy,
      **evaluation.derived,
      **fairness.spread(evaluation.client_test_accuracy),
  }
  return {name: finite(float(value)) for name, value in numbers.items()}
