"""A run, from settings and data to its records."""

import contextlib
import functools
import json
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from agsfl import hosts, weights
from agsfl.clocks.options import file_of
from agsfl.config import Config
from agsfl.data.federated import FederatedData, fingerprint, load, validated
from agsfl.errors import StoppedError, refuse, refused, require
from agsfl.files import expanded
from agsfl.parts import Parts
from agsfl.programs import Simulation, build_from
from agsfl.recorder import OnRow, Recorder
from agsfl.records.checkpoints import States
from agsfl.records.folder import Extent, RunFolder, asked_of, environment
from agsfl.records.read import Run, read_run
from agsfl.rounds import Metric
from agsfl.stored import RowsPlace
from agsfl.types import KController, Loss, Sparsifier

CHECKPOINT_EVERY = 100
CHECKPOINTS_KEPT = 2


def is_finished(
    config: Config,
    workdir: str | Path,
    fingerprint_of: Callable[[Config], str] | None = None,
) -> bool:
  """Whether a folder has this run, and the run has reached its end.

  Args:
    config: the settings.
    workdir: the folder, which may not exist.
    fingerprint_of: from `data_fingerprints`; share it between several runs.

  Raises:
    ConfigError: the folder has a run of other settings, or of other data.
  """
  folder = RunFolder(workdir, identity_of(config, Parts()), extent_of(config))
  if not folder.finished:
    return False
  fingerprint_of = fingerprint_of or data_fingerprints()
  folder.refuse_other_data(fingerprint_of(config))
  return True


def data_fingerprints() -> Callable[[Config], str]:
  """Fingerprints of the data that settings name, as they are now.

  Returns:
    A function that loads each data set once, even if several runs use it.
  """

  of = functools.cache(lambda *settings: fingerprint(load(*settings)))
  return lambda config: of(*config.data_settings())


def extent_of(config: Config) -> Extent:
  """How far the run is to go."""
  return Extent(config.num_rounds, config.time_budget, config.seconds_budget)


def identity_of(config: Config, parts: Parts) -> dict[str, Any]:
  """Settings and parts that make two runs different, for config.json."""
  identity = config.identity() | parts.identity(config)
  # Files whose content decides the results.
  found: dict[str, Path] = {}
  of_weights = "init_from", "lora_from"
  for name in of_weights:
    if (place := getattr(config, name)) is not None:
      found[name] = weights.file_of(place)
  for name in ("clock", "availability"):
    if place := file_of(getattr(config, name)):
      found[name] = expanded(place)
  prints = dict(identity.get("fingerprints", {}))
  for name, file in found.items():
    problem = "must name a csv file that can be read"
    if name in of_weights:
      problem = weights.PROBLEM
    with refused(f"--{name}={getattr(config, name)}", problem):
      prints[name] = f"{zlib.crc32(file.read_bytes()):08x}"
  return identity | ({"fingerprints": prints} if prints else {})


def describe(
    config: Config, identity: dict[str, Any], data: FederatedData, dim: int
) -> dict[str, Any]:
  """config.json: settings, the values that None stands for, environment."""
  counts = data.clients.counts
  asked = asked_of(identity, extent_of(config), config.eval_every)
  return {
      **asked,
      "asked": asked,
      "controller": asked["controller"] or config.used_controller,
      "local_steps": config.used_local_steps(dim),
      "k": config.k_range(dim).k,
      "task_used": data.task,
      "data": fingerprint(data),
      "num_weights": dim,
      "num_clients_used": len(counts),
      "num_clients_training": int((counts > 0).sum()),
      "num_train": int(counts.sum()),
      "num_test": len(data.test_rows),
      **environment(),
  }


def _require_same(description: dict[str, Any]):
  """Refuses processes of one run that differ in settings or data."""
  own = json.dumps([description["asked"], description["data"]])
  if hosts.any_of(own != hosts.from_first(lambda: own)):
    problem = "must be all that differs between the processes of a run"
    refuse("--process_id", f"{problem}; settings and data must be the same")


def _begin(folder: RunFolder, description: dict[str, Any]) -> bool:
  """Locks the folder; whether another program has just ended the run there."""
  folder.begin(description)
  return folder.finished


def play(
    simulation: Simulation,
    recorders: Sequence[Recorder],
    should_stop: Callable[[], bool] = lambda: False,
):
  """Runs rounds until every run has its outcome.

  Args:
    simulation: one run or several side by side; its state is consumed.
    recorders: one for each run, with the rows before its state. Those with an
      outcome do not change.
    should_stop: called after each call of the compiled rounds; of several
      processes one is enough.

  Raises:
    StoppedError: `should_stop` said so; the states are saved.
  """
  state, stop = simulation.state, False

  def unfinished():
    return [
        (index, one)
        for index, one in enumerate(recorders)
        if one.outcome is None
    ]

  # A new run evaluates its first weights. Runs that were restored after their
  # last round end at once.
  begun = unfinished()
  for index, one in begun:
    own = simulation.lane(state, index)
    one.begin(own)
    one.end_if_reached(own)
  while (running := unfinished()) and not stop:
    # Rounds until a run has something else to do.
    length = min(one.rounds_ahead for _, one in running)
    length = min(length, simulation.rounds_per_call)
    start = time.perf_counter()
    state, infos = simulation.advance(state, length)
    seconds = (time.perf_counter() - start) / len(recorders)

    # Their rows, then the states that are due.
    for index, one in running:
      one.add(infos[index], simulation.lane(state, index), seconds)
    stop = hosts.any_of(should_stop())
    for index, one in running:
      if one.is_save_due(stop):
        one.save(simulation.pack(simulation.lane(state, index)))

  # Wait until all files are written.
  for _, one in begun:
    one.settle()
  if stopped := unfinished():
    done = max(len(one.rows) for _, one in stopped)
    raise StoppedError(f"round {done}: stopped")


