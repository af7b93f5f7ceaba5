"""Searches: spaces, trials, stops, budgets, pruning, errors."""

import collections
import contextlib
import csv
import dataclasses
import functools
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import optuna
from absl import flags
from absl.testing import absltest, parameterized
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from tqdm import tqdm

from agsfl import simulation
from agsfl.config import Config
from agsfl.data.federated import fingerprint, load
from agsfl.errors import ConfigError
from agsfl.records.moment import Moment
from agsfl.records.read import Run, find_runs, read_run
from experiments import run, tune
from experiments.lib import followed, launchers, runner, stopping, trials
from experiments.lib.flags import config_from_flags
from experiments.lib.search import dimensions_of
from tests.small import Killed, files_of, given, main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "--dataset=digits", "--model=mlp", "--num_clients=10", "--num_rounds=6",
    "--eval_every=2", "--method=periodic_k", "--controller=fixed",
    "--batch_size=4", "--num_devices=1",
)
SPACE = ("--search=learning_rate=log:1e-3..1", "--search=k=10..1000")

# Another process that shares the trials of a folder.
WORKER = """
import sys
from pathlib import Path
from tests.experiments import tune_test
tune_test.take_trials(Path(sys.argv[1]))
"""


class Connection(sqlite3.Connection):
  """It does not wait for the disk."""

  def __init__(self, *arguments, **options):
    super().__init__(*arguments, **options)
    self.execute("PRAGMA synchronous=OFF")


FAST = mock.patch.object(
    sqlite3, "connect", functools.partial(sqlite3.connect, factory=Connection)
)


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  FAST.start()


def tearDownModule():
  FAST.stop()


def take_trials(folder):
  """Takes trials until there are enough; each has a value at once."""
  space = dimensions_of(["k=1..100"])
  with trials.opened(folder, "minimize", space, 0, "none") as study:
    while trial := study.next(10):
      time.sleep(0.05)
      study.end(trial, trials.Outcome("finished", trial.settings["k"]))


def reports_of(folder):
  """By number, the steps and values that each trial has reported."""
  with trials.opened(folder, "maximize", [], 0, "none") as study:
    return {one.number: one.intermediate_values for one in study.all()}


def lines_of(folder):
  """The lines of trials.csv."""
  with (folder / "trials.csv").open(encoding="utf-8", newline="") as file:
    return list(csv.DictReader(file))


class SpaceTest(parameterized.TestCase):

  @parameterized.parameters(
      ("learning_rate=log:1e-3..1", FloatDistribution(1e-3, 1, log=True)),
      ("dirichlet_alpha=0.1..0.9", FloatDistribution(0.1, 0.9)),
      ("k=log:10..10000", IntDistribution(10, 10000, log=True)),
      ("k=1%..100%", FloatDistribution(1, 100)),
      ("k=log:0.1%..10%", FloatDistribution(0.1, 10, log=True)),
      ("batch_size=8..64", IntDistribution(8, 64)),
      ("k_min=None,1%", CategoricalDistribution(["None", "1%"])),
      ("per_layer=true,false", CategoricalDistribution(["true", "false"])),
      (
          "dataset='npz:a,b',npz:../c",
          CategoricalDistribution(["npz:a,b", "npz:../c"]),
      ),
  )
  def test_distributions(self, text, wanted):
    """The text gives Optuna's distribution, and values that Config takes."""
    (one,) = dimensions_of([text])
    study = optuna.create_study()
    for _ in range(20):
      trial = study.ask()
      value = one.value_of(trial)
      Config(**{one.name: value})
      drawn = trial.params[one.name]
      words = {"None": None, "true": True, "false": False}.get(drawn, drawn)
      if isinstance(wanted, FloatDistribution) and "%" in text:
        self.assertAlmostEqual(float(value.removesuffix("%")), drawn, 3)
      else:
        self.assertEqual(value, words)
    self.assertEqual(trial.distributions, {one.name: wanted})

  def test_identities(self):
    """Law: in tune.json two dimensions are equal only if they are the same."""
    texts = [
        "comm_time=1234567..2000000", "comm_time=1234568..2000000",
        "comm_time=0.1..0.30000000000000004", "comm_time=0.1..0.3",
        "comm_time=log:0.1..0.3", "k=1..50", "k=1%..50%", "k=1,50",
        "dataset='npz:a,b',c", "dataset=npz:a,b,c", "dataset=npz:a,'b,c'",
    ]
    written = [
        json.dumps([one.name, one.identity])
        for text in texts
        for one in dimensions_of([text])
    ]
    self.assertLen(set(written), len(texts))

  @parameterized.parameters(
      ("k", "--search=k: must begin"),
      ("kk=1..2", "--search=kk=1..2: must begin"),
      ("k=", "--search=k=: must name values"),
      ("k=1%..5", "--search=k=1%..5: must have %"),
      ("learning_rate=1%..2%", "--search=learning_rate=1%..2%: must have %"),
      ("k=5..2", "--search=k=5..2: must have the smaller"),
      ("batch_size=1.5..3", "--search=batch_size=1.5..3: must have whole"),
      ("k=a..b", "--search=k=a..b: must have numbers"),
      ("learning_rate=log:3", "--search=learning_rate=log:3: must be a value"),
      ("k=1,1", "--search=k=1,1: must name each value once"),
      ("learning_rate=log:0..1", "--learning_rate=0: must be"),
      ("power=log:0..1", "--search=power=log:0..1: must have the smaller"),
      ("num_rounds=2..20", "--search=num_rounds=2..20: must be of another"),
      ("time_budget=1..2", "--search=time_budget=1..2: must be of another"),
      ("seconds_budget=1,2", "--search=seconds_budget=1,2: must be of another"),
      ("eval_every=1..2", "--search=eval_every=1..2: must be of another"),
      ("seed=0..9", "--search=seed=0..9: must be of another"),
      ("data_seed=0..9", "--search=data_seed=0..9: must be of another"),
      ("method=fab_top_k,x", "--method=x: must be"),
  )
  def test_mistakes(self, text, beginning):
    with self.assertRaises(ConfigError) as caught:
      dimensions_of([text])
    self.assertStartsWith(str(caught.exception), beginning)
    self.assertLen(str(caught.exception).splitlines(), 1)


