"""Runs that differ only in plain numbers, side by side in one program.

Each run is a lane. The state of all lanes has a leading axis, and the step of
one run is mapped over it, as `jax.vmap` does.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from agsfl import devices, platforms
from agsfl.config import Config
from agsfl.data.federated import FederatedData, load
from agsfl.errors import ConfigError, refuse
from agsfl.layout import layout_of
from agsfl.parts import Parts, build_model
from agsfl.programs import (
    Programs,
    Simulation,
    budget_of,
    rows_of,
    with_clocks,
)
from agsfl.recorder import Recorder
from agsfl.records.checkpoints import States
from agsfl.records.folder import RunFolder
from agsfl.records.read import Run, read_run
from agsfl.rounds import rounds_in_a_row
from agsfl.simulation import describe, extent_of, identity_of, play
from agsfl.tasks import TASKS
from agsfl.training.evaluation import build_evaluate

Label = TypeVar("Label", bound=Hashable)


def group_by_program(
    configs: dict[Label, Config], most: int
) -> list[list[Label]]:
  """Splits runs into groups, each of which can be one program.

  Args:
    configs: by label.
    most: the most lanes of a group.

  Returns:
    The labels of each group, in order.
  """
  groups: dict[Hashable, list[Label]] = {}
  for label, config in configs.items():
    # States with replayed k of different lengths cannot be stacked, and all
    # lanes have one model.
    alike = (
        config.structure(), config.num_rounds, config.eval_every, config.replay,
        config.lora_from,
    )
    groups.setdefault(alike, []).append(label)
  return [
      labels[start : start + most]
      for labels in groups.values()
      for start in range(0, len(labels), most)
  ]


def build_lanes(
    configs: list[Config], data: list[FederatedData]
) -> Simulation:
  """Makes several runs ready, side by side.

  Args:
    configs: one group of `group_by_program`.
    data: of each run. All use the samples of the first.

  Returns:
    The simulation; its state has a leading axis of lanes.

  Raises:
    ConfigError: k or its interval does not fit the model, there are fewer
      devices, or the runs have different numbers of clients or samples.
  """
  first = configs[0]
  shapes = {(len(d.clients.order), len(d.client_names)) for d in data}
  if len(shapes) > 1:
    refuse(
        f"--partition={first.partition}",
        "must give all lanes of a sweep the same numbers of clients and "
        "samples; run them one by one",
    )
  model = build_model(first, Parts(), data[0])
  task = TASKS[data[0].task]
  programs = [
      Programs(config, Parts(), model, task, len(data[0].client_names))
      for config in configs
  ]
  one, mesh = programs[0], programs[0].mesh

  # The samples are in memory once; the rows of the lanes get a leading axis.
  names = ("order", "starts", "counts", "speeds", "availability")
  clients = [with_clocks(c, d) for c, d in zip(configs, data, strict=True)]
  together = dataclasses.replace(clients[0], **{
      name: jax.tree.map(
          lambda *own: np.stack(own), *(getattr(own, name) for own in clients)
      )
      for name in names
  })
  layout = layout_of(data, mesh, True if first.in_cohorts else None)
  placed = devices.place_clients(together, mesh, layout)
  samples = placed.without(*names)
  rows = tuple(getattr(placed, name) for name in names)

  # The rounds of one lane, then of all lanes.
  run = rounds_in_a_row(one.round.step, one.length)

  def run_lane(samples, rows, state, budget, num_rounds):
    data = samples.replace(**dict(zip(names, rows, strict=True)))
    return run(data, state, num_rounds, budget)

  lane_shardings = jax.tree.map(
      lambda spec: NamedSharding(mesh, PartitionSpec(None, *spec)), one.specs
  )
  run_lanes = jax.jit(
      platforms.on_one_device()(run_lane, (None, 0, 0, 0, None)),
      donate_argnums=2,
      out_shardings=(lane_shardings, None, None),
  )
  stack = jax.jit(
      lambda states: jax.tree.map(lambda *x: jnp.stack(x), *states),
      out_shardings=lane_shardings,
  )
  budgets = jax.tree.map(
      lambda *own: jnp.stack(own), *map(budget_of, configs)
  )

  def advance(state, num_rounds):
    with jax.set_mesh(mesh):
      state, infos, done = run_lanes(
          samples, rows, state, budgets, jnp.int32(num_rounds)
      )
    infos, done = jax.device_get((infos, done))
    return state, [
        rows_of(jax.tree.map(lambda x, i=i: x[i], infos), done[i])
        for i in range(len(configs))
    ]

  if one.turnout is not None and "device" != first.used_store(
      one.num_clients, one.bytes_per_client
  ):
    refuse(
        f"--store={first.store}",
        "must be device for lanes of a sweep; run them one by one",
    )

  def initial():
    return [p.init(c) for p, c in zip(programs, configs, strict=True)]

  def unpack(saved):
    return stack([
        like if own is None else one.unpack(own, like)
        for own, like in zip(saved, initial(), strict=True)
    ])

  states = initial()
  return Simulation(
      model=model,
      state=stack(states),
      advance=advance,
      rounds_per_call=one.length,
      evaluate=[
          build_evaluate(
              model, own, placed, layout, task, first.eval_train_samples
          )
          for own in data
      ],
      lane=lambda state, index: jax.tree.map(lambda x: x[index], state),
      pack=one.pack,
      like=devices.shapes_of_saved(one.pack, states[0]),
      unpack=unpack,
  )


@jax.transfer_guard("allow")  # every transfer of a run is meant
def simulate_lanes(
    configs: dict[Path, Config],
    *,
    checkpoint_every: int = 0,
    keep_state: bool = True,
    on_row: Callable[[Path, dict[str, Any]], None] = lambda workdir, row: None,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[Path, Run | Exception]:
  """Runs a group of `group_by_program` side by side, each into its folder.

  A run that was stopped goes on from its last saved state.

  Args:
    configs: by folder.
    checkpoint_every: rounds between saved states, 0 for none before the end.
    keep_state: whether each run's last state stays, see `simulate`.
    on_row: called with each folder's new row.
    should_stop: asked after each call of the compiled rounds.

  Returns:
    By folder, the finished run, or the ConfigError or DivergedError that ended
    it. One such run does not stop the others.

  Raises:
    ConfigError: the runs cannot go side by side.
    StoppedError: `should_stop` said so.
  """
  # The runs whose settings, folder and data can be used.
  outcomes: dict[Path, Run | Exception] = {}
  loaded = functools.cache(load)  # runs of one data seed share their data
  lanes: dict[Path, tuple[dict[str, Any], RunFolder, FederatedData]] = {}
  for workdir, config in configs.items():
    try:
      identity = identity_of(config, Parts())
      folder = RunFolder(workdir, identity, extent_of(config))
      data = loaded(*config.data_settings())
      lanes[workdir] = identity, folder, data
    except ConfigError as error:
      outcomes[workdir] = error
  if not lanes:
    return outcomes

  # All of them as one simulation.
  simulation = build_lanes(
      [configs[workdir] for workdir in lanes],
      [data for *_, data in lanes.values()],
  )
  saved: list[Any] = [None] * len(lanes)
  with contextlib.ExitStack() as stack:
    # Each run's recorder, and its saved state if it has one.
    recorders = {}
    for index, (workdir, lane) in enumerate(lanes.items()):
      config, (identity, folder, data) = configs[workdir], lane
      stack.enter_context(folder)
      states = States(folder.checkpoints, 1)
      description = describe(config, identity, data, simulation.model.dim)
      recorder = recorders[workdir] = Recorder(
          config,
          data,
          simulation.evaluate[index],
          description=description,
          folder=folder,
          states=states,
          every=checkpoint_every,
          keeps_state=keep_state,
          on_row=functools.partial(on_row, workdir),
      )
      try:
        folder.begin(description)
        if folder.finished:  # another process has just ended it
          recorder.outcome = read_run(folder.workdir)
        else:
          stack.enter_context(states)
          saved[index] = recorder.restore(simulation.like)
      except ConfigError as error:
        recorder.outcome = error

    # Go on from these states, until every run has its outcome.
    if any(one is not None for one in saved):
      simulation = simulation._replace(state=simulation.unpack(saved))
    play(simulation, list(recorders.values()), should_stop)
  for workdir, one in recorders.items():
    assert one.outcome is not None
    outcomes[workdir] = one.outcome
  return {workdir: outcomes[workdir] for workdir in configs}
