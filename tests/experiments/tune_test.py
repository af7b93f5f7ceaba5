"""Searches: spaces, trials, stops, budgets, pruning, errors."""

import collections
import csv
import os
import signal
import subprocess
import sys
import tempfile
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

from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records.moment import Moment
from agsfl.records.read import Run, find_runs, read_run
from experiments import run, tune
from experiments.lib import followed, launchers, search, trials
from tests.small import Killed, files_of, main

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = (
    "--dataset=digits", "--model=mlp", "--num_clients=10", "--num_rounds=6",
    "--eval_every=2", "--method=periodic_k", "--controller=fixed",
    "--batch_size=4", "--num_devices=1",
)
SPACE = ("--search=learning_rate=log:1e-3..1", "--search=k=10..1000")

# Takes trials until there are enough; each has a value at once.
WORKER = """
import sys, time
from pathlib import Path
from experiments.lib import search, trials
space = search.dimensions_of(["k=1..100"])
with trials.opened(Path(sys.argv[1]), "minimize", space, 0, "none") as study:
  while trial := study.next(10):
    time.sleep(0.02)
    study.end(trial, trials.Outcome("finished", trial.settings["k"]))
"""


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


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
    (one,) = search.dimensions_of([text])
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
    self.assertEqual(search.dimensions_of([f"{one.name}={one}"])[0] == one,
                     "npz" not in text)

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
      ("seed=log:0..1", "--search=seed=log:0..1: must have the smaller"),
      ("method=fab_top_k,x", "--method=x: must be"),
  )
  def test_mistakes(self, text, beginning):
    with self.assertRaises(ConfigError) as caught:
      search.dimensions_of([text])
    self.assertStartsWith(str(caught.exception), beginning)
    self.assertLen(str(caught.exception).splitlines(), 1)


class TrialsTest(absltest.TestCase):
  """The study without its runs."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_processes_share_the_trials(self):
    """Two processes at once make exactly as many trials as are asked for."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(self.folder)], cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        for _ in range(2)
    ]
    self.assertEqual([process.wait() for process in processes], [0, 0])
    space = search.dimensions_of(["k=1..100"])
    with trials.opened(self.folder, "minimize", space, 0, "none") as study:
      ended = study.all()
    self.assertEqual([trial.number for trial in ended], list(range(10)))
    for trial in ended:
      self.assertEqual(trial.user_attrs["state"], "finished")
      self.assertEqual(trial.value, trial.params["k"])

  def test_pruning(self):
    """A trial below the median stops; reports lie on the line between rows.

    The accuracy of a trial is slope * round. Evaluations are at rounds 0, 7,
    14, ... of 40, so a step is 2 rounds.
    """
    space = search.dimensions_of(["k=1..100"])
    config = Config(num_rounds=40)
    study = followed.Study(config, space, "test_accuracy", None, self.folder)
    slopes = [0.01, 0.02, 0.01, 0.02, 0.01, 0.015, 0.004]
    stopped = []
    with trials.opened(self.folder, "maximize", space, 0, "median") as all_of:
      for slope in slopes:
        trial = all_of.next(len(slopes))
        follower = followed.Follower(study, trial, config, self.folder)
        at = lambda x, slope=slope: {
            "round": x, "time": float(x), "test_loss": 1.0,
            "test_accuracy": slope * x,
        }
        begun = Run([], {}, {}, {}, start=at(0))
        with mock.patch.object(followed, "read_run", return_value=begun):
          for x in range(0, 41, 7):
            follower.row(at(x))
            if follower.pruned:
              stopped.append((trial.number, x))
              break
        state = "pruned" if follower.pruned else "finished"
        value = None if follower.pruned else slope * 40
        all_of.end(trial, trials.Outcome(state, value))
      last = all_of.all()
    # The fifth step, at round 10, is the first after the warm-up.
    self.assertEqual(stopped, [(6, 14)])
    self.assertEqual(
        [one.state.name for one in last], ["COMPLETE"] * 6 + ["PRUNED"]
    )
    for slope, one in zip(slopes[:6], last[:6], strict=True):
      self.assertEqual(list(one.intermediate_values), list(range(1, 18)))
      np.testing.assert_allclose(
          list(one.intermediate_values.values()),
          slope * 2 * np.arange(1, 18),
          rtol=1e-6,
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
    main(run, *words, "--num_devices=1", f"--workdir={place}")
    best = self.folder / "study" / lines_of(self.folder / "study")[0]["trial"]
    self.assertEqual(read_run(place).rows, read_run(best).rows)

  def test_stops_change_nothing(self):
    """Law: however it was stopped, a study has the same trials and values."""
    follow = followed.Follower.row

    def stopping_at(number, end):
      def row(self, row):
        follow(self, row)
        if self._trial.number == number and row["round"] == 2:
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

    # More trials can be asked for. Those before do not change.
    before = files_of(place / "trial-00001")
    main(tune, *arguments, "--trials=4")
    self.assertLen(lines_of(place), 4)
    self.assertEqual(files_of(place / "trial-00001"), before)

  def test_another_study(self):
    """One line names what differs; no file changes."""
    before = files_of(self.folder / "study")
    for other, words in (
        ("--search=batch_size=4..8", "batch_size=4, asked for 4..8"),
        ("--tune_seed=1", "tune_seed=0, asked for 1"),
        ("--seed=7", "seed=0, asked for 7"),
        ("--objective=test_loss", "asked for test_loss"),
        ("--at_rounds=4", "asked for at round 4"),
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
          "--trials=2", "--objective=test_loss", f"--workdir={place}",
      )
      self.assertEqual(code, 0, printed)
      for line in lines_of(place):
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

  def test_without_optuna(self):
    with mock.patch.dict(sys.modules, optuna=None):
      error, _ = main(tune, *self.arguments)
    self.assertEqual(error, "error: tune needs Optuna: pip install optuna\n")


class StudyTest(absltest.TestCase):

  def test_a_budget_that_changes_the_rounds(self):
    """The run does not end there by a setting, if its rules depend on it."""
    at = Moment("round", 50.0)
    study = lambda **settings: followed.Study(
        Config(num_rounds=100, **settings), [], "test_loss", at, Path("x")
    )
    self.assertEqual(study().config_of({}).num_rounds, 50)
    changing = study(learning_rate_schedule="cosine", warmup_rounds=5)
    self.assertEqual(changing.config_of({}).num_rounds, 100)


if __name__ == "__main__":
  absltest.main()
