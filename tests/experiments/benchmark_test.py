"""The benchmark: both sides do the same work, and no case ends the others."""

import functools
import gzip
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
from absl.testing import absltest, parameterized
from jax.flatten_util import ravel_pytree

from experiments.benchmark import baselines, cases, kernels, ours, suite
from experiments.benchmark.work import BATCH, Work

ROOT = Path(__file__).resolve().parents[2]


class Alike(Work):
  """All samples of a client are the same, so that draws change nothing."""

  def clients(self):
    clients = super().clients()
    alike = np.repeat(clients.order[::BATCH], BATCH)
    return clients.replace(
        features=clients.features[alike], labels=clients.labels[alike]
    )


class SidesTest(absltest.TestCase):

  def test_all_ways_give_the_same(self):
    """Law: each side gives all clients' gradients, or the same local steps."""
    work = Alike("mlp", 2, 1)
    flat = jax.vmap(lambda tree: ravel_pytree(tree)[0])
    gradients = np.stack(baselines.loop(work)())
    self.assertGreater(np.abs(gradients[0] - gradients[1]).max(), 0.01)
    for other in (ours.gradients(work)(), flat(baselines.batched(work)())):
      np.testing.assert_allclose(other, gradients, atol=1e-6)

    # One step gives the gradient, three steps another sum.
    one, three = (
        flat(baselines.local_steps(work, steps, 0.1)()) for steps in (1, 3)
    )
    np.testing.assert_allclose(one, gradients, atol=1e-6)
    self.assertGreater(np.abs(three - 3 * gradients).max(), 0.01)
    np.testing.assert_allclose(
        ours.local_steps(work, 3, 0.1)(), three, atol=1e-5
    )


def _event(kind, process, thread=None, **others):
  return {"ph": kind, "pid": process, "tid": thread, **others}


def _named(process, name, **threads):
  """Names of a process of a trace and of its threads t0, t1, ..."""
  yield _event("M", process, name="process_name", args={"name": name})
  for thread, name in threads.items():
    thread = int(thread[1:])
    yield _event("M", process, thread, name="thread_name", args={"name": name})


def _kernel(process, thread, start, seconds):
  times = {"ts": 1e6 * start, "dur": 1e6 * seconds}
  return _event("X", process, thread, name="fusion", **times)


# Two kernels of two streams overlap; a third one is inside the first, and one
# is apart: 3 s of 10. The group and the host do not count.
_GPU = [
    *_named(
        1, "/device:GPU:0", t0="Stream #14(Compute)", t1="Stream #15(Memcpy)",
        t2="XLA Modules", t3="XLA Ops",
    ),
    *_named(9, "/host:CPU", t0="Stream of the host", t1="python"),
    _kernel(1, 0, 1, 1.5), _kernel(1, 1, 2, 1), _kernel(1, 0, 1.2, 0.1),
    _kernel(1, 0, 8, 1), _kernel(1, 2, 0, 10), _kernel(1, 3, 0, 10),
    _kernel(9, 0, 0, 10), _kernel(9, 1, 0, 10), {},
]
_TPU = [
    *_named(2, "/device:TPU:0", t0="Steps", t1="XLA Ops"),
    _kernel(2, 0, 0, 10), _kernel(2, 1, 5, 0.5), _kernel(2, 1, 5.5, 0.5),
]


class KernelsTest(parameterized.TestCase):

  @parameterized.parameters(
      (_GPU, 3, 4), (_TPU, 1, 2), (_GPU + _TPU, 2, 3)
  )
  def test_union_of_kernels(self, events, busy, count):
    """Law: time with at least one kernel, the mean over the devices."""
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder) / "plugins" / "profile" / "now"
      place.mkdir(parents=True)
      with gzip.open(place / "here.trace.json.gz", "wt") as file:
        json.dump({"traceEvents": events}, file)
      found = kernels.of_trace(kernels.read(Path(folder)))
    self.assertAlmostEqual(found.busy, busy)
    self.assertEqual(found.count, count)

  def test_a_real_trace_without_a_device(self):
    """JAX writes the file that is read; a CPU's has no kernels."""
    with self.assertRaisesRegex(ValueError, "no kernels of a device"):
      kernels.share(lambda: jax.block_until_ready(jax.numpy.ones(3) + 1), 1)


