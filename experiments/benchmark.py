"""Times this package against other ways to do the same work.

Each case and its baseline alternate within one process, so that a ratio holds
on a noisy machine too. It prints one JSON line per case, and then a table. Data
and weights are random. Only the time of selection depends on values; it gets
the gradients of the model.
"""

import dataclasses
import functools
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from agsfl import devices, platforms, programs, settings, sweeps
from agsfl.config import Config
from agsfl.data.federated import ClientData, FederatedData
from agsfl.parts import Parts, build_model
from agsfl.programs import Programs
from agsfl.training import models
from agsfl.training.client import build_client
from agsfl.types import KController, KProposal
from experiments.lib import baselines, columns, networks, scripts

_CASES = (
    "gradients", "vmap", "round", "selection", "calls", "seeds", "networks",
)
_NUM_CLIENTS = flags.DEFINE_list(
    "num_clients", ["10", "32"], "Numbers of clients N."
)
_RUN = flags.DEFINE_list(
    "cases",
    ["gradients", "round", "selection"],
    "gradients, round: against a loop of jitted gradients. vmap: gradients "
    "against vmap of plain layers. selection: the round against its gradients "
    "alone. calls: ten rounds in one program against ten calls. seeds: four "
    "simulations in one program against one after another. networks: gradients "
    "of the networks that --networks names, against the loop and vmap.",
)
_NETWORKS = flags.DEFINE_list(
    "networks", list(networks.CASES), "Networks of --cases=networks."
)
_KS = flags.DEFINE_list(
    "ks", ["1000"], "Values of k, for all cases of whole rounds."
)
for _name, _names in (("cases", _CASES), ("networks", tuple(networks.CASES))):
  flags.register_validator(
      _name,
      lambda chosen, names=_names: set(chosen) <= set(names),
      f"any of {', '.join(_names)}",
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
_BYTES_PER_FLOAT = 4


class Case(NamedTuple):
  """Two ways to the same end.

  Attributes:
    name: of the case.
    baseline: name of what it is compared with.
    settings: for the JSON line.
    run_baseline, run: do the work once and wait for it.
    facts: gives further numbers; called after the timing.
  """

  name: str
  baseline: str
  settings: dict[str, Any]
  run_baseline: Callable[[], None]
  run: Callable[[], None]
  facts: Callable[[], dict[str, Any]] = dict


# The paper's network, on images of its data set.
_PAPER = networks.CASES["cnn"]


def _clients(num_clients, case=_PAPER):
  rng = np.random.default_rng(0)
  total = num_clients * _BATCH
  dtype = np.uint8 if case.top == 256 else np.int32
  return ClientData.of(
      rng.integers(0, case.top, (total, *case.shape), dtype),
      rng.integers(0, case.num_classes, total).astype(np.int32),
      np.arange(total).reshape(num_clients, _BATCH),
  )


def _mesh():
  return devices.client_mesh(_DEVICES.value or jax.device_count())


def _baseline(build, num_clients, case=_PAPER):
  """A function of `baselines` for the same samples, as [N, B, ...]."""
  data = _clients(num_clients, case)
  features = data.features.reshape(num_clients, _BATCH, *case.shape)
  labels = data.labels.reshape(num_clients, _BATCH)
  return build(case.network(case.num_classes), features, labels)


def _loop(num_clients):
  return _baseline(baselines.loop, num_clients)


def _ours(num_clients, case=_PAPER, model=None):
  """This package's gradients of all clients, [N, D]."""
  model = model or models.build("cnn", case.shape, case.num_classes)
  local_result = build_client(model, _BATCH)
  mesh = _mesh()
  params = model.init(jax.random.key(0))
  data = devices.place_clients(_clients(num_clients, case), mesh)
  rate = jnp.float32(1.0)  # of local steps; there are none

  def one(key, params, data, rate, start, count):
    return local_result(key, params, data, start, count, rate).gradient

  @jax.jit
  def gradients(key, params, data):
    shared = data.replace(starts=None, counts=None)
    each = platforms.for_each_client()(one, (None, None, None, None, 0, 0))
    return each(key, params, shared, rate, data.starts, data.counts)

  key = jax.random.key(1)

  def run():
    with jax.set_mesh(mesh):
      jax.block_until_ready(gradients(key, params, data))

  return run


def _unlearned(k):
  """The work of online learning, with a constant k and probe 0.7 k."""
  proposal = lambda: KProposal(jnp.float32(k), jnp.float32(0.7 * k))
  return KController(
      init=lambda key: (proposal(), ()),
      update=lambda key, observed, state: (proposal(), state),
      observes=True,
      probes=True,
  )


def _config(**settings):
  return Config(
      model="cnn", num_devices=_DEVICES.value, batch_size=_BATCH, **settings
  )


def _data(num_clients):
  """Random samples, a minibatch for each client; the last one is for tests."""
  clients = _clients(num_clients)
  return FederatedData(
      clients=clients,
      test_rows=np.array([len(clients.labels) - 1], np.int32),
      test_clients=np.array([-1], np.int32),
      client_names=np.arange(num_clients).astype(str),
      num_classes=_PAPER.num_classes,
  )


class _Rounds:
  """Calls of `length` whole rounds of FAB-top-k with online learning."""

  def __init__(self, num_clients, k, length=1):
    self.num_clients = num_clients
    self.length = length
    config = _config(rounds_per_call=length)
    parts = Parts.of(controller=_unlearned(k))
    model = build_model(config, parts, _data(num_clients))
    programs = Programs(config, parts, model, num_clients)
    self.mesh = programs.mesh
    self.clients = devices.place_clients(_clients(num_clients), self.mesh)
    self.state = programs.init(config)
    self.dim = model.dim
    arguments = self._arguments()
    start = time.perf_counter()
    with jax.set_mesh(self.mesh):
      self.program = programs.run.lower(*arguments).compile()
    self.compile_seconds = time.perf_counter() - start

  def _arguments(self):
    budget = jnp.float32(settings.LARGEST)
    return self.clients, self.state, jnp.int32(self.length), budget

  def __call__(self):
    with jax.set_mesh(self.mesh):
      self.state, _, _ = self.program(*self._arguments())
    jax.block_until_ready(self.state)

  def facts(self):
    memory = self.program.memory_analysis()
    size = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    size += memory.output_size_in_bytes - memory.alias_size_in_bytes
    data = sum(x.nbytes for x in jax.tree.leaves(self.clients))
    floats = size * self.mesh.size - data
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
      _baseline(baselines.batched, num_clients),
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
  data = _data(num_clients)
  for k in map(int, _KS.value):
    alone = _config(controller="fixed", k=k)
    configs = [dataclasses.replace(alone, seed=seed) for seed in range(lanes)]
    side_by_side = sweeps.build_lanes(configs, [data] * lanes)
    one = programs.build(alone, data)

    def advance(simulation, state, times):
      for _ in range(times):
        state[0], _ = simulation.advance(state[0], 1)
      jax.block_until_ready(state[0])

    yield Case(
        f"{lanes} simulations in one program",
        "one after another",
        {"num_clients": num_clients, "k": k},
        functools.partial(advance, one, [one.state], lanes),
        functools.partial(advance, side_by_side, [side_by_side.state], 1),
    )


def _networks_cases(num_clients):
  for name in _NETWORKS.value:
    case = networks.CASES[name]
    model = models.as_model(case.network(case.num_classes), case.shape)
    ours = _ours(num_clients, case, model)
    for baseline, build in (
        ("loop of gradients", baselines.loop),
        ("vmap of gradients", baselines.batched),
    ):
      yield Case(
          f"gradients of {name}",
          baseline,
          {"num_clients": num_clients, "dim": model.dim},
          _baseline(build, num_clients, case),
          ours,
      )


_BUILDERS = {
    "gradients": _gradients_cases,
    "vmap": _vmap_cases,
    "round": _round_cases,
    "selection": _selection_cases,
    "calls": _calls_cases,
    "seeds": _seeds_cases,
    "networks": _networks_cases,
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
  keys = [
      "case", "baseline", "num_clients", "k", "baseline_seconds", "seconds",
      "ms_per_client", "ratio",
  ]
  lines = [[str(result.get(key, "")) for key in keys] for result in results]
  return columns.aligned([keys, *lines], "<<>>>>>>")


def main(argv):
  scripts.start(argv)
  results = []
  with scripts.one_line_errors():
    for name in _RUN.value:
      for num_clients in map(int, _NUM_CLIENTS.value):
        for case in _BUILDERS[name](num_clients):
          results.append(measure(case, _REPEATS.value))
          print(json.dumps(results[-1], allow_nan=False), flush=True)
  device = jax.devices()[0]
  print(
      f"\n{_DEVICES.value or jax.device_count()} x {device.device_kind}, "
      f"jax {jax.__version__}"
  )
  print(_table(results))


if __name__ == "__main__":
  scripts.run(main)
