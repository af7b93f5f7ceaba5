"""Cases of the benchmark: two ways to the same end, timed in turn."""

import functools
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from agsfl.training import models
from experiments.benchmark import baselines, ours
from experiments.benchmark.work import Work

# Does the work once, and waits for it.
Run = Callable[[], Any]


class Case(NamedTuple):
  """Two ways to the same end.

  Attributes:
    name: of the case.
    baseline: name of what it is compared with.
    settings: for the JSON line.
    build_baseline, build: make both sides ready.
    facts: of the case made ready, further numbers for the JSON line.
    unit: what is counted in a call, such as "round".
    count: how many of these a call does.
  """

  name: str
  baseline: str
  settings: dict[str, Any]
  build_baseline: Callable[[], Run]
  build: Callable[[], Run]
  facts: Callable[[Any], dict[str, Any]] = lambda run: {}
  unit: str = "call"
  count: int = 1


class Timed(NamedTuple):
  """One side of a case, timed.

  Attributes:
    run: the side.
    first: seconds of the first call, which may compile.
    median: seconds of a later call.
  """

  run: Run
  first: float
  median: float


def timed(case: Case, repeats: int) -> tuple[Timed, Timed]:
  """Times both sides in turn, after one call each to compile.

  Args:
    case: what to run.
    repeats: timed calls of each side.

  Returns:
    The baseline and the case.
  """
  sides = [case.build_baseline(), case.build()]
  firsts = [_seconds(run) for run in sides]
  taken = [[_seconds(run) for run in sides] for _ in range(repeats)]
  medians = map(statistics.median, zip(*taken, strict=True))
  baseline, one = map(Timed, sides, firsts, medians)
  return baseline, one


def _seconds(run):
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def measure(case: Case, repeats: int) -> dict[str, Any]:
  """The JSON object of a case of --cases.

  Args:
    case: what to run.
    repeats: timed calls of each side.

  Returns:
    Medians in seconds, and how many times faster the case is.
  """
  baseline, one = timed(case, repeats)
  peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  clients = case.settings["num_clients"]
  return {
      "case": case.name,
      "baseline": case.baseline,
      **case.settings,
      "baseline_seconds": round(baseline.median, 4),
      "seconds": round(one.median, 4),
      "ratio": round(baseline.median / one.median, 3),
      "ms_per_client": round(1e3 * one.median / clients, 2),
      "process_peak_mb": round(peak_kib * 1024 / 1e6),
      **case.facts(one.run),
  }


def gradients(work: Work) -> Case:
  """Gradients against a loop."""
  return Case(
      "gradients",
      "loop of gradients",
      {"num_clients": work.num_clients},
      functools.partial(baselines.loop, work),
      functools.partial(ours.gradients, work),
  )


def vmap(work: Work) -> Case:
  """Gradients against vmap."""
  return Case(
      "gradients",
      "vmap of gradients",
      {"num_clients": work.num_clients},
      functools.partial(baselines.batched, work),
      functools.partial(ours.gradients, work),
  )


def rounds(work: Work, k: int) -> Case:
  """A round against a loop of gradients."""
  return Case(
      "round with online learning",
      "loop of gradients",
      {"num_clients": work.num_clients, "k": k},
      functools.partial(baselines.loop, work),
      lambda: ours.Rounds(work).at(k),
      lambda run: {
          "memory_in_nd_floats": round(run.memory_in_nd_floats, 2),
          "compile_seconds": round(run.compile_seconds, 1),
      },
      unit="round",
  )


def selection(work: Work, k: int) -> Case:
  """The round against its gradients: the rest is selection and bookkeeping."""
  return Case(
      "round with online learning",
      "our gradients",
      {"num_clients": work.num_clients, "k": k},
      functools.partial(ours.gradients, work),
      lambda: ours.Rounds(work).at(k),
      unit="round",
  )


def repeated(run: Run, times: int) -> Run:
  """Several calls as one."""
  return lambda: [run() for _ in range(times)]


def calls(work: Work, k: int, length: int = 10) -> Case:
  """Several rounds in one program against as many calls."""
  return Case(
      f"{length} rounds in one program",
      f"{length} calls",
      {"num_clients": work.num_clients, "k": k},
      lambda: repeated(ours.Rounds(work).at(k), length),
      lambda: ours.Rounds(work, length).at(k),
      unit="round",
      count=length,
  )


def lanes(work: Work, k: int, count: int = 4, length: int = 1) -> Case:
  """Several simulations in one program against one after another."""
  build = functools.partial(ours.runs, work, k, count, length)
  return Case(
      f"{count} simulations in one program",
      "one after another",
      {"num_clients": work.num_clients, "k": k},
      functools.partial(build, side_by_side=False),
      functools.partial(build, side_by_side=True),
      unit="round",
      count=count * length,
  )


def of_networks(
    names: list[str], num_clients: int, num_devices: int | None
) -> Iterator[Case]:
  """Gradients of networks against the loop and vmap."""
  for name in names:
    work = Work(name, num_clients, num_devices)
    # Both comparisons use one compiled program.
    build = functools.cache(functools.partial(_plain_gradients, work))
    for baseline, build_baseline in (
        ("loop of gradients", baselines.loop),
        ("vmap of gradients", baselines.batched),
    ):
      yield Case(
          f"gradients of {name}",
          baseline,
          {"num_clients": num_clients},
          functools.partial(build_baseline, work),
          build,
          lambda run: {"dim": run.arguments[1].size},
      )


def _plain_gradients(work):
  """Of `work.network`, which for the name cnn is not the built-in one."""
  return ours.gradients(work, models.as_model(work.network, work.data().form))