class SuiteTest(absltest.TestCase):

  def test_every_case_runs(self):
    """Law: a suite gives times or one error for each of its lines."""
    size = suite.Size(
        2, 1, "mlp", (100, 10_000), (1000,), 2, 2, 2, ("mlp",), 1
    )
    # A method that compiles fast.
    with mock.patch.object(ours, "METHOD", "periodic_k"):
      lines = list(suite.results(suite.tasks(size), 60))
    json.dumps(lines, allow_nan=False)
    self.assertEqual(
        [line["case"] for line in lines],
        ["gradients"] * 4
        + ["selection for k and 0.7 k"] * 2
        + ["round with online learning", "2 rounds in one program"]
        + ["local steps of all clients", "8 simulations in one program"]
        + ["gradients of mlp"] * 2,
    )
    for line in lines:
      if line["baseline"].startswith("PyTorch") and "error" in line:
        self.assertIn("torch", line["error"])
        continue
      self.assertNotIn("error", line)
      self.assertGreater(min(line["ms"], line["baseline_ms"]), 0)
      self.assertGreaterEqual(line["compile_seconds"], 0)
    (rounds,) = (line for line in lines if line["case"].startswith("2 rounds"))
    self.assertAlmostEqual(
        rounds["rounds_per_second"] * rounds["ms"], 1e3, delta=10
    )

  def test_kernels_on_accelerators(self):
    """Law: each whole round has a second line there, about its kernels."""
    with mock.patch.object(jax, "default_backend", lambda: "gpu"):
      names = [task.names for task in suite.tasks(suite.LARGE)]
    found = [one["k"] for one in names if one["case"] == "kernels of a round"]
    self.assertEqual(found, [1000, 100_000])
    self.assertLen(names, 4 + 4 + 2 * 3 + 1 + 1 + 2 * 7)

  def test_a_case_that_fails(self):
    """Law: the others go on, and none begins after the time."""
    clock = mock.patch.object(suite.time, "monotonic", side_effect=range(9))
    seen = []

    def fail():
      raise MemoryError("no room\nfor this")

    def measure(name):
      seen.append(name)
      return {"ms": 1.5}

    tasks = [suite.Task({"case": "a"}, fail)] + [
        suite.Task({"case": name}, functools.partial(measure, name))
        for name in "bcd"
    ]
    with clock:  # a second for each look
      lines = list(suite.results(iter(tasks), 2.5 / 60))
    self.assertEqual(seen, ["b"])
    late = {"error": "not begun, because --minutes=0.0416667 are over"}
    self.assertEqual(lines, [
        {"case": "a", "error": "MemoryError: no room"},
        {"case": "b", "ms": 1.5},
        {"case": "c", **late},
        {"case": "d", **late},
    ])
    self.assertEqual(
        suite.table(lines[:2]).splitlines(),
        [
            "case   ms  error",
            "a          MemoryError: no room",
            "b     1.5",
        ],
    )

  def test_times_for_each_round(self):
    """Law: a call of several rounds counts as several."""
    calls = []

    def build(name, seconds):
      def run():
        calls.append(name)
        now[0] += seconds

      return lambda: run

    now = [0.0]
    case = cases.Case(
        "a", "b", {"num_clients": 5}, build("b", 6.0), build("a", 2.0),
        unit="round", count=4,
    )
    clock = mock.patch.object(cases.time, "perf_counter", lambda: now[0])
    (task,) = [suite._task(case, suite.SMALL._replace(repeats=3))]
    with clock:
      (line,) = suite.results(iter([task]), 1)
    self.assertEqual(calls, ["b", "a"] * 4)
    self.assertEqual(
        (line["baseline_ms"], line["ms"], line["ratio"]), (1500, 500, 3)
    )
    self.assertEqual((line["rounds_per_second"], line["unit"]), (2, "round"))


class CommandTest(absltest.TestCase):

  def test_lines_and_table(self):
    """The device, a line for each case, and the same as a table."""
    command = [sys.executable, "-m", "experiments.benchmark"]
    result = subprocess.run(
        [*command, "--suite=accelerator", "--minutes=0", "--ks=7"],
        cwd=ROOT, capture_output=True, text=True, encoding="utf-8", check=False,
    )
    self.assertEqual((result.returncode, result.stderr), (0, ""))
    lines, table = (part.splitlines() for part in result.stdout.split("\n\n"))
    device, *lines = map(json.loads, lines)
    self.assertEqual(device["jax"], jax.__version__)
    self.assertEqual(device["platform"], "cpu")
    self.assertIn("jax", table[0])
    self.assertLen(table, 2 + len(lines))
    self.assertTrue(all("not begun" in line["error"] for line in lines))
    self.assertEqual([line["k"] for line in lines[4:7]], [7, 7, 7])


if __name__ == "__main__":
  absltest.main()
