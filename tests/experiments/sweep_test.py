"""Sweeps: combinations, processes, failures, stops, second starts."""

import contextlib
import csv
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import numpy as np
from absl import flags
from absl.testing import absltest, flagsaver, parameterized
from matplotlib import image

from agsfl import frame, programs, simulation, weights
from agsfl.config import Config
from agsfl.data.federated import load
from agsfl.errors import ConfigError
from agsfl.parts import Parts
from agsfl.records.read import Run, read_run
from experiments import export, plot, run, sweep
from experiments.lib import comparison, groups, launchers, stopping
from experiments.report import __main__ as report
from tests.experiments.dashboards_test import scalars_of
from tests.small import given, main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "--dataset=digits", "--model=mlp", "--num_clients=10", "--num_rounds=6",
    "--eval_every=3", "--method=periodic_k", "--controller=fixed",
    "--batch_size=4", "--num_devices=1",
)


_OF_MODULE = contextlib.ExitStack()


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  # Processes compile as this one does; see conftest.py.
  _OF_MODULE.enter_context(mock.patch.dict(
      os.environ, WANDB_MODE="offline", JAX_DISABLE_MOST_OPTIMIZATIONS="1"
  ))


def tearDownModule():
  _OF_MODULE.close()


def start(script, *arguments, **environment):
  return subprocess.run(
      [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=ROOT,
      env={**os.environ, **environment},
      check=False,
  )


class CombinationsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("k=100,1000", "k", ["100", "1000"]),
      ("seed=0..3", "seed", ["0", "1", "2", "3"]),
      ("seed=5", "seed", ["5"]),
      ("method=fab_top_k,send_all", "method", ["fab_top_k", "send_all"]),
      ("dataset=npz:../a,npz:../b", "dataset", ["npz:../a", "npz:../b"]),
      ("dataset='npz:a,b',digits", "dataset", ["npz:a,b", "digits"]),
      ("k_min=None,1%", "k_min", ["None", "1%"]),
  )
  def test_values(self, text, name, values):
    self.assertEqual(sweep.values_of(text), (name, values))

  @parameterized.parameters(
      "k", "k=", "kk=1", "k=1,,2", "seed=3..2", "k=1,1", "dataset='a,b",
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

  def test_none_and_shares(self):
    """None leaves a setting unset; a share of D is a value of k."""
    configs = sweep.configs_of(
        Config(k_min=9.0), [("k_min", ["None", "1%", "20"])]
    )
    self.assertEqual(
        [(label, config.k_min) for label, config in configs.items()],
        [("k_min=None", None), ("k_min=1%", "1%"), ("k_min=20", 20.0)],
    )

  @parameterized.parameters(
      ([("k", ["x"])], "--k=x: must "),
      ([("seed", ["None"])], "--sweep=seed=None: must "),
      ([("seed", ["1.."])], "--sweep=seed=1..: must "),
      ([("seed", ["-1"])], "--seed=-1: must "),
      ([("method", ["none"])], "--method=none: must "),
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

  def test_a_misspelt_setting(self):
    """Law: the names that are like it are there."""
    with self.assertRaisesRegex(
        ConfigError, "^--sweep=batchsize=1: must begin with a setting and =, "
        "such as batch_size="
    ):
      sweep.values_of("batchsize=1")

  def test_too_many(self):
    """A million runs are refused at once; their settings are not made."""
    seeds = sweep.values_of("seed=0..999")
    ks = sweep.values_of("k=" + ",".join(map(str, range(1, 1001))))
    with mock.patch.object(sweep.run_flags, "parse") as parse:
      with self.assertRaisesRegex(ConfigError, "10,000 .* is 1,000,000"):
        sweep.configs_of(Config(), [seeds, ks])
    parse.assert_not_called()

  def test_command_says_it_all(self):
    """Law: the flags of a command make the same Config."""
    config = Config(
        k=33.5, per_layer=True, num_clients=7, time_budget=90.0,
        dataset="leaf:data/v1.0",
    )
    words = dict(
        argument.removeprefix("--").split("=", 1)
        for argument in sweep.command(config, Path("place"))[4:]
    )
    self.assertEqual(words.pop("workdir"), "place")
    with flagsaver.flagsaver():
      for name, text in words.items():
        flags.FLAGS[name].parse(text)
      self.assertEqual(sweep.run_flags.config_from_flags(), config)

  def test_command_passes_on(self):
    """Flags of a run that are no settings; those of the sweep stay."""
    passed_on = [
        "--checkpoint_every=7", "--checkpoints_kept=3", "--log_every=9",
        "--quiet", "--tensorboard", "--wandb=project", "--trackio=p",
        "--plugins=a,b", "--nokeep_state", "--compilation_cache_dir=programs",
    ]
    own = ["--sweep=k=1", "--jobs=2", "--workdir=all", "--k=5"]
    settings = len(sweep.command(Config(), Path("place")))
    with given(*passed_on, *own):
      words = sweep.command(Config(), Path("place"))
    self.assertCountEqual(words[settings - 1 : -1], passed_on)


class MistakesTest(parameterized.TestCase):
  """One line each, before anything is written."""

  @parameterized.parameters(
      ("--sweep=", []),
      ("--launcher=slurm", ["--lanes=2"]),
      ("--jobs=2", ["--lanes=2"]),
      ("--tensorboard=True", ["--lanes=2"]),
      ("--wandb=project", ["--lanes=2"]),
      ("--trackio=project", ["--lanes=2"]),
      ("--checkpoints_kept=3", ["--lanes=2"]),
      ("--log_every=5", ["--lanes=2"]),
      # Refused before they are listed.
      ("--sweep=batch_size=0..999999999999", []),
      ("--workdir=/dev/null/x", []),
      (f"--workdir={ROOT / 'setup.py'}", []),
      ("--batch_size=0", []),
  )
  def test_flags(self, wrong, others):
    swept = [] if wrong == "--sweep=" else ["--sweep=seed=0..1", wrong]
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder) / "sweep"
      error, _ = main(sweep, f"--workdir={place}", *swept, *others)
      self.assertFalse(place.exists())
    self.assertStartsWith(error, f"error: {wrong}: must be ")
    self.assertLen(error.splitlines(), 1)


class LanesTest(absltest.TestCase):
  """Which runs go side by side; see sweeps_test for what they do."""

  BASE = Config(dataset="digits", model="mlp", method="send_all", batch_size=4)

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_what_goes_by_itself(self):
    """Runs of another program, and left-over runs; they go before lanes."""
    changes = {
        "a": {}, "b": {"seed": 1}, "c": {"seed": 2}, "d": {"batch_size": 9},
    }
    configs = {
        self.folder / name: dataclasses.replace(self.BASE, **change)
        for name, change in changes.items()
    }
    started = []
    launch = lambda commands: (
        (place, started.append(place.name)) for place in commands
    )
    in_lanes = lambda group: started.append([place.name for place in group])
    with (
        given("--lanes=2"),
        mock.patch.object(sweep, "run_lanes", lambda x, _: in_lanes(x) or {}),
        sweep.tqdm(total=4, disable=True) as bar,
    ):
      sweep.run_all(configs, launch, bar, stopping.Signals())
    self.assertEqual(started, ["c", "d", ["a", "b"]])

  def test_a_log_names_each_run_that_ends(self):
    """Law: the number, the outcome and the folder, where there is no bar."""
    configs = {
        self.folder / name: dataclasses.replace(self.BASE, seed=seed)
        for seed, name in enumerate("ab", 1)
    }
    ends = zip(configs, (None, "(1) error: no"), strict=True)
    with (
        given("--lanes=1"),
        mock.patch.object(sweep.logging, "info") as info,
        sweep.tqdm(total=5, initial=3, disable=True) as bar,
    ):
      sweep.run_all(configs, lambda commands: ends, bar, stopping.Signals())
    self.assertEqual(
        [call.args[0] % call.args[1:] for call in info.mock_calls],
        ["run 4 of 5 finished: a", "run 5 of 5 failed: b"],
    )


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
    self.assertEqual(
        [(row["k"], row["seed"], row["run"]) for row in rows],
        [("50", "0", "k=50,seed=0"), ("50", "1", "k=50,seed=1")],
    )
    for row in rows:
      summary = read_run(self.folder / "sweep" / row["run"]).summary
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

    It also goes to the dashboards, and prints nothing.
    """
    alone = self.folder / "alone"
    result = start("run", *SETTINGS, "--k=50", "--seed=1", "--quiet",
                   "--tensorboard", "--wandb=agsfl", f"--workdir={alone}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout + result.stderr, "")
    other = self.folder / "sweep" / "k=50,seed=1"
    for name in ("metrics.jsonl", "clients.csv", "params.npy"):
      self.assertEqual((alone / name).read_bytes(), (other / name).read_bytes())
    rows = read_run(alone).rows
    logged = scalars_of(alone / "tensorboard")
    for row in rows:
      for key, value in row.items():
        if key != "round" and value is not None:
          point = dict(logged[key])[row["round"]]
          self.assertAlmostEqual(point, value, places=3)
    self.assertLen(list((alone / "wandb").glob("offline-run-*")), 1)

  def test_lanes_are_runs(self):
    """Law: lanes of seeds and rates are, to rounding, the runs by themselves.

    A lane that diverges, or cannot be, ends alone.
    """
    place = self.folder / "lanes"
    result = start(
        "sweep", *SETTINGS, "--sweep=k=50,20000", "--lanes=8",
        "--sweep=seed=0..1", "--sweep=learning_rate=0.01,1e30",
        f"--workdir={place}", "--quiet",
    )
    self.assertEqual(result.returncode, 1)
    self.assertEqual(result.stdout, "")
    failed = result.stderr.splitlines()
    self.assertLen(failed, 6)
    for line in failed:
      why = (
          "--k=20000: must be" if "k=20000" in line else "a smaller --learn"
      )
      self.assertStartsWith(line, "failed: k=")
      self.assertIn(why, line)
    for seed in (0, 1):
      lane = place / f"k=50,seed={seed},learning_rate=0.01"
      alone = self.folder / "sweep" / f"k=50,seed={seed}"
      self.assertLen(list((lane / "figures").iterdir()), 5)
      one, two = read_run(lane), read_run(alone)
      for row, other in zip(one.rows, two.rows, strict=True):
        self.assertEqual(set(row), set(other))
        for key, value in row.items():
          if value is not None:
            np.testing.assert_allclose(value, other[key], rtol=1e-4)
      self.assertEqual(list(one.clients), list(two.clients))
      np.testing.assert_allclose(
          one.clients["test_loss"], two.clients["test_loss"], rtol=1e-4
      )
      self.assertEqual(one.contributed.tolist(), two.contributed.tolist())
      np.testing.assert_allclose(one.params, two.params, atol=1e-4)
      self.assertEqual(one.asked, two.asked)

  def test_started_again(self):
    """Finished runs are read, failed ones started; others are refused."""
    started = []

    def launch(commands):
      started.extend(place.name for place in commands)
      return ((place, "why") for place in commands)

    place = self.folder / "sweep"
    before = (place / "k=50,seed=0" / "metrics.jsonl").stat().st_mtime_ns
    again = lambda: sweep.sweep(
        sweep.run_flags.config_from_flags(), place, launch,
        stopping.Signals(),
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

  def test_results_of_all_runs_below(self):
    """Those of an earlier sweep too, and of links, each once."""
    place = self.folder / "twice"
    first = "k=50,seed=0"
    shutil.copytree(self.folder / "sweep" / first, place / first)
    for link in ("disk", "again"):
      (place / link).symlink_to(self.folder / "sweep" / "k=50,seed=1")
    with given(
        *SETTINGS, "--sweep=k=50", "--sweep=seed=0", "--quiet",
        f"--workdir={place}",
    ):
      sweep.sweep(
          sweep.run_flags.config_from_flags(), place, lambda commands: (),
          stopping.Signals(),
      )
    with (place / "results.csv").open(newline="") as file:
      self.assertCountEqual(
          [(row["seed"], row["run"]) for row in csv.DictReader(file)],
          [("0", "k=50,seed=0"), ("1", "again")],
      )

  def test_a_damaged_run(self):
    """It is named with its file; the others are tabled."""
    place = self.folder / "damaged"
    shutil.copytree(self.folder / "sweep", place)
    path = place / "k=50,seed=1" / "summary.json"
    path.write_text(path.read_text()[:20])
    with given(*self.arguments, "--quiet", f"--workdir={place}"):
      failed = sweep.sweep(
          sweep.run_flags.config_from_flags(), place, lambda commands: (),
          stopping.Signals(),
      )
    self.assertEqual(list(failed), ["k=50,seed=1"])
    self.assertIn("summary.json is damaged: ", failed["k=50,seed=1"])
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
    error, _ = main(sweep, *self.arguments, f"--workdir={place}")
    self.assertStartsWith(error, f"error: --workdir={place}: must be ")

  def test_the_home_folder(self):
    """Law: ~ is the home folder wherever a path is taken."""
    self.enterContext(mock.patch.dict(os.environ, HOME=str(self.folder)))
    one = "~/sweep/k=50,seed=0"
    for script, *arguments in (
        (export, "~/sweep", "--out=~/home.csv"),
        (plot, "~/sweep", "--out=~/home.png"),
        (report, "~/sweep", "--out=~/home.html"),
        (run, *SETTINGS, "--k=50", f"--workdir={one}"),
    ):
      code, printed = main(script, *arguments)
      self.assertEqual(code, 0, printed)
    for name in ("home.csv", "home.png", "home.html"):
      self.assertTrue((self.folder / name).exists(), name)
    config = Config(controller="replay", replay=one, init_from=one)
    dim = read_run(one).config["num_weights"]
    self.assertEqual(programs.recorded_ks(config, dim), (50.0,) * 6)
    self.assertLen(weights.weights_of("init_from", one, dim), dim)
    simulation.identity_of(config, Parts())  # reads the weights too
    self.assertFalse(Path("~").exists())

  def test_plot_of_folders(self):
    """Any folders of runs, grouped by any setting."""
    out = self.folder / "plot.png"
    code, printed = main(
        plot, self.folder / "sweep", "--group_by=seed", f"--out={out}"
    )
    self.assertEqual(code, 0)
    self.assertIn("| **seed = 0** | 1 |", printed)
    self.assertIn("| seed = 1 | 1 |", printed)
    self.assertTrue(out.exists())
    for arguments, word in (
        ((self.folder / "sweep", "--group_by=none"), "--group_by=none"),
        ((self.folder / "nothing",), "nothing"),
        ((), "no folder"),
    ):
      error, _ = main(plot, *arguments, f"--out={out}")
      self.assertStartsWith(error, "error: ")
      self.assertIn(word, error)


class StopTest(absltest.TestCase):

  def test_a_signal_while_a_sweep_is_prepared(self):
    """It is noted, no run begins, and the sweep can go on."""
    for seed in (3, 9):  # 9 is the last: nothing is asked after it
      asked = []

      def is_finished(config, *_, seed=seed, asked=asked):
        asked.append(config.seed)
        if config.seed == seed:
          signal.raise_signal(signal.SIGTERM)
        return False

      place = Path(self.enterContext(tempfile.TemporaryDirectory())) / "sweep"
      with (
          mock.patch.object(simulation, "is_finished", is_finished),
          mock.patch.object(launchers, "_start", side_effect=OSError) as begun,
      ):
        code, printed = main(sweep, "--sweep=seed=0..9", f"--workdir={place}")
      begun.assert_not_called()
      self.assertEqual(code, 130)
      self.assertEqual(asked, list(range(seed + 1)))
      self.assertRegex(printed, "stopped; .*to go on: ")
      self.assertEmpty(list(place.iterdir()))

  def test_a_signal_while_data_are_loaded(self):
    """It stops the run after its first rounds; the run can go on later."""

    def load_late(*arguments):
      signal.raise_signal(signal.SIGTERM)
      return load(*arguments)

    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    with mock.patch.object(simulation, "load", load_late):
      code, printed = main(run, *SETTINGS, f"--workdir={folder}")
    self.assertEqual(code, 130)
    done = len(read_run(folder).rows)
    self.assertBetween(done, 1, 3)
    self.assertTrue((folder / "checkpoints" / str(done)).exists())
    self.assertIn(f"round {done}: stopped; to go on: ", printed)

  def test_ctrl_c(self):
    """The current run saves a checkpoint, and the others do not begin."""
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
    _, printed = process.communicate(timeout=60)
    self.assertEqual(process.returncode, 130)
    self.assertNotIn("Traceback", printed)
    self.assertIn("0 of 2 runs are finished; to go on: ", printed)
    _, command = printed.strip().rsplit("to go on: ", 1)
    self.assertEqual(
        shlex.split(command), ["python", "-m", "experiments.sweep", *arguments]
    )
    self.assertTrue(list((folder / "k=50" / "checkpoints").iterdir()))
    self.assertFalse((folder / "k=20000").exists())
    log = folder / "k=50" / "log.txt"
    self.assertIn("to go on", log.read_text())  # it has ended
    done = len(read_run(folder / "k=50").rows)
    self.assertLess(done, 500)

    error, _ = main(sweep, *arguments)
    self.assertRegex(
        error, r"^failed: k=20000: \(1\) error: --k=20000: must be .*\n$"
    )
    self.assertEqual(
        [row["round"] for row in read_run(folder / "k=50").rows],
        list(range(1, 501)),
    )


class GroupsTest(absltest.TestCase):

  def test_by_all_that_differ_but_the_seed(self):
    run = lambda **asked: Run([], {}, {}, {"asked": {"b": 1, **asked}})
    runs = [run(k=1.0, seed=0), run(k=1.0, seed=1), run(k=2.0, seed=0)]
    self.assertEqual(frame.differing(runs), ["k"])
    by_k = groups.grouped(runs, ["k"])
    self.assertEqual({label: len(group) for label, group in by_k.items()},
                     {"k = 1": 2, "k = 2": 1})
    self.assertEqual(list(groups.grouped(runs, [])), ["all"])

  def test_in_order_of_their_values(self):
    run = lambda rate: Run([], {}, {}, {"asked": {"learning_rate": rate}})
    runs = [run(rate) for rate in (0.5, 10.0, 0.1, None, 0.02)]
    self.assertEqual(
        list(groups.grouped(runs, ["learning_rate"])),
        [f"learning_rate = {x}" for x in ("none", "0.02", "0.1", "0.5", "10")],
    )

  def test_metrics_of_the_user(self):
    """They have a column of the table and a panel of the figure."""
    row = {"round": 1, "time": 1.0, "k": 2.0, "train_loss": 0.5,
           "test_loss": None, "test_accuracy": 0.25}
    runs = [
        Run([row | {"norm": x}], {}, row | {"norm": x}, {"asked": {}})
        for x in (3.0, 5.0)
    ]
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    text = comparison.compare(runs, [], folder / "a.png")
    self.assertEqual(
        text.splitlines()[2],
        "| all | 2 | 0.5 ± 0 | \u2013 | 0.25 ± 0 | 4 ± 1 | 1 ± 0 | 1 ± 0 |",
    )
    comparison.compare(
        [Run([row], {}, row, {"asked": {}})], [], folder / "b.png"
    )
    with_panel, without = (
        image.imread(folder / name).shape[1] for name in ("a.png", "b.png")
    )
    self.assertGreater(with_panel, without)

  def test_runs_of_an_earlier_version(self):
    """A setting that did not exist then has its default."""
    runs = [Run([], {}, {}, {"asked": x}) for x in ({}, {"per_layer": False})]
    self.assertEqual(frame.differing(runs), [])


if __name__ == "__main__":
  absltest.main()
