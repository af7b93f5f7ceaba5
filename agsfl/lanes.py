"""Runs that differ in numbers alone, as lanes of one program."""

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agsfl import devices, parts, runs, simulation
from agsfl.config import Config
from agsfl.data.federated import load
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.over_clients import CLIENT_CHUNK, LANE_CHUNK
from agsfl.programs import build_sweep
from agsfl.records import folder as records
from agsfl.training.evaluation import build_evaluate
from agsfl.types import RoundInfo


def together(
    configs: dict[Hashable, Config], most: int
) -> list[list[Hashable]]:
  """Splits runs into groups that can be one program.

  Args:
    configs: by label.
    most: lanes of a group.

  Returns:
    Labels by group, in order. Runs with a budget of time are alone, as they
    end at different rounds.
  """
  groups = {}
  for label, config in configs.items():
    alone = label if config.time_budget is not None else None
    groups.setdefault((parts.alike(config), alone), []).append(label)
  return [
      labels[start : start + most]
      for labels in groups.values()
      for start in range(0, len(labels), most)
  ]


def simulate(
    configs: dict[Path, Config],
    on_row: Callable[[Path, dict[str, Any]], None] = lambda workdir, row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[Path, runs.Run | Exception]:
  """Runs a group of `together` side by side, each into its folder.

  There are no checkpoints: a group that is stopped begins anew. What is in a
  folder of an earlier start is dropped, its checkpoints too.

  Args:
    configs: by folder.
    on_row: called with each folder's new row.
    should_stop: asked after each round.

  Returns:
    By folder the finished run, or the ConfigError or DivergedError that ended
    it; the others go on without it.

  Raises:
    ConfigError: what all have in common cannot be used, or the partition gives
      the lanes different numbers of samples.
    StoppedError: `should_stop` said so.
  """
  outcomes, lanes = {}, []
  with contextlib.ExitStack() as stack:
    for workdir, config in configs.items():
      try:
        lanes.append(_Lane(workdir, config))
      except ConfigError as error:
        outcomes[workdir] = error
    if not lanes:
      return outcomes
    model = _share_samples(lanes)
    for lane in lanes:
      stack.enter_context(lane.folder)
      lane.begin(model)
    going = [lane for lane in lanes if lane.outcome is None]
    if going:
      _run(going, model, on_row, should_stop)
  return outcomes | {lane.workdir: lane.outcome for lane in lanes}


def _share_samples(lanes):
  """Lets all lanes look at the samples of the first, which are the same.

  Args:
    lanes: of _Lane.

  Returns:
    The model of all.

  Raises:
    ConfigError: they have different numbers of clients or samples.
  """
  first = lanes[0]
  shape = lambda data: (len(data.clients.order), len(data.clients.counts))
  if len({shape(lane.data) for lane in lanes}) > 1:
    raise ConfigError(
        f"--partition={first.config.partition}: must give all lanes of a sweep "
        "as many clients and samples; run them one by one"
    )
  shared = first.data.clients
  for lane in lanes:
    own = lane.data.clients
    own = own.replace(images=shared.images, labels=shared.labels)
    lane.data = lane.data._replace(clients=own)
  return parts.build_model(first.config, first.data)


def _run(lanes, model, on_row, should_stop):
  """Runs rounds until every lane has its outcome."""
  first, num_clients = lanes[0].config, len(lanes[0].data.clients.counts)
  platform = jax.default_backend()
  client_chunk = first.client_chunk or CLIENT_CHUNK.get(platform)
  mesh = devices.client_mesh(simulation.num_devices(first, num_clients))
  build = functools.partial(parts.compose, first, model, client_chunk)
  keys = jnp.stack([jax.random.key(lane.config.seed) for lane in lanes])
  numbers = [parts.numbers_of(lane.config) for lane in lanes]
  numbers = jax.tree.map(lambda *each: jnp.stack(each), *numbers)
  sweep = devices.split_sweep(
      build_sweep(build, LANE_CHUNK.get(platform)),
      keys,
      numbers,
      mesh,
      own_rows=True,
  )
  placed = devices.split_lanes([lane.data.clients for lane in lanes], mesh)
  state = sweep.init(keys, numbers, placed.starts.shape[1])
  for lane in lanes:
    lane.place(model, placed, mesh)
  for done in range(1, first.num_rounds + 1):
    start = time.perf_counter()
    state, infos = sweep.step(keys, numbers, placed, state)
    infos = jax.device_get(infos)
    seconds = (time.perf_counter() - start) / len(lanes)
    due = done % first.eval_every == 0 or done == first.num_rounds
    for index, lane in enumerate(lanes):
      if lane.outcome is None:
        info = RoundInfo(*(x[index] for x in infos))
        params = state.params[index] if due else None
        lane.round(done, info, params, seconds, on_row)
    if all(lane.outcome is not None for lane in lanes):
      return
    if should_stop():
      raise StoppedError(f"round {done}: stopped")


class _Lane:
  """One run among others: its folder, its rows, its end.

  Attributes:
    workdir: its folder, as asked for.
    config: its settings.
    data: its samples.
    folder: its RunFolder.
    outcome: the Run, or the error that ended it; None until then.
  """

  def __init__(self, workdir, config):
    """Looks at the folder and loads the data; raises ConfigError."""
    self.workdir, self.config = workdir, config
    if config.time_budget is not None:
      raise ConfigError(
          f"--time_budget={config.time_budget}: must be unset in a lane, for "
          "all lanes run as many rounds"
      )
    self.folder = records.RunFolder(workdir, dataclasses.asdict(config))
    self.data = load(config.dataset, config.as_partition())
    self.outcome = None
    self._rows, self._seconds = [], []
    self._contributed = np.zeros(len(self.data.clients.counts), np.int64)

  def begin(self, model):
    """Claims the folder and empties it; the outcome is why it cannot be."""
    try:
      self.config.k_interval(model.dim)
      self.folder.begin(runs.describe(self.config, self.data, model.dim))
    except ConfigError as error:
      self.outcome = error
      return
    if self.folder.finished:  # by another process, a moment ago
      self.outcome = runs.read(self.workdir)
    else:
      self.folder.restart()

  def place(self, model, placed, mesh):
    """Makes the evaluation ready, on samples that `split_lanes` placed."""
    # The rows of the placed samples are all that an evaluation looks up.
    own = placed.replace(
        order=self.data.clients.order,
        starts=np.zeros(mesh.size, np.int32),
        counts=np.zeros(mesh.size, np.int32),
    )
    self._evaluate = build_evaluate(model, self.data, own, mesh)

  def round(self, done, info, params, seconds, on_row):
    """Records a round, and the run's end with the last."""
    info = info._replace(
        contributed=info.contributed[: len(self._contributed)]
    )
    if not info.finite:
      self._diverge(done, "a gradient")
      return
    evaluation = None if params is None else self._evaluate(params)
    if evaluation is not None and not np.isfinite(evaluation.train_loss):
      self._diverge(done, "the loss")
      return
    last = done == self.config.num_rounds
    step = simulation.Step(info, evaluation, seconds, None, last)
    row = simulation.as_row(step)
    self._rows.append(row)
    self._seconds.append(seconds)
    self._contributed += info.contributed
    self.folder.row(row)
    on_row(self.workdir, row)
    if last:
      clients = runs.by_client(self.data, self._contributed, evaluation)
      summary = runs.summarize(row, self._seconds, clients)
      params = np.array(params)
      self.folder.finish(summary, clients, params)
      self.outcome = runs.Run(self._rows, clients, summary, params)

  def _diverge(self, done, what):
    told = simulation.diverged(done, what, self.config)
    self.outcome = DivergedError(told)
