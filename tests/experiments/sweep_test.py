"""Sweeps: combinations, processes, failures, stops, second starts."""

import collections
import contextlib
import csv
import dataclasses
import io
import json
import os
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
import wandb
from absl import flags
from absl.testing import absltest, flagsaver, parameterized
from tensorboardX.proto import event_pb2

from agsfl import lanes, runs
from agsfl.config import Config
from agsfl.data.federated import fingerprint, load
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.records import folder as records
from experiments import export, plot, run, sweep
from experiments.lib import dashboards, scripts
from experiments.lib import groups as results

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "--dataset=digits", "--model=mlp", "--num_clients=10", "--num_rounds=6",
    "--eval_every=3", "--controller=fixed", "--batch_size=4",
    "--num_devices=1",
)


_OF_MODULE = contextlib.ExitStack()


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  _OF_MODULE.enter_context(mock.patch.dict(os.environ, WANDB_MODE="offline"))


def tearDownModule():
  _OF_MODULE.close()


def events_of(path):
  """The records of an event file: length, sum, content, sum."""
  content = path.read_bytes()
  while content:
    (size,) = struct.unpack("<Q", content[:8])
    yield event_pb2.Event.FromString(content[12 : 12 + size])
    content = content[16 + size :]


def start(script, *arguments, **environment):
  return subprocess.run(
      [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env={**os.environ, **environment},
      check=False,
  )


@contextlib.contextmanager
def given(*arguments):
  """The flags as this command line sets them."""
  with flagsaver.flagsaver():
    flags.FLAGS(["sweep", *map(str, arguments)])
    yield


def main(script, *arguments):
  """A script in this process, for its start takes seconds.

  Returns:
    (its exit code or last words, what it printed).
  """
  words = [str(argument) for argument in arguments]
  names = [word for word in words if not word.startswith("--")]
  printed = io.StringIO()
  with (
      given(*[word for word in words if word.startswith("--")]),
      mock.patch.object(scripts, "start"),
      contextlib.redirect_stdout(printed),
  ):
    try:
      script.main(["script", *names])
    except SystemExit as end:
      return end.code, printed.getvalue()
  return 0, printed.getvalue()


class CombinationsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("k=100,1000", "k", ["100", "1000"]),
      ("seed=0..3", "seed", ["0", "1", "2", "3"]),
      ("seed=5", "seed", ["5"]),
      ("method=fab_top_k,send_all", "method", ["fab_top_k", "send_all"]),
      ("dataset=npz:../a,npz:../b", "dataset", ["npz:../a", "npz:../b"]),
  )
  def test_values(self, text, name, values):
    self.assertEqual(sweep.values_of(text), (name, values))

  @parameterized.parameters(
      "k", "k=", "kk=1", "k=1,,2", "seed=3..2", "k=1,1",
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
      ([("k", ["x"])], "--sweep=k=x: must "),
      ([("seed", ["1.."])], "--sweep=seed=1..: must "),
      ([("seed", ["-1"])], "--seed=-1: must "),
      ([("method", ["none"])], "--sweep=method=none: must "),
      ([("k", ["1"]), ("k", ["2"])], "--sweep=k: must "),
      (
          [("seed", ["0", "1"]), ("k", ["100", "2", "1e2"])],
          "--sweep=seed=0,k=1e2: must not be the same settings as seed=0,k=100",
      ),
      ([("replay", ["a/b", "a_b"])], "--sweep=replay=a_b: must differ "),
      ([("replay", ["ä" * 130])], "must have at most 255 bytes"),
  )
  def test_bad_values(self, sweeps, word):
    base = Config(controller="replay", replay="run")
    with self.assertRaises(ConfigError) as caught:
      sweep.configs_of(base, sweeps)
    self.assertIn(word, str(caught.exception))
    self.assertLen(str(caught.exception).splitlines(), 1)

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

  def test_command_passes_on(self):
    """Flags of a run that are no settings; those of the sweep stay."""
    passed_on = [
        "--checkpoint_every=7", "--checkpoints_kept=3", "--log_every=9",
        "--quiet", "--tensorboard", "--wandb=project",
    ]
    own = ["--sweep=k=1", "--jobs=2", "--workdir=all", "--k=5"]
    settings = len(sweep.command(Config(), Path("place")))
    with given(*passed_on, *own):
      told = sweep.command(Config(), Path("place"))
    self.assertCountEqual(told[settings - 1 : -1], passed_on)