class TrialsTest(absltest.TestCase):
  """The study, most of it without runs."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_processes_share_the_trials(self):
    """Two processes at once make exactly as many trials as are asked for."""
    other = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(self.folder)], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while not (self.folder / "study.lock").exists():  # it imports first
      self.assertIsNone(other.poll())
      time.sleep(0.02)
    take_trials(self.folder)
    self.assertEqual(other.wait(), 0)
    space = dimensions_of(["k=1..100"])
    with trials.opened(self.folder, "minimize", space, 0, "none") as study:
      ended = study.ended()
    self.assertEqual([trial.number for trial in ended], list(range(10)))
    for trial in ended:
      self.assertEqual(trial.user_attrs["state"], "finished")
      self.assertEqual(trial.value, trial.params["k"])

  def test_pruning(self):
    """Trials that are worse than others stop early, by rule and as runs.

    The accuracy of a trial is slope * round. Evaluations are at rounds 0, 7,
    14, ... of 40, so a step is 2 rounds, and reports lie between evaluations.
    """
    space = dimensions_of(["k=1..100"])
    with given(*SETTINGS, "--num_rounds=40", "--eval_every=7"):
      config = config_from_flags()
    config = dataclasses.replace(config, learning_rate=1e-6)
    data = fingerprint(load(*config.data_settings()))
    wanted = followed.Search(config, space, "test_accuracy", None, self.folder)

    def follow(study, slopes):
      """By number, the rounds at which trials of these slopes stop."""
      stops = {}
      for slope in slopes:
        trial = study.next(99)
        follower = followed.Follower(wanted, trial, config, self.folder)
        at = lambda x, slope=slope: {
            "round": x, "time": float(x), "test_loss": 1.0,
            "test_accuracy": slope * x,
        }
        begun = Run([], {}, {}, {"data": data}, start=at(0))
        outcome = trials.Outcome("finished", slope * 40)
        with mock.patch.object(followed, "read_run", return_value=begun):
          for x in range(0, 41, 7):
            follower.row(at(x))
            if follower.pruned:
              stops[trial.number] = x
              outcome = trials.Outcome("pruned")
              break
        study.end(trial, outcome)
      return stops

    # Hyperband asks at its first step already.
    other = self.folder / "hyperband"
    other.mkdir()
    with trials.opened(other, "maximize", space, 0, "hyperband") as study:
      self.assertEqual(follow(study, [0.02, 0.01, 0.005]), {2: 7})

    # The fifth step, at round 10, is the first after the median's warm-up.
    slopes = [0.01, 0.02, 0.01, 0.02, 0.015, 0.004]
    with trials.opened(self.folder, "maximize", space, 0, "median") as study:
      self.assertEqual(follow(study, slopes), {5: 14})
      last = study.all()
      # A run that learns nothing.
      trial = study.next(99)
      outcome = followed.run_trial(wanted, trial, stopping.Signals(), tqdm())
    self.assertEqual(outcome[::2], ("pruned", 14))
    self.assertLen(read_run(self.folder / "trial-00006").rows, 14)
    self.assertEqual(
        [one.state.name for one in last], ["COMPLETE"] * 5 + ["PRUNED"]
    )
    for slope, one in zip(slopes[:5], last[:5], strict=True):
      self.assertEqual(list(one.intermediate_values), list(range(1, 18)))
      np.testing.assert_allclose(
          list(one.intermediate_values.values()),
          slope * 2 * np.arange(1, 18),
          rtol=1e-6,
      )

  def test_data_that_change(self):
    """Law: trials that name the same data have the same data."""
    space = dimensions_of(["dataset=digits,mnist_5k"])
    wanted = followed.Search(Config(), space, "test_loss", None, self.folder)
    with trials.opened(self.folder, "minimize", space, 0, "none") as study:

      def begin(data_of):
        trial = study.next(99)
        dataset = trial.settings["dataset"]
        config = wanted.config_of(trial.settings)
        follower = followed.Follower(wanted, trial, config, self.folder)
        begun = Run([], {}, {}, {"data": data_of(dataset)})
        with mock.patch.object(followed, "read_run", return_value=begun):
          follower.row({"round": 0})
        study.end(trial, trials.Outcome("finished", 1.0))
        return dataset

      tried = {begin(lambda dataset: f"old {dataset}") for _ in range(4)}
      self.assertLen(tried, 2)
      with self.assertRaisesRegex(ConfigError, "data have changed since trial"):
        begin(lambda dataset: f"new {dataset}")

  def test_equal_trials(self):
    """All are the best ones; no setting is important, and nothing warns."""
    space = dimensions_of(["k=1..100", "comm_time=1..9"])
    wanted = followed.Search(Config(), space, "test_loss", None, self.folder)
    with trials.opened(self.folder, "minimize", space, 0, "none") as study:

      def printed(value):
        study.end(study.next(99), trials.Outcome("finished", value))
        text = io.StringIO()
        with contextlib.redirect_stdout(text):
          tune.finish(wanted, study)
        return text.getvalue()

      with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(9):
          study.end(study.next(99), trials.Outcome("finished", 0.5))
        texts = [printed(value) for value in (0.5, 0.4, 0.3, 0.2)]
    self.assertEqual([text.count("\nbest ") for text in texts], [10, 1, 1, 1])
    # The best tenth has trials of 0.5 until the last but one.
    self.assertEqual(
        ["importance of the settings: " in text for text in texts],
        [False, False, True, True],
    )

  def test_files_that_cannot_be_used(self):
    """One line names the file; it has no query."""
    database, lock = self.folder / "study.db", self.folder / "study.lock"
    database.write_text("no database")
    with self.assertRaises(ConfigError) as caught:
      take_trials(self.folder)
    self.assertEqual(
        str(caught.exception),
        f"--workdir={self.folder}: study.db cannot be read or written (file is "
        "not a database)",
    )
    lock.unlink()
    lock.mkdir()
    with self.assertRaises(ConfigError) as caught:
      take_trials(self.folder)
    self.assertEqual(
        str(caught.exception),
        f"{lock}: must be a file that can be written (Is a directory)",
    )


class TuneTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.arguments = (*SETTINGS, *SPACE, f"--workdir={cls.folder / 'study'}")
    cls.code, cls.printed = main(tune, *cls.arguments, "--trials=3")

  def test_trials_are_runs(self):
    """Each trial is a finished run with its settings; the best is marked."""
    place = self.folder / "study"
    self.assertEqual(self.code, 0)
    self.assertLen(find_runs(place), 3)
    lines = lines_of(place)
    for line in lines:
      done = read_run(place / line["trial"])
      self.assertEqual(line["state"], "finished")
      self.assertEqual(done.asked["k"], float(line["k"]))
      self.assertEqual(
          done.asked["learning_rate"], float(line["learning_rate"])
      )
      self.assertEqual(
          done.summary["test_accuracy"], float(line["test_accuracy"])
      )
      self.assertEqual(done.summary["round"], int(line["rounds"]))
    values = [float(line["test_accuracy"]) for line in lines]
    self.assertEqual(values, sorted(values, reverse=True))
    number = str(int(lines[0]["trial"].removeprefix("trial-")))
    self.assertRegex(self.printed, rf"\nbest +{number} ")

  def test_the_best_again(self):
    """Law: the printed command makes the rows of the best trial."""
    (line,) = [
        line for line in self.printed.splitlines() if line.startswith("the b")
    ]
    words = line.partition("experiments.run ")[2].split()
    place = self.folder / "again"
    with mock.patch.object(runner, "draw"):
      main(run, *words, "--num_devices=1", f"--workdir={place}")
    best = self.folder / "study" / lines_of(self.folder / "study")[0]["trial"]
    self.assertEqual(read_run(place).rows, read_run(best).rows)

  def test_stops_change_nothing(self):
    """Law: however it was stopped, a study has the same trials and reports."""
    follow = followed.Follower.row

    def stopping_at(number, end):
      def row(self, row):
        follow(self, row)
        if self._trial.number == number and self._step > 4:
          end()

      return mock.patch.object(followed.Follower, "row", row)

    def kill():
      raise Killed

    place = self.folder / "stopped"
    arguments = (*self.arguments, f"--workdir={place}", "--checkpoint_every=1")
    with stopping_at(1, lambda: signal.raise_signal(signal.SIGTERM)):
      code, printed = main(tune, *arguments, "--trials=3")
    self.assertEqual(code, 130)
    self.assertIn("1 of 3 trials have ended; to go on: ", printed)
    with stopping_at(2, kill), self.assertRaises(Killed):
      main(tune, *arguments, "--trials=3")
    with warnings.catch_warnings():
      # Optuna's, if a value is reported again.
      warnings.filterwarnings("error", "The reported value is ignored")
      code, printed = main(tune, *arguments, "--trials=3")
    self.assertEqual(code, 0, printed)
    self.assertEqual(
        lines_of(place), lines_of(self.folder / "study")
    )
    for line in lines_of(place):
      self.assertEqual(
          read_run(place / line["trial"]).rows,
          read_run(self.folder / "study" / line["trial"]).rows,
      )

    self.assertEqual(reports_of(place), reports_of(self.folder / "study"))

    # More trials can be asked for. Those before do not change.
    before = files_of(place / "trial-00001")
    main(tune, *arguments, "--trials=4")
    self.assertLen(lines_of(place), 4)
    self.assertEqual(files_of(place / "trial-00001"), before)

  def test_crashes(self):
    """A trial that only crashes ends as failed; stops are no crashes."""
    arguments = (*self.arguments, f"--workdir={self.folder / 'crashes'}")
    ends = KeyboardInterrupt, Killed, Killed, Killed
    with mock.patch.object(simulation, "simulate", side_effect=ends):
      code, _ = main(tune, *arguments, "--trials=1")
      self.assertEqual(code, 130)
      for _ in ends[1:]:
        with self.assertRaises(Killed):
          main(tune, *arguments, "--trials=1")
    main(tune, *arguments, "--trials=2")
    good, bad = lines_of(self.folder / "crashes")
    self.assertEqual(good["state"], "finished")
    self.assertEqual([bad["trial"], bad["state"]], ["trial-00000", "failed"])
    self.assertStartsWith(bad["why"], "its process crashed 3 times")

  def test_another_study(self):
    """One line names what differs; no file changes."""
    before = files_of(self.folder / "study")
    for other, words in (
        ("--search=batch_size=4..8", "batch_size=4, asked for 4..8"),
        ("--tune_seed=1", "tune_seed=0, asked for 1"),
        ("--seed=7", "seed=0, asked for 7"),
        ("--objective=test_loss", "asked for test_loss"),
        ("--at_rounds=4", "at=None, asked for ['round', 4]"),
    ):
      error, _ = main(tune, *self.arguments, "--trials=3", other)
      self.assertStartsWith(error, f"error: --workdir={self.folder / 'study'}:")
      self.assertIn(words, error)
      self.assertLen(error.splitlines(), 1)
    self.assertEqual(files_of(self.folder / "study"), before)

  def test_budgets(self):
    """A trial's value is that of its rows at the budget; it stops there."""
    for flag, budget, against in (
        ("at_rounds", 3, "round"), ("at_bytes", 60_000, "bytes"),
    ):
      place = self.folder / flag
      code, printed = main(
          tune, *SETTINGS, "--search=k=600..700", f"--{flag}={budget}",
          "--trials=1", "--objective=test_loss", f"--workdir={place}",
      )
      self.assertEqual(code, 0, printed)
      (line,) = lines_of(place)
      done = read_run(place / line["trial"])
      x, y = done.series("test_loss", against)
      self.assertAlmostEqual(
          float(line["test_loss"]), np.interp(budget, x, y), 12
      )
      self.assertLess(x[-2], budget)
      self.assertLessEqual(budget, x[-1])
      self.assertLen(done.rows, int(line["rounds"]))
      self.assertLess(len(done.rows), 6)
      # The run ends there of itself, if a setting can say so.
      self.assertEqual(done.finished, flag == "at_rounds")

  def test_trials_that_cannot_finish(self):
    """They do not end the study, and say why; a diverged one ranks last."""
    place = self.folder / "failing"
    code, printed = main(
        tune, *SETTINGS, "--search=k=50,100000",
        "--search=learning_rate=0.1,1e30", "--trials=7", "--tune_seed=3",
        f"--workdir={place}",
    )
    self.assertEqual(code, 0, printed)
    seen = collections.Counter()
    for line in lines_of(place):
      wanted, why = "finished", ""
      if line["k"] == "100000.0":
        wanted, why = "failed", "--k=100000: must be at most"
      elif line["learning_rate"] == "1e+30":
        wanted, why = "diverged", "round 2: the loss is not finite"
      self.assertEqual(line["state"], wanted, line["why"])
      self.assertStartsWith(line["why"].removeprefix("'"), why)
      seen[wanted] += 1
    self.assertLen(seen, 3)
    self.assertEqual(lines_of(place)[0]["state"], "finished")

  def test_no_trial_finishes(self):
    error, _ = main(
        tune, *SETTINGS, "--search=k=100000..200000", "--trials=2",
        f"--workdir={self.folder / 'none'}",
    )
    self.assertRegex(
        error, r"^error: none of 2 trials has finished; the first: --k=1\d+"
    )
    self.assertLen(error.splitlines(), 1)

  def test_processes_have_the_same_flags(self):
    """Law: a process of --jobs searches for what the command searches for."""
    commands = {}
    launch = lambda *_: lambda new: commands.update(new) or ()
    place = self.folder / "jobs"
    own = (
        *SETTINGS, *SPACE, "--at_time=9.5", "--pruner=none", "--tune_seed=4",
        "--objective=test_loss", "--trials=5", "--search=method='fub_top_k'",
        "--quiet",
    )
    with mock.patch.object(launchers, "local", launch):
      main(tune, *own, "--jobs=2", f"--workdir={place}")
    self.assertLen(commands, 2)
    for words in commands.values():
      self.assertEqual(words[1:4], ["-P", "-m", "experiments.tune"])
      self.assertCountEqual(words[4:-1], own)
      self.assertEqual(words[-1], f"--workdir={place}")

  @parameterized.parameters(
      ("--search=", []),
      ("--at_rounds=common", []),
      ("--at_rounds=7", []),
      ("--at_rounds=0", []),
      ("--at_time=0", []),
      ("--at_seconds=5", []),
      ("--at_time=5", ["--at_bytes=5"]),
      ("--objective=test_rmse", []),
      ("--dataset=npz:nothing", []),
      ("--batch_size=0", []),
      ("--workdir=/dev/null/x", []),
  )
  def test_mistakes(self, wrong, others):
    """One line each, before anything is written."""
    place = self.folder / "mistake"
    searched = [] if wrong == "--search=" else [*SPACE, wrong]
    error, _ = main(
        tune, f"--workdir={place}", *SETTINGS, *searched, *others
    )
    self.assertStartsWith(error, f"error: {wrong}: must be ")
    self.assertLen(error.splitlines(), 1)
    self.assertFalse(place.exists())

  def test_mistakes_of_other_names(self):
    """Nothing is written, and the line names what is wrong."""
    for name, searched, words in (
        ("data", "dataset=npz:nothing,digits", "--dataset=npz:nothing: "),
        ("\udcff", "k=1..2", "must be text in UTF-8"),
    ):
      place = self.folder / name
      error, _ = main(
          tune, *SETTINGS, f"--search={searched}", f"--workdir={place}"
      )
      self.assertIn(words, error)
      self.assertLen(error.splitlines(), 1)
      self.assertFalse(place.exists())

  def test_without_optuna(self):
    with mock.patch.dict(sys.modules, optuna=None):
      error, _ = main(tune, *self.arguments)
    self.assertEqual(error, "error: tune needs Optuna: pip install optuna\n")


class StudyTest(absltest.TestCase):

  def test_a_budget_that_changes_the_rounds(self):
    """The run does not end there by a setting, if its rules depend on it."""
    at = Moment("round", 50.0)
    study = lambda **settings: followed.Search(
        Config(num_rounds=100, **settings), [], "test_loss", at, Path("x")
    )
    self.assertEqual(study().config_of({}).num_rounds, 50)
    changing = study(learning_rate_schedule="cosine", warmup_rounds=5)
    self.assertEqual(changing.config_of({}).num_rounds, 100)


if __name__ == "__main__":
  absltest.main()
