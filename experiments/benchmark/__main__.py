"""Times this package against other ways to do the same work.

    python -m experiments.benchmark [--cases=gradients,round]
    python -m experiments.benchmark --suite=accelerator --minutes=5

Each case and its baseline alternate within one process, so that a ratio holds
on a noisy machine too. It prints one JSON line per case, and then a table. Data
and weights are random. Only the time of selection depends on values; it gets
the gradients of the model.
"""

import json

import jax
from absl import flags

from agsfl.errors import require
from experiments.benchmark import cases, networks, suite
from experiments.benchmark.work import Work
from experiments.lib import columns, scripts

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
    "networks",
    list(networks.CASES),
    "Networks of --cases=networks and of --suite.",
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
_SUITE = flags.DEFINE_enum(
    "suite",
    None,
    ["accelerator"],
    "Replaces --cases: runs all cases, the most important ones first. An "
    "error, such as too little memory, ends one case only. The default of "
    "--num_clients is 156, on CPU 10. That of --ks is 100, 1000, 10000 and "
    "100000.",
)
_MINUTES = flags.DEFINE_float(
    "minutes", 5.0, "Of --suite: after them no new case begins.", 0.0
)
_REPEATS = flags.DEFINE_integer("repeats", 3, "Timed calls of each side.")
_DEVICES = flags.DEFINE_integer(
    "num_devices", None, "Devices that share the clients. Default: all."
)

# Those without a k, and those with one.
_OF_GRADIENTS = {"gradients": cases.gradients, "vmap": cases.vmap}
_OF_ROUNDS = {
    "round": cases.rounds,
    "selection": cases.selection,
    "calls": cases.calls,
    "seeds": cases.lanes,
}


def _cases(name, num_clients):
  if name == "networks":
    return cases.of_networks(_NETWORKS.value, num_clients, _DEVICES.value)
  work = Work("cnn", num_clients, _DEVICES.value)
  if name in _OF_GRADIENTS:
    return [_OF_GRADIENTS[name](work)]
  return [_OF_ROUNDS[name](work, k) for k in map(int, _KS.value)]


def _table(results):
  keys = [
      "case", "baseline", "num_clients", "k", "baseline_seconds", "seconds",
      "ms_per_client", "ratio",
  ]
  lines = [[str(result.get(key, "")) for key in keys] for result in results]
  return columns.aligned([keys, *lines], "<<>>>>>>")


def _size():
  """The suite's size for this platform, with what the flags ask for."""
  size = suite.SMALL if jax.default_backend() == "cpu" else suite.LARGE
  size = size._replace(
      num_devices=_DEVICES.value, networks=tuple(_NETWORKS.value)
  )
  if flags.FLAGS["num_clients"].present:
    numbers = _NUM_CLIENTS.value
    asked = ",".join(numbers)
    require(len(numbers) == 1, "num_clients", asked, "one number, with --suite")
    size = size._replace(num_clients=int(numbers[0]))
  if flags.FLAGS["ks"].present:
    ks = tuple(map(int, _KS.value))
    size = size._replace(selection_ks=ks, round_ks=ks)
  if flags.FLAGS["repeats"].present:
    size = size._replace(repeats=_REPEATS.value)
  return size


def _print(line):
  print(json.dumps(line, allow_nan=False), flush=True)


def main(argv):
  scripts.start(argv)
  results = []
  with scripts.one_line_errors():
    if _SUITE.value is None:
      for name in _RUN.value:
        for num_clients in map(int, _NUM_CLIENTS.value):
          for case in _cases(name, num_clients):
            results.append(cases.measure(case, _REPEATS.value))
            _print(results[-1])
    else:
      # Compile, in place of reading what an earlier run has compiled.
      jax.config.update("jax_enable_compilation_cache", False)
      size = _size()
      _print(suite.device())
      for line in suite.results(suite.tasks(size), _MINUTES.value):
        results.append(line)
        _print(line)
  device = jax.devices()[0]
  print(
      f"\n{_DEVICES.value or jax.device_count()} x {device.device_kind}, "
      f"jax {jax.__version__}"
  )
  print(_table(results) if _SUITE.value is None else suite.table(results))


if __name__ == "__main__":
  scripts.run(main)