class MistakesTest(parameterized.TestCase):
  """One line each, before anything is written."""

  @parameterized.parameters(
      ("--sweep=", []),
      ("--launcher=slurm", ["--lanes=2"]),
      ("--jobs=2", ["--lanes=2"]),
      ("--tensorboard=True", ["--lanes=2"]),
      ("--wandb=project", ["--lanes=2"]),
      ("--workdir=/dev/null/x", []),
      (f"--workdir={ROOT / 'setup.py'}", []),
      ("--batch_size=0", []),
  )
  def test_flags(self, wrong, others):
    swept = [] if wrong == "--sweep=" else ["--sweep=seed=0..1", wrong]
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder) / "sweep"
      told, _ = main(sweep, f"--workdir={place}", *swept, *others)
      self.assertFalse(place.exists())
    self.assertStartsWith(told, f"error: {wrong}: must be ")
    self.assertLen(told.splitlines(), 1)


class WandbTest(parameterized.TestCase):

  @parameterized.parameters("me/project", "", "a" * 200)
  def test_no_project(self, project):
    with given(f"--wandb={project}"):
      with self.assertRaisesRegex(ConfigError, f"^--wandb={project}: must be "):
        with dashboards.opened(Config(), Path("run")):
          self.fail()

  def test_nobody_is_logged_in(self):
    """Says so before there is anything of the run."""
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder) / "run"
      wandb.teardown()
      with mock.patch.dict(
          os.environ, WANDB_MODE="online", WANDB_API_KEY="", NETRC=os.devnull,
          WANDB_CONFIG_DIR=folder,
      ):
        told, _ = main(run, "--wandb=project", f"--workdir={place}")
      wandb.teardown()
      self.assertFalse(place.exists())
    self.assertStartsWith(told, "error: --wandb=project: must be ")
    self.assertIn("wandb login", told)
    self.assertLen(told.splitlines(), 1)

  def test_no_connection(self):
    lost = wandb.errors.CommError("no route\nto the host")
    with given("--wandb=project"), mock.patch.object(
        wandb, "init", side_effect=lost
    ):
      with dashboards.opened(Config(), Path("run")) as tell:
        with self.assertRaisesRegex(ConfigError, r"^--wandb=.*\(no route\);"):
          tell({"round": 1})


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


class LanesTest(absltest.TestCase):
  """Which runs are lanes, and how they end; see SweepTest for the numbers."""

  BASE = Config(dataset="digits", model="mlp", method="send_all", batch_size=4)

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_goes_by_itself(self):
    """What has a checkpoint or a budget, and what is left over; before all."""
    changes = {
        "a": {}, "b": {"seed": 1}, "c": {"seed": 2}, "d": {"seed": 3},
        "e": {"time_budget": 9.0}, "f": {"time_budget": 9.0, "seed": 1},
    }
    configs = {
        self.folder / name: dataclasses.replace(self.BASE, **change)
        for name, change in changes.items()
    }
    (self.folder / "b" / "checkpoints").mkdir(parents=True)
    (self.folder / "c").mkdir()
    started = []
    launch = lambda commands: (
        (place, started.append(place.name)) for place in commands
    )
    in_lanes = lambda group: started.append([place.name for place in group])
    with (
        given("--lanes=2"),
        mock.patch.object(sweep, "run_lanes", lambda x: in_lanes(x) or {}),
        sweep.tqdm(disable=True) as bar,
    ):
      sweep.run_all(configs, launch, bar)
    self.assertEqual(started, ["b", "d", "e", "f", ["a", "c"]])

  def test_no_lane_is_left(self):
    """Rounds end with the last lane; none waits for what cannot be one.

    Nothing of an earlier start stays.
    """
    changes = {
        "a": {"learning_rate": 1e30},
        "b": {"learning_rate": 1e30, "seed": 1},
        "c": {"k": 20000.0},
        "d": {"time_budget": 9.0},
    }
    configs = {
        self.folder / name: dataclasses.replace(
            self.BASE, num_rounds=10**8, **change
        )
        for name, change in changes.items()
    }
    first = self.folder / "a"
    data = load(self.BASE.dataset, self.BASE.as_partition())
    with records.RunFolder(first, dataclasses.asdict(configs[first])) as folder:
      folder.begin({"data": fingerprint(data)})
      folder.row({"of": "an earlier start"})
    folder.checkpoints.mkdir()
    outcomes = lanes.simulate(configs)
    self.assertEqual(
        {place.name: type(outcome) for place, outcome in outcomes.items()},
        {"a": DivergedError, "b": DivergedError, "c": ConfigError,
         "d": ConfigError},
    )
    for name in "cd":
      self.assertFalse((self.folder / name).exists())
    self.assertFalse(folder.checkpoints.exists())
    self.assertEqual(records.read_rows(first)[0]["round"], 1)

  def test_stop(self):
    configs = {
        self.folder / str(seed): dataclasses.replace(self.BASE, seed=seed)
        for seed in (0, 1)
    }
    with self.assertRaisesRegex(StoppedError, "round 1: stopped"):
      lanes.simulate(configs, should_stop=lambda: True)


class SweepTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.arguments = (
        *SETTINGS, "--sweep=k=50", "--sweep=seed=0..1",
        f"--workdir={cls.folder / 'sweep'}",
    )
    cls.code, cls.printed = main(sweep, *cls.arguments)

  def table(self):
    with (self.folder / "sweep" / "results.csv").open(newline="") as file:
      return list(csv.DictReader(file))

  def test_tables(self):
    self.assertEqual(self.code, 0)
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
    self.assertIn(text, self.printed)
    self.assertTrue((self.folder / "sweep" / "figure.png").exists())

  def test_a_run_of_the_sweep_is_a_run(self):
    """The same settings by themselves, on one core, leave the same bytes.

    It also goes to the dashboards and to a CSV file, and prints nothing.
    """
    alone = self.folder / "alone"
    result = start("run", *SETTINGS, "--k=50", "--seed=1", "--quiet",
                   "--tensorboard", "--wandb=agsfl", f"--workdir={alone}")
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
    code, _ = main(export, alone, self.folder / "sweep", f"--out={out}")
    self.assertEqual(code, 0)
    with out.open(newline="") as file:
      exported = list(csv.DictReader(file))
    self.assertLen(exported, 18)
    for line, row in zip(exported[:6], rows, strict=True):
      self.assertEqual(line["asked_seed"], "1")
      self.assertEqual(float(line["k"]), row["k"])
      self.assertEqual(float(line["minibatch_loss"]), row["minibatch_loss"])

  def test_lanes_are_runs(self):
    """Law: lanes of seeds and rates are, to rounding, the runs by themselves.

    A lane that diverges, or cannot be, ends alone.
    """
    place = self.folder / "lanes"
    result = start(
        "sweep", *SETTINGS, "--sweep=k=50,20000", "--lanes=8",
        "--sweep=seed=0..1", "--sweep=learning_rate=0.01,1e30",
        f"--workdir={place}", "--quiet", JAX_LOG_COMPILES="1",
    )
    self.assertEqual(result.returncode, 1)
    self.assertEqual(result.stdout, "")
    # Of the training and the test samples; for all lanes together.
    compiled = "Finished XLA compilation of jit(of_samples)"
    self.assertEqual(result.stderr.count(compiled), 2)
    failed = [
        line for line in result.stderr.splitlines() if line.startswith("failed")
    ]
    self.assertLen(failed, 6)
    for line in failed:
      why = (
          "--k=20000.0: must be" if "k=20000" in line else "a smaller --learn"
      )
      self.assertIn(why, line)
    for seed in (0, 1):
      lane = place / f"k=50,seed={seed},learning_rate=0.01"
      alone = self.folder / "sweep" / f"k=50,seed={seed}"
      self.assertLen(list((lane / "figures").iterdir()), 4)
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

  def test_started_again(self):
    """Finished runs are read, failed ones started; others are refused."""
    started = []

    def launch(commands):
      started.extend(place.name for place in commands)
      return ((place, "why") for place in commands)

    place = self.folder / "sweep"
    before = (place / "k=50,seed=0" / "metrics.jsonl").stat().st_mtime_ns
    again = lambda: sweep.sweep(
        sweep.run_flags.config_from_flags(), place, launch
    )
    more = (
        *SETTINGS, "--sweep=k=50,20000", "--sweep=seed=0..1", "--quiet",
        f"--workdir={place}",
    )
    with given(*more):
      failed = again()
    self.assertEqual(started, ["k=20000,seed=0", "k=20000,seed=1"])
    self.assertEqual(failed, dict.fromkeys(started, "why"))
    after = (place / "k=50,seed=0" / "metrics.jsonl").stat().st_mtime_ns
    self.assertEqual(before, after)
    with given(*more, "--batch_size=5"):
      with self.assertRaisesRegex(ConfigError, "batch_size=4, asked for 5"):
        again()

  def test_a_damaged_run(self):
    """It is named with its file; the others are tabled."""
    place = self.folder / "damaged"
    shutil.copytree(self.folder / "sweep", place)
    path = place / "k=50,seed=1" / "summary.json"
    path.write_text(path.read_text()[:20])
    with given(*self.arguments, "--quiet", f"--workdir={place}"):
      failed = sweep.sweep(
          sweep.run_flags.config_from_flags(), place, lambda commands: ()
      )
    self.assertEqual(list(failed), ["k=50,seed=1"])
    self.assertIn("finished run (summary.json: ", failed["k=50,seed=1"])
    with (place / "results.csv").open(newline="") as file:
      self.assertEqual([row["seed"] for row in csv.DictReader(file)], ["0"])

  def test_what_cannot_be_written(self):
    """A finished run shows its table all the same; a sweep says so."""
    place = self.folder / "unwritable"
    shutil.copytree(self.folder / "sweep", place)
    shutil.rmtree(place / "k=50,seed=0" / "figures")
    (place / "k=50,seed=0" / "figures").touch()
    with self.assertLogs(level="WARNING") as logged:
      code, printed = main(
          run, *SETTINGS, "--k=50", f"--workdir={place / 'k=50,seed=0'}"
      )
    self.assertEqual(code, 0)
    self.assertIn("train loss", printed)
    self.assertIn("figures", logged.output[0])
    (place / "results.csv").unlink()
    (place / "results.csv" / "below").mkdir(parents=True)
    told, _ = main(sweep, *self.arguments, f"--workdir={place}")
    self.assertStartsWith(told, f"error: --workdir={place}: must be ")

  def test_each_run_once(self):
    """However its path is spelled."""
    place = self.folder / "sweep"
    found = results.read_all(
        [place, place / "k=50,seed=0", place / ".." / place.name]
    )
    self.assertLen(found, 2)

  def test_plot_of_folders(self):
    """Any folders of runs, grouped by any setting."""
    out = self.folder / "plot.png"
    code, printed = main(
        plot, self.folder / "sweep", "--group_by=seed", f"--out={out}"
    )
    self.assertEqual(code, 0)
    self.assertIn("| seed = 0 | 1 |", printed)
    self.assertIn("| seed = 1 | 1 |", printed)
    self.assertTrue(out.exists())
    for arguments, word in (
        ((self.folder / "sweep", "--group_by=none"), "--group_by=none"),
        ((self.folder / "nothing",), "nothing"),
        ((), "folders"),
    ):
      told, _ = main(plot, *arguments, f"--out={out}")
      self.assertStartsWith(told, "error: ")
      self.assertIn(word, told)