@jax.transfer_guard("allow")  # every transfer of a run is meant
def simulate(
    config: Config,
    *,
    data: FederatedData | None = None,
    model: Any = None,
    sparsifier: Sparsifier | None = None,
    controller: KController | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    workdir: str | Path | None = None,
    checkpoint_every: int = CHECKPOINT_EVERY,
    checkpoints_kept: int = CHECKPOINTS_KEPT,
    keep_state: bool = True,
    on_row: OnRow = lambda row: None,
    on_stage: Callable[[str], None] = lambda stage: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Run:
  """Runs `config`; with a folder, goes on where a run there was stopped.

  A run that was stopped and went on has bit for bit the same results as one
  without a stop, except for the wall times of its summary. A finished run is
  read, not repeated. If more rounds or time are asked for, it goes on from its
  last state.

  Args:
    config: the settings.
    data: from `load` or `from_arrays`; None means the data that the settings
      name.
    model: a network of your own: an `agsfl.Model`, or anything with
      init(key, features) and apply(params, features), such as a Flax module;
      see `training.models.Network` for networks that draw random numbers.
    sparsifier: in place of the method that the settings name.
    controller: in place of the controller that the settings name.
    loss: (outputs [B, ...], labels [B, ...]) -> [B]; None means that of the
      task, such as cross entropy. See `types.Loss`.
    metrics: by name (RoundState after a round, RoundInfo) -> a number [], for
      each row; compiled into the round.
    workdir: the folder of the files, see `records.folder.RunFolder`; None for a
      run in memory.
    checkpoint_every: rounds between saved states, 0 for none before the end.
    checkpoints_kept: how many states stay until the run ends, the newest ones.
    keep_state: whether the last state stays after the end, so that the run can
      go on with more rounds; at most about 4 (N + 1) D bytes, and what the
      sparsifier, the server, the controller and asynchronous rounds add. A file
      of residuals has up to `checkpoints_kept` + 3 rows of D for each client.
    on_row: called with each new row; first with that of round 0, which has the
      losses of the first weights, but no k.
    on_stage: called with "loading data" and "compiling" before these begin.
      Compiling ends with the row of the first round.
    should_stop: called after each call of the compiled rounds.

  Returns:
    The run.

  Raises:
    ConfigError: a setting, a part, a file or the folder cannot be used, or the
      folder holds a run of other settings or other data.
    DivergedError: a gradient or the loss was not finite.
    StoppedError: `should_stop` said so; a state is saved in the folder.
  """
  # Check settings, parts and folder before loading data.
  for name, value, least in (
      ("checkpoint_every", checkpoint_every, 0),
      ("checkpoints_kept", checkpoints_kept, 1),
  ):
    require(value >= least, name, value, f"at least {least}")
  parts = Parts.of(model, sparsifier, controller, loss, metrics)
  identity = identity_of(config, parts)
  folder = None
  if data is not None:
    identity["dataset"] = "custom"
    data = validated(data)
  if workdir is not None:
    folder = RunFolder(workdir, identity, extent_of(config))
  if data is None:
    on_stage("loading data")
    data = load(*config.data_settings())
  if folder is not None and folder.finished:
    folder.refuse_other_data(fingerprint(data))
    return read_run(folder.workdir)

  # The compiled rounds and the recorder; a stopped run gets its last state.
  on_stage("compiling")
  rows = None
  if folder is not None:
    rows = RowsPlace(folder.checkpoints / "rows.bin", checkpoints_kept)
  simulation = build_from(config, data, parts, rows)
  description = describe(config, identity, data, simulation.model.dim)
  _require_same(description)
  # From now on the samples need to be on the devices only.
  data = data._replace(clients=data.clients.without("features", "labels"))
  with contextlib.ExitStack() as stack:
    states = None
    if folder is not None:
      stack.enter_context(folder)
      if hosts.from_first(functools.partial(_begin, folder, description)):
        return read_run(folder.workdir)
      states = stack.enter_context(
          States(folder.checkpoints, checkpoints_kept)
      )
    recorder = Recorder(
        config,
        data,
        simulation.evaluate[0],
        description=description,
        folder=folder,
        states=states,
        every=checkpoint_every,
        keeps_state=keep_state,
        on_row=on_row,
    )
    saved = recorder.restore(simulation.like)
    if saved is not None:
      simulation = simulation._replace(state=simulation.unpack([saved]))
      if simulation.has_rows and states is not None:
        states.keep_only(len(recorder.rows))
    play(simulation, [recorder], should_stop)
  if isinstance(recorder.outcome, Exception):
    raise recorder.outcome
  assert recorder.outcome is not None
  return recorder.outcome
