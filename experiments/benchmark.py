"""Times this package against the ways in which others do the same work.

Each case and its baseline alternate within one process, so that a ratio holds
on a noisy machine too. One JSON line per case, then a table. Data and weights
are random: times do not depend on their values, selection apart, for which the
gradients are those of the model.
"""

import json
import logging
import os
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags

from agsfl import devices, programs, rounds
from agsfl.data.federated import ClientData
from agsfl.over_clients import CLIENT_CHUNK, LANE_CHUNK, map_clients
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.training import models
from agsfl.training.client import build_client
from agsfl.types import KController, KProposal
from experiments.lib import baselines

_CASES = ("gradients", "vmap", "round", "selection", "calls", "seeds")
_NUM_CLIENTS = flags.DEFINE_list(
    "num_clients", ["10", "32"], "Numbers of clients N."
)
_RUN = flags.DEFINE_list(
    "cases",
    ["gradients", "round", "selection"],
    "gradients, round: against a loop of jitted gradients; vmap: gradients "
    "against vmap of plain layers; selection: the round against its gradients "
    "alone; calls: ten rounds in one program against ten calls; seeds: four "
    "simulations in one program against one after another.",
)
_KS = flags.DEFINE_list("ks", ["1000"], "k of all cases but the gradients.")
flags.register_validator(
    "cases",
    lambda names: set(names) <= set(_CASES),
    f"any of {', '.join(_CASES)}",
)
for _name in ("num_clients", "ks"):
  flags.register_validator(
      _name,
      lambda texts: all(text.isdigit() and int(text) for text in texts),
      "numbers from 1",
  )
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each side.")
_DEVICES = flags.DEFINE_integer(
    "num_devices", None, "Devices that share the clients. Default: all."
)

_BATCH = 32
_CLASSES = 62
_SHAPE = (28, 28, 1)
_BYTES_PER_FLOAT = 4


class Case(NamedTuple):
  """Two ways to the same end.

  Attributes:
    name: of the case.
    baseline: name of what it is compared with.
    settings: for the JSON line.
    run_baseline, run: do the work once and wait for it.
    facts: further numbers, called after the timing.
  """

  name: str
  baseline: str
  settings: dict[str, Any]
  run_baseline: Callable[[], None]
  run: Callable[[], None]
  facts: Callable[[], dict[str, Any]] = dict


def _clients(num_clients):
  rng = np.random.default_rng(0)
  total = num_clients * _BATCH
  return ClientData.of(
      rng.integers(0, 256, (total, *_SHAPE), np.uint8),
      rng.integers(0, _CLASSES, total).astype(np.int32),
      np.arange(total).reshape(num_clients, _BATCH),
  )


def _batches(num_clients):
  """The same samples, [N, B, ...], as the other ways take them."""
  data = _clients(num_clients)
  images = data.images.reshape(num_clients, _BATCH, *_SHAPE)
  return images, data.labels.reshape(num_clients, _BATCH)


def _mesh():
  return devices.client_mesh(_DEVICES.value or jax.device_count())


def _loop(num_clients):
  return baselines.loop(_CLASSES, *_batches(num_clients))


def _vmap(num_clients):
  return baselines.batched(_CLASSES, *_batches(num_clients))


def _ours(num_clients):
  """This package's gradients of all clients, [N, D]."""
  model = models.build("cnn", _SHAPE, _CLASSES)
  local_result = build_client(model, _BATCH)
  mesh = _mesh()
  params = model.init(jax.random.key(0))
  clients = devices.split_clients(_clients(num_clients), mesh)

  def gradients(key, params, data):
    one = lambda start, count: local_result(
        key, params, data, start, count
    ).gradient
    chunk = CLIENT_CHUNK.get(jax.default_backend())
    return map_clients(one, (data.starts, data.counts), chunk)

  everywhere, per_client = devices.REPLICATED, devices.PER_CLIENT
  split = jax.jit(
      jax.shard_map(
          gradients,
          mesh=mesh,
          in_specs=(everywhere, everywhere, devices.CLIENT_DATA),
          out_specs=per_client,
          check_vma=False,
      )
  )
  key = jax.random.key(1)
  return lambda: jax.block_until_ready(split(key, params, clients))


def _held(k):
  """Online learning's work, but k stays where it is, its probe at 0.7 k."""
  proposal = lambda: KProposal(jnp.float32(k), jnp.float32(0.7 * k))
  return KController(
      init=lambda key: (proposal(), ()),
      update=lambda key, observed, state: (proposal(), state),
      observes=True,
      probes=True,
  )


def _build_round(k, learning_rate=0.01):
  """A round of FAB-top-k, its clients split over devices."""
  axes = (devices.AXIS,)
  client_chunk = CLIENT_CHUNK.get(jax.default_backend())
  return rounds.build_round(
      models.build("cnn", _SHAPE, _CLASSES),
      sparsifiers.fab_top_k(axes, client_chunk),
      _held(k),
      server=optax.sgd(learning_rate),
      batch_size=_BATCH,
      comm_time=10.0,
      client_chunk=client_chunk,
      axes=axes,
  )


