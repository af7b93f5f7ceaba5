"""Sweeps: combinations, processes, failures, second starts."""

import collections
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from absl import flags
from absl.testing import absltest, flagsaver, parameterized
from tensorboardX.proto import event_pb2

from agsfl import lanes, records
from agsfl.config import Config, ConfigError
from experiments import results, sweep

ROOT = Path(__file__).parent.parent
SETTINGS = (
    "--dataset=digits", "--model=mlp", "--num_clients=10", "--num_rounds=6",
    "--eval_every=3", "--controller=fixed", "--batch_size=4",
)


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


os.environ["WANDB_MODE"] = "offline"


def events_of(path):
  """The records of an event file: length, sum, content, sum."""
  content = path.read_bytes()
  while content:
    (size,) = struct.unpack("<Q", content[:8])
    yield event_pb2.Event.FromString(content[12 : 12 + size])
    content = content[16 + size :]


def start(script, *arguments):
  return subprocess.run(
      [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=False,
  )


class CombinationsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("k=100,1000", "k", ["100", "1000"]),
      ("seed=0..3", "seed", ["0", "1", "2", "3"]),
      ("seed=5", "seed", ["5"]),
      ("method=fab_top_k,send_all", "method", ["fab_top_k", "send_all"]),
  )
  def test_values(self, text, name, values):
    self.assertEqual(sweep.values_of(text), (name, values))

  @parameterized.parameters(
      "k", "k=", "kk=1", "k=1,,2", "seed=1..", "seed=3..2", "seed=a..b",
      "k=1,1",
  )
  def test_no_values(self, text):
    with self.assertRaisesRegex(ConfigError, f"^--sweep={text}: must "):
      sweep.values_of(text)

  def test_product(self):
    """Law: every combination once, and nothing else changed."""
    base = Config(num_rounds=9)
    configs = sweep.configs_of(
        base, [("k", ["10", "20.5"]), ("seed", ["0", "1", "2"])]
    )
    self.assertLen(configs, 6)
    self.assertEqual(
        {(config.k, config.seed) for config in configs.values()},
        {(k, seed) for k in (10.0, 20.5) for seed in (0, 1, 2)},
    )
    want = Config(num_rounds=9, k=20.5, seed=1)
    self.assertEqual(configs["k=20.5,seed=1"], want)

  @parameterized.parameters(
      ([("k", ["x"])], "k=x"),
      ([("seed", ["-1"])], "--seed=-1"),
      ([("method", ["none"])], "method=none"),
      ([("k", ["1"]), ("k", ["2"])], "--sweep=k"),
  )
  def test_bad_values(self, sweeps, word):
    with self.assertRaises(ConfigError) as caught:
      sweep.configs_of(Config(), sweeps)
    self.assertIn(word, str(caught.exception))

  def test_command_says_it_all(self):
    """Law: the flags of a command make the same Config."""
    config = Config(k=33.5, per_layer=True, num_clients=7, time_budget=9.5)
    told = dict(
        argument.removeprefix("--").split("=", 1)
        for argument in sweep.command(config, Path("place"))[3:]
    )
    self.assertEqual(told.pop("workdir"), "place")
    with flagsaver.flagsaver():
      for name, text in told.items():
        flags.FLAGS[name].parse(text)
      self.assertEqual(sweep.run_flags.config_from_flags(), config)


class TogetherTest(absltest.TestCase):

  def test_groups(self):
    """Alike but for seeds, rates and beta; budgets alone; so many at most."""
    configs = {
        "a": Config(seed=1), "b": Config(k=9.0), "c": Config(comm_time=1.0),
        "d": Config(time_budget=5.0), "e": Config(time_budget=5.0, seed=1),
        "f": Config(learning_rate=0.5), "g": Config(k=9.0, seed=2),
        "h": Config(method="fedavg"), "i": Config(method="fedavg", k=9.0),
        "j": Config(batch_size=3),
    }
    self.assertEqual(
        lanes.together(configs, 3),
        [
            ["a", "b", "c"], ["f", "g"], ["d"], ["e"], ["h"], ["i"], ["j"],
        ],
    )


class SweepTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.arguments = (
        *SETTINGS, "--sweep=k=50,20000", "--sweep=seed=0..1", "--jobs=2",
        f"--workdir={cls.folder / 'sweep'}",
    )
    cls.first = start("sweep", *cls.arguments)

  def table(self):
    with (self.folder / "sweep" / "results.csv").open(newline="") as file:
      return list(csv.DictReader(file))

  def test_a_failed_run_does_not_stop_the_others(self):
    """k = 20,000 is more than the model's weights."""
    self.assertEqual(self.first.returncode, 1)
    self.assertNotIn("Traceback", self.first.stderr)
    failed = [
        line for line in self.first.stderr.splitlines() if "failed" in line
    ]
    self.assertLen(failed, 2)
    for line in failed:
      self.assertIn("k=20000,seed=", line)
      self.assertIn("--k=20000.0: must be at most", line)
    rows = self.table()
    self.assertEqual([(row["k"], row["seed"]) for row in rows],
                     [("50.0", "0"), ("50.0", "1")])
    for row in rows:
      summary = records.read_summary(row["workdir"])
      for key in ("train_loss", "test_accuracy", "round", "time"):
        self.assertEqual(float(row[key]), summary[key])
    losses = [float(row["train_loss"]) for row in rows]
    self.assertNotEqual(*losses)
    text = (self.folder / "sweep" / "table.md").read_text()
    self.assertIn(f"{np.mean(losses):.4g} ±", text)
    self.assertTrue((self.folder / "sweep" / "figure.png").exists())

  def test_a_run_of_the_sweep_is_a_run(self):
    """The same settings by themselves, on one core, leave the same bytes.

    It also goes to the dashboards and to a CSV file, and prints nothing.
    """
    alone = self.folder / "alone"
    share = 1 if len(os.sched_getaffinity(0)) < 4 else 2
    result = start("run", *SETTINGS, "--k=50", "--seed=1", "--quiet",
                   f"--num_devices={share}", "--tensorboard", "--wandb=agsfl",
                   f"--workdir={alone}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout + result.stderr, "")
    other = self.folder / "sweep" / "k=50,seed=1"
    for name in ("metrics.jsonl", "clients.csv", "params.npy"):
      self.assertEqual((alone / name).read_bytes(), (other / name).read_bytes())
    rows = records.read_rows(alone)
    (events,) = (alone / "tensorboard").iterdir()
    told = collections.defaultdict(dict)
    for event in events_of(events):
      for value in event.summary.value:
        told[event.step][value.tag] = value.simple_value
    for row in rows:
      for key, value in row.items():
        if key != "round" and value is not None:
          self.assertAlmostEqual(told[row["round"]][key], value, places=3)
    self.assertLen(list((alone / "wandb").glob("offline-run-*")), 1)

    out = self.folder / "rows.csv"
    result = start("export", alone, self.folder / "sweep", f"--out={out}")
    self.assertEqual(result.returncode, 0, result.stderr)
    with out.open(newline="") as file:
      exported = list(csv.DictReader(file))
    self.assertLen(exported, 18)
    for line, row in zip(exported[:6], rows, strict=True):
      self.assertEqual(line["asked_seed"], "1")
      self.assertEqual(float(line["k"]), row["k"])
      self.assertEqual(float(line["minibatch_loss"]), row["minibatch_loss"])

  def test_lanes_are_runs(self):
    """Law: lanes of seeds and rates are, to rounding, the runs by themselves.

    A lane that diverges ends alone.
    """
    place = self.folder / "lanes"
    result = start(
        "sweep", *SETTINGS, "--sweep=k=50,70", "--lanes=8",
        "--sweep=seed=0..1", "--sweep=learning_rate=0.01,1e30",
        f"--workdir={place}",
    )
    self.assertEqual(result.returncode, 1)
    failed = [
        line for line in result.stderr.splitlines() if line.startswith("failed")
    ]
    self.assertLen(failed, 4)
    for line in failed:
      self.assertIn("learning_rate=1e30: round", line)
    for seed in (0, 1):
      lane = place / f"k=50,seed={seed},learning_rate=0.01"
      alone = self.folder / "sweep" / f"k=50,seed={seed}"
      for row, other in zip(
          records.read_rows(lane), records.read_rows(alone), strict=True
      ):
        self.assertEqual(set(row), set(other))
        for key, value in row.items():
          if value is not None:
            np.testing.assert_allclose(value, other[key], rtol=1e-4)
      one, two = records.read_clients(lane), records.read_clients(alone)
      self.assertEqual(list(one), list(two))
      np.testing.assert_allclose(one["test_loss"], two["test_loss"], rtol=1e-4)
      self.assertEqual(one["contributed"], two["contributed"])
      np.testing.assert_allclose(
          records.read_params(lane), records.read_params(alone), atol=1e-4
      )
      asked = [
          json.loads((path / "config.json").read_text())
          for path in (lane, alone)
      ]
      self.assertEqual(*[one["asked"] for one in asked])

  def test_started_again_it_goes_on(self):
    place = self.folder / "sweep" / "k=50,seed=0"
    before = (place / "metrics.jsonl").stat().st_mtime_ns
    again = start("sweep", *self.arguments)
    self.assertEqual(again.returncode, 1)
    self.assertEqual((place / "metrics.jsonl").stat().st_mtime_ns, before)
    other = start("sweep", *self.arguments, "--batch_size=5")
    self.assertEqual(other.returncode, 1)
    self.assertIn("batch_size=4, asked for 5", other.stderr)

  def test_plot_of_folders(self):
    """Any folders of runs, grouped by any setting."""
    out = self.folder / "plot.png"
    result = start("plot", self.folder / "sweep", "--group_by=seed",
                   f"--out={out}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertIn("| seed = 0 | 1 |", result.stdout)
    self.assertIn("| seed = 1 | 1 |", result.stdout)
    self.assertTrue(out.exists())
    for arguments, word in (
        ((self.folder / "sweep", "--group_by=none"), "--group_by=none"),
        ((self.folder / "nothing",), "nothing"),
        ((), "folders"),
    ):
      result = start("plot", *arguments, f"--out={out}")
      self.assertEqual(result.returncode, 1)
      self.assertNotIn("Traceback", result.stderr)
      self.assertIn(word, result.stderr)

  def test_submitit(self):
    """Slurm's launcher, by submitit's local executor."""
    folder = self.folder / "cluster"
    with flagsaver.flagsaver():
      commands = {
          folder / f"k={k}": sweep.command(
              Config(dataset="digits", model="mlp", num_rounds=2, k=k,
                     controller="fixed"),
              folder / f"k={k}",
          )
          for k in (40.0, 20000.0)
      }
    launch = sweep.cluster("local", folder, ["timeout_min=5"])
    codes = dict(launch(commands))
    self.assertEqual(codes, dict(zip(commands, (0, 1), strict=True)))
    self.assertLen(results.find(folder), 1)
    with self.assertRaisesRegex(ConfigError, "--slurm=no_such=1"):
      sweep.cluster("local", folder, ["no_such=1"])


class GroupsTest(absltest.TestCase):

  def test_by_all_that_differ_but_the_seed(self):
    run = lambda **asked: results.Run([], {}, None, None, {"b": 1, **asked})
    runs = [run(k=1, seed=0), run(k=1, seed=1), run(k=2, seed=0)]
    self.assertEqual(results.differing(runs), ["k"])
    groups = results.grouped(runs, ["k"])
    self.assertEqual({label: len(group) for label, group in groups.items()},
                     {"k = 1": 2, "k = 2": 1})
    self.assertEqual(list(results.grouped(runs, [])), ["all"])


if __name__ == "__main__":
  absltest.main()