class StopTest(absltest.TestCase):

  def test_a_signal_while_data_are_loaded(self):
    """It stops the run after its first rounds, to be taken up."""

    def load_late(*arguments):
      signal.raise_signal(signal.SIGTERM)
      return load(*arguments)

    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    with (
        mock.patch.object(runs, "load", load_late),
        contextlib.redirect_stderr(io.StringIO()) as told,
    ):
      code, _ = main(run, *SETTINGS, f"--workdir={folder}")
    self.assertEqual(code, 130)
    done = len(records.read_rows(folder))
    self.assertBetween(done, 1, 3)
    self.assertTrue((folder / "checkpoints" / str(done)).exists())
    self.assertIn(f"round {done}: stopped; to go on: ", told.getvalue())

  def test_ctrl_c(self):
    """The run that is on keeps its checkpoint, the others do not begin."""
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    arguments = (
        *SETTINGS, "--num_rounds=500", "--eval_every=500",
        "--sweep=k=50,20000", f"--workdir={folder}",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.sweep", *arguments],
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )
    self.addCleanup(process.kill)
    rows = folder / "k=50" / "metrics.jsonl"
    while not (rows.exists() and rows.stat().st_size):
      self.assertIsNone(process.poll())
      time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 130)
    self.assertNotIn("Traceback", told)
    self.assertIn("0 of 2 runs are finished; to go on: ", told)
    _, command = told.strip().rsplit("to go on: ", 1)
    self.assertEqual(
        shlex.split(command), ["python", "-m", "experiments.sweep", *arguments]
    )
    self.assertTrue(list((folder / "k=50" / "checkpoints").iterdir()))
    self.assertFalse((folder / "k=20000").exists())
    log = folder / "k=50" / "log.txt"
    self.assertIn("to go on", log.read_text())  # it has ended
    done = len(records.read_rows(folder / "k=50"))
    self.assertLess(done, 500)

    with contextlib.redirect_stderr(io.StringIO()) as told:
      code, _ = main(sweep, *arguments)
    self.assertEqual(code, 1)
    self.assertEqual(
        told.getvalue(),
        "failed: k=20000: (1) error: --k=20000.0: must be at most the model's "
        "9610 weights\n",
    )
    self.assertEqual(
        [row["round"] for row in records.read_rows(folder / "k=50")],
        list(range(1, 501)),
    )


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
