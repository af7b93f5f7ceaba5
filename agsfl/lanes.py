"""Runs that differ in numbers alone, as lanes of one program."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from agsfl import devices, records, runs, simulation
from agsfl.config import Config
from agsfl.data import load
from agsfl.errors import ConfigError, DivergedError
from agsfl.evaluation import build_evaluate
from agsfl.over_clients import CLIENT_CHUNK, LANE_CHUNK
from agsfl.programs import build_sweep
from agsfl.types import RoundInfo

# What lanes may differ in: nothing of it decides a shape.
SETTINGS = ("seed", *simulation.Numbers._fields)


def together(configs: dict[str, Config], most: int) -> list[list[str]]:
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
    common = dataclasses.asdict(config)
    # FedAvg's steps are a loop whose length follows from k.
    kept = {"k"} if config.method == "fedavg" else set()
    for name in set(SETTINGS) - kept:
      del common[name]
    alone = label if config.time_budget is not None else None
    groups.setdefault((str(common), alone), []).append(label)
  return [
      labels[start : start + most]
      for labels in groups.values()
      for start in range(0, len(labels), most)
  ]


def simulate(
    configs: dict[Path, Config],
    on_row: Callable[[Path, dict[str, Any]], None] = lambda workdir, row: None,
) -> dict[Path, runs.Run | Exception]:
  """Runs a group of `together` side by side, each into its folder.

  There are no checkpoints: a group that is stopped begins anew.

  Args:
    configs: by folder.
    on_row: called with each folder's new row.

  Returns:
    By folder the finished run, or the DivergedError that ended it.

  Raises:
    ConfigError: a setting, a file or a folder cannot be used, or the
      partition gives the lanes different numbers of samples.
  """
  first = next(iter(configs.values()))
  data = [load(c.dataset, c.as_partition()) for c in configs.values()]
  shape = lambda d: (len(d.clients.order), len(d.clients.counts))
  if len({shape(d) for d in data}) > 1:
    raise ConfigError(
        f"--partition={first.partition}: must give all lanes of a sweep as "
        "many clients and samples; run them one by one"
    )
  # All lanes look at the samples of the first, which are the same.
  shared = data[0].clients
  data = [
      d._replace(
          clients=d.clients.replace(images=shared.images, labels=shared.labels)
      )
      for d in data
  ]
  num_clients = len(shared.counts)
  model = simulation.build_model(first, data[0])
  platform = jax.default_backend()
  client_chunk = first.client_chunk or CLIENT_CHUNK.get(platform)
  mesh = devices.client_mesh(simulation.num_devices(first, num_clients))

  for config in configs.values():
    config.k_interval(model.dim)  # raises what does not fit
  build = functools.partial(simulation.compose, first, model, client_chunk)
  keys = jnp.stack([jax.random.key(c.seed) for c in configs.values()])
  numbers = [simulation.numbers_of(c) for c in configs.values()]
  numbers = jax.tree.map(lambda *each: jnp.stack(each), *numbers)
  sweep = devices.split_sweep(
      build_sweep(build, LANE_CHUNK.get(platform)),
      keys,
      numbers,
      mesh,
      own_rows=True,
  )
  placed = devices.split_lanes([d.clients for d in data], mesh)
  state = sweep.init(keys, numbers, placed.starts.shape[1])
  lanes = [
      _Lane(workdir, config, one, model, placed, mesh, index)
      for index, ((workdir, config), one) in enumerate(
          zip(configs.items(), data, strict=True)
      )
  ]
  try:
    for lane in lanes:
      lane.begin()
    for done in range(1, first.num_rounds + 1):
      start = time.perf_counter()
      state, infos = sweep.step(keys, numbers, placed, state)
      infos = jax.device_get(infos)
      seconds = (time.perf_counter() - start) / len(lanes)
      due = done % first.eval_every == 0 or done == first.num_rounds
      for lane in lanes:
        if lane.outcome is None:
          info = RoundInfo(*(x[lane.index] for x in infos))
          params = state.params[lane.index] if due else None
          lane.round(done, info, params, seconds, on_row)
    return {lane.folder.workdir: lane.outcome for lane in lanes}
  finally:
    for lane in lanes:
      lane.folder.close()


class _Lane:
  """One run among others: its folder, its rows, its end."""

  def __init__(self, workdir, config, data, model, placed, mesh, index):
    self.index = index
    self.folder = records.RunFolder(workdir, dataclasses.asdict(config))
    self.outcome = None
    self._config = config
    self._data = data
    self._model = model
    # The rows of the placed samples are all that an evaluation looks up.
    own = placed.replace(
        order=data.clients.order,
        starts=np.zeros(mesh.size, np.int32),
        counts=np.zeros(mesh.size, np.int32),
    )
    self._evaluate = build_evaluate(model, data, own, mesh)
    self._rows, self._seconds = [], []
    self._contributed = np.zeros(len(data.clients.counts), np.int64)

  def begin(self):
    """Claims the folder; what is in it of an earlier start is dropped."""
    self.folder.begin(runs.describe(self._config, self._data, self._model.dim))
    self.folder.keep(0)

  def round(self, done, info, params, seconds, on_row):
    """Records a round, and the run's end with the last."""
    info = info._replace(
        contributed=info.contributed[: len(self._contributed)]
    )
    evaluation = None if params is None else self._evaluate(params)
    if not info.finite:
      self._diverge(done, "a gradient")
      return
    if evaluation is not None and not np.isfinite(evaluation.train_loss):
      self._diverge(done, "the loss")
      return
    last = done == self._config.num_rounds
    step = simulation.Step(info, evaluation, seconds, None, last)
    row = simulation.as_row(step)
    self._rows.append(row)
    self._seconds.append(seconds)
    self._contributed += info.contributed
    self.folder.row(row)
    on_row(self.folder.workdir, row)
    if last:
      clients = runs.by_client(self._data, self._contributed, evaluation)
      summary = runs.summarize(row, self._seconds, clients)
      params = np.array(params)
      self.folder.finish(summary, clients, params)
      self.outcome = runs.Run(self._rows, clients, summary, params)

  def _diverge(self, done, what):
    told = simulation.diverged(done, what, self._config)
    self.outcome = DivergedError(told)
