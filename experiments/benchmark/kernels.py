"""In what share of the time a device computes, by a trace of JAX's profiler."""

import gzip
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

# Names of threads with kernels begin so: a GPU's streams, a TPU's operations. A
# GPU may have both; its streams come first.
_KINDS = ("Stream", "XLA Ops")


class Kernels(NamedTuple):
  """What a trace says of one device, on average over the devices.

  Attributes:
    busy: seconds in which at least one kernel ran.
    count: kernels and copies.
  """

  busy: float
  count: float


def of_trace(events: list[dict[str, Any]]) -> Kernels:
  """The kernels of a trace.

  A device is a process of the trace. Threads other than those with kernels
  repeat them in groups, with the gaps between them.

  Args:
    events: `traceEvents` of a trace in Chrome's format.

  Raises:
    ValueError: the trace has no kernels of a device.
  """
  # The names of processes and threads.
  devices, kinds = set(), {}
  for event in events:
    if event.get("ph") != "M":
      continue
    name = event.get("args", {}).get("name", "")
    if event["name"] == "process_name" and name.startswith("/device:"):
      devices.add(event["pid"])
    if event["name"] == "thread_name":
      for kind in _KINDS:
        if name.startswith(kind):
          kinds[event["pid"], event["tid"]] = kind

  # The times of the kernels, by device and kind of thread.
  spans: dict[int, dict[str, list[tuple[float, float]]]] = {}
  for event in events:
    kind = kinds.get((event.get("pid"), event.get("tid")))
    if event.get("ph") == "X" and kind and event["pid"] in devices:
      span = event["ts"], event["ts"] + event.get("dur", 0.0)
      spans.setdefault(event["pid"], {}).setdefault(kind, []).append(span)
  if not spans:
    raise ValueError("the trace has no kernels of a device")
  best = [next(of[k] for k in _KINDS if k in of) for of in spans.values()]
  return Kernels(
      sum(map(_union, best)) / 1e6 / len(best), sum(map(len, best)) / len(best)
  )


def _union(spans):
  """The length of the union of intervals (start, end)."""
  total, reached = 0.0, float("-inf")
  for start, end in sorted(spans):
    total += max(0.0, end - max(start, reached))
    reached = max(reached, end)
  return total


def read(folder: Path) -> list[dict[str, Any]]:
  """The events of the one trace below a folder."""
  (path,) = folder.rglob("*.trace.json.gz")
  with gzip.open(path, "rt", encoding="utf-8") as file:
    return json.load(file)["traceEvents"]


def share(run: Callable[[], Any], calls: int = 5) -> dict[str, float]:
  """Traces some calls.

  Args:
    run: does the work once and waits; compiled already.
    calls: how many.

  Returns:
    `kernel_share` of the wall time, and for each call the time in `ms`, and
    how many `kernels` ran.
  """
  options = jax.profiler.ProfileOptions()
  options.python_tracer_level = options.host_tracer_level = 0
  # The first trace of a process sets up the device's counters.
  for _ in range(2):
    with tempfile.TemporaryDirectory() as folder:
      with jax.profiler.trace(folder, profiler_options=options):
        start = time.perf_counter()
        for _ in range(calls):
          run()
        seconds = time.perf_counter() - start
      found = of_trace(read(Path(folder)))
  return {
      "ms": round(1e3 * seconds / calls, 3),
      "kernel_share": round(found.busy / seconds, 3),
      "kernels": round(found.count / calls),
  }