class _Rounds:
  """Calls of `length` whole rounds of FAB-top-k with online learning."""

  def __init__(self, num_clients, k, length=1):
    self.num_clients = num_clients
    self.length = length
    simulated = _build_round(k)
    mesh = _mesh()
    self.clients = devices.split_clients(_clients(num_clients), mesh)
    self.key = jax.random.key(0)
    split = devices.split_round(simulated, length, mesh, self.key)
    self.state = split.init(self.key, len(self.clients.counts))
    self.dim = self.state.params.size
    arguments = self._arguments()
    start = time.perf_counter()
    self.program = split.chunk.lower(*arguments).compile()
    self.compile_seconds = time.perf_counter() - start

  def _arguments(self):
    return (
        self.key,
        self.clients,
        self.state,
        jnp.int32(self.length),
        jnp.float32(jnp.inf),
    )

  def __call__(self):
    self.state, _, _ = self.program(*self._arguments())
    jax.block_until_ready(self.state)

  def facts(self):
    memory = self.program.memory_analysis()
    held = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    held += memory.output_size_in_bytes - memory.alias_size_in_bytes
    devices_used = len(self.state.residual.sharding.device_set)
    data = sum(x.nbytes for x in jax.tree.leaves(self.clients))
    floats = held * devices_used - data
    floats /= _BYTES_PER_FLOAT * self.num_clients * self.dim
    return {
        "memory_in_nd_floats": round(floats, 2),
        "compile_seconds": round(self.compile_seconds, 1),
    }


def _gradients_cases(num_clients):
  yield Case(
      "gradients",
      "loop of gradients",
      {"num_clients": num_clients},
      _loop(num_clients),
      _ours(num_clients),
  )


def _vmap_cases(num_clients):
  yield Case(
      "gradients",
      "vmap of gradients",
      {"num_clients": num_clients},
      _vmap(num_clients),
      _ours(num_clients),
  )


def _round_cases(num_clients):
  for k in map(int, _KS.value):
    one = _Rounds(num_clients, k)
    yield Case(
        "round with online learning",
        "loop of gradients",
        {"num_clients": num_clients, "k": k},
        _loop(num_clients),
        one,
        one.facts,
    )


def _selection_cases(num_clients):
  """The round against its gradients: the rest is selection and bookkeeping."""
  for k in map(int, _KS.value):
    yield Case(
        "round with online learning",
        "our gradients",
        {"num_clients": num_clients, "k": k},
        _ours(num_clients),
        _Rounds(num_clients, k),
    )


def _calls_cases(num_clients):
  length = 10
  for k in map(int, _KS.value):
    one = _Rounds(num_clients, k)
    yield Case(
        f"{length} rounds in one program",
        f"{length} calls",
        {"num_clients": num_clients, "k": k},
        lambda one=one: [one() for _ in range(length)],
        _Rounds(num_clients, k, length),
    )


def _seeds_cases(num_clients):
  lanes = 4
  keys = jax.random.split(jax.random.key(0), lanes)
  settings = jnp.full(lanes, 0.01)
  mesh = _mesh()
  clients = devices.split_clients(_clients(num_clients), mesh)
  for k in map(int, _KS.value):
    sweep = programs.build_sweep(
        lambda rate, k=k: _build_round(k, rate),
        LANE_CHUNK.get(jax.default_backend()),
    )
    sweep = devices.split_sweep(sweep, keys, settings, mesh)
    state = [sweep.init(keys, settings, len(clients.counts))]

    def together(sweep=sweep, state=state):
      state[0], _ = sweep.step(keys, settings, clients, state[0])
      jax.block_until_ready(state[0])

    one = _Rounds(num_clients, k)
    yield Case(
        f"{lanes} simulations in one program",
        "one after another",
        {"num_clients": num_clients, "k": k},
        lambda one=one: [one() for _ in range(lanes)],
        together,
    )


_BUILDERS = {
    "gradients": _gradients_cases,
    "vmap": _vmap_cases,
    "round": _round_cases,
    "selection": _selection_cases,
    "calls": _calls_cases,
    "seeds": _seeds_cases,
}


def measure(case: Case, repeats: int) -> dict[str, Any]:
  """Times both sides in turn, after one call each to compile.

  Args:
    case: what to run.
    repeats: timed calls of each side.

  Returns:
    The JSON object: medians in seconds, and how many times faster the case is.
  """
  case.run_baseline()
  case.run()
  seconds = {case.run_baseline: [], case.run: []}
  for _ in range(repeats):
    for run, taken in seconds.items():
      start = time.perf_counter()
      run()
      taken.append(time.perf_counter() - start)
  baseline, ours = (statistics.median(taken) for taken in seconds.values())
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return {
      "case": case.name,
      "baseline": case.baseline,
      **case.settings,
      "baseline_seconds": round(baseline, 4),
      "seconds": round(ours, 4),
      "ratio": round(baseline / ours, 3),
      "ms_per_client": round(1e3 * ours / case.settings["num_clients"], 2),
      "process_peak_mb": round(peak_kib * 1024 / 1e6),
      **case.facts(),
  }


def _table(results):
  columns = ("case", "baseline", "num_clients", "k", "baseline_seconds")
  columns += ("seconds", "ms_per_client", "ratio")
  lines = [columns] + [
      [str(result.get(column, "")) for column in columns] for result in results
  ]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
      "  ".join(
          cell.ljust(width) for cell, width in zip(line, widths, strict=True)
      ).rstrip()
      for line in lines
  )


def main(argv):
  del argv
  logging.getLogger("jax").setLevel(logging.WARNING)
  jax.config.update("jax_num_cpu_devices", os.cpu_count())
  results = []
  for name in _RUN.value:
    for num_clients in map(int, _NUM_CLIENTS.value):
      for case in _BUILDERS[name](num_clients):
        results.append(measure(case, _REPEATS.value))
        print(json.dumps(results[-1]), flush=True)
  device = jax.devices()[0]
  print(
      f"\n{_DEVICES.value or jax.device_count()} x {device.device_kind}, "
      f"jax {jax.__version__}"
  )
  print(_table(results))


if __name__ == "__main__":
  app.run(main)
