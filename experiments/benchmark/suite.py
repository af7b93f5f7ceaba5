"""The suite for accelerators: every figure of one device in one go."""

import functools
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from experiments.benchmark import baselines, cases, kernels, networks, ours
from experiments.benchmark.cases import Case
from experiments.benchmark.work import Work
from experiments.lib import columns, scripts

_RATE = 0.01  # of local steps
_MB = 1e6
_COLUMNS = {
    "case": "<", "baseline": "<", "unit": "<", "num_clients": ">", "k": ">",
    "baseline_ms": ">", "ms": ">", "ratio": ">", "rounds_per_second": ">",
    "compile_seconds": ">", "memory_mb": ">", "kernel_share": ">",
    "error": "<",
}


class Size(NamedTuple):
  """How much the suite measures.

  Attributes:
    num_clients: N.
    num_devices: that share the clients; None for all.
    name: of the network of all cases but lanes and networks.
    selection_ks, round_ks: values of k.
    length: rounds in one program.
    steps: local steps.
    lane_clients: N of each lane.
    networks: names of networks to compare.
    repeats: timed calls of each side.
  """

  num_clients: int = 156
  num_devices: int | None = None
  name: str = "cnn"
  selection_ks: tuple[int, ...] = (100, 1000, 10_000, 100_000)
  round_ks: tuple[int, ...] = (1000, 100_000)
  length: int = 20
  steps: int = 10
  lane_clients: int = 10
  networks: tuple[str, ...] = tuple(networks.CASES)
  repeats: int = 10


LARGE = Size()
SMALL = Size(num_clients=10, length=3, steps=2, repeats=3)  # for a CPU


class Task(NamedTuple):
  """One line of the suite.

  Attributes:
    names: what is measured, for the JSON line.
    measure: gives the results, for the same line.
  """

  names: dict[str, Any]
  measure: Callable[[], dict[str, Any]]


def device() -> dict[str, Any]:
  """What is measured on."""
  return {
      "device": jax.devices()[0].device_kind,
      "count": jax.device_count(),
      "platform": jax.default_backend(),
      "jax": jax.__version__,
  }


def tasks(size: Size) -> Iterator[Task]:
  """All lines, the most important ones first.

  What a line makes ready is freed before the next one, unless both need it.
  """
  work = Work(size.name, size.num_clients, size.num_devices)
  for group in (_gradients, _selection, _rounds):
    yield from group(work, size)
  steps = size.steps
  yield _task(
      Case(
          "local steps of all clients",
          "vmap of local steps",
          {"num_clients": work.num_clients},
          functools.partial(baselines.local_steps, work, steps, _RATE),
          functools.partial(ours.local_steps, work, steps, _RATE),
          unit="local step",
          count=steps,
      ),
      size,
  )
  few = Work("mlp", size.lane_clients, size.num_devices)
  yield _task(cases.lanes(few, 1000, 8, size.length), size)
  for case in cases.of_networks(
      size.networks, work.num_clients, work.num_devices
  ):
    yield _task(case, size)


def _gradients(work, size):
  """Against JAX's two ways and PyTorch's two."""

  def pytorch(compiles):
    from experiments.benchmark import pytorch  # PyTorch may be absent

    return pytorch.batched(work, compiles)

  build = functools.cache(functools.partial(ours.gradients, work))
  for baseline, build_baseline in (
      ("loop of gradients", functools.partial(baselines.loop, work)),
      ("vmap of gradients", functools.partial(baselines.batched, work)),
      ("PyTorch's vmap", functools.partial(pytorch, False)),
      ("PyTorch's vmap, compiled", functools.partial(pytorch, True)),
  ):
    names = {"num_clients": work.num_clients}
    case = Case("gradients", baseline, names, build_baseline, build)
    yield _task(case, size)


def _selection(work, size):
  """On the gradients of the network: only this time depends on values."""
  accumulated = functools.cache(lambda: ours.gradients(work)())
  program = functools.cache(lambda: ours.Selection(work, accumulated()))
  for k in size.selection_ks:
    case = Case(
        "selection for k and 0.7 k",
        "lax.top_k for k",
        {"num_clients": work.num_clients, "k": k},
        lambda k=k: baselines.top_k(work, accumulated(), k),
        lambda k=k: program().at(k),
    )
    yield _task(case, size)


def _rounds(work, size):
  """One call a round, several rounds in one program, and their kernels."""
  one = functools.cache(functools.partial(ours.Rounds, work))
  several = functools.cache(functools.partial(ours.Rounds, work, size.length))
  for k in size.round_ks:
    case = cases.rounds(work, k)._replace(
        build=lambda k=k: one().at(k), facts=lambda run: {}
    )
    yield _task(case, size)
    if jax.default_backend() != "cpu":
      names = {"case": "kernels of a round", **case.settings, "unit": "round"}
      yield Task(names, lambda k=k: kernels.share(one().at(k)))
    case = cases.calls(work, k, size.length)._replace(
        build_baseline=lambda k=k: cases.repeated(one().at(k), size.length),
        build=lambda k=k: several().at(k),
    )
    yield _task(case, size)


def _task(case, size):
  names = {
      "case": case.name, "baseline": case.baseline, **case.settings,
      "unit": case.unit,
  }
  return Task(names, functools.partial(_compare, case, size.repeats))


def _compare(case: Case, repeats: int) -> dict[str, Any]:
  """The results of a case, in ms for each unit."""
  sides = cases.timed(case, repeats)
  results: dict[str, Any] = {}
  for side, prefix in zip(sides, ("baseline_", ""), strict=True):
    results[f"{prefix}ms"] = round(1e3 * side.median / case.count, 3)
    results[f"{prefix}compile_seconds"] = round(_compile_seconds(side), 2)
    memory = getattr(side.run, "memory_bytes", None)
    if memory is not None:
      results[f"{prefix}memory_mb"] = round(memory / _MB)
  baseline, one = sides
  results["ratio"] = round(baseline.median / one.median, 3)
  if case.unit == "round":
    results["rounds_per_second"] = round(case.count / one.median, 2)
  return results | case.facts(one.run)


def _compile_seconds(side):
  """Exact for a `Program`; else by how much the first call took longer."""
  known = getattr(side.run, "compile_seconds", None)
  return max(0.0, side.first - side.median) if known is None else known


def results(
    tasks: Iterator[Task], minutes: float
) -> Iterator[dict[str, Any]]:
  """The JSON objects of all lines.

  Args:
    tasks: the lines. An error in one becomes its result.
    minutes: after which no new line begins.

  Yields:
    Names and results of each line, or its names and "error".
  """
  end = time.monotonic() + 60 * minutes
  for task in tasks:
    if time.monotonic() >= end:
      found = {"error": f"not begun, because --minutes={minutes:g} are over"}
    else:
      try:
        found = task.measure()
      except Exception as error:
        kind = type(error).__name__
        found = {"error": f"{kind}: {scripts.first_line(error)}"}
    yield task.names | found
    gc.collect()  # the next line gets this one's memory


def table(results: list[dict[str, Any]]) -> str:
  """All results as text in columns, without the columns that stay empty."""
  keys = [key for key in _COLUMNS if any(key in one for one in results)]
  lines = [[str(one.get(key, "")) for key in keys] for one in results]
  return columns.aligned([keys, *lines], "".join(_COLUMNS[key] for key in keys))
