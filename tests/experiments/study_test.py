"""The studies: what they leave, and a second start."""

import importlib
import json
import signal
import tempfile
import types
from pathlib import Path
from unittest import mock

import matplotlib.image
import numpy as np
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from agsfl.config import Config
from agsfl.errors import ConfigError, StoppedError
from agsfl.records.read import Run, read_run
from experiments.lib import curves, groups, scripts
from experiments.lib.drawing import plt
from experiments.paper import study
from tests import small
from tests.experiments import run_test

SETTINGS = (
    # The method that compiles fastest.
    "--dataset=npz:FOLDER/tiny.npz", "--model=mlp", "--method=periodic_k",
    "--batch_size=8", "--partition=natural", "--k=40", "--k_min=20",
    "--num_rounds=6", "--eval_every=2",
)
# Script: further arguments, labels of its runs.
STUDIES = {
    "compare_methods": (
        ["--methods=periodic_k,fedavg", "--local_steps=2", "--seeds=0,3"],
        ("periodic_k", "fedavg"),
    ),
    "compare_controllers": (
        ["--controllers=value,exp3,bandit,fixed=50"],
        ("value", "exp3", "bandit", "fixed=50"),
    ),
    "best_constant": (
        [
            "--comm_times=1,100", "--time_budgets=9000,9000",
            "--constants=50,50%", "--starts=40", "--rules=balance",
        ],
        tuple(
            f"beta{beta}/{group}"
            for beta in (1, 100)
            for group in ("fixed/k50", "fixed/k50%", "balance/k40")
        ),
    ),
    "communication_times": (["--comm_times=1,100"], ("beta1", "beta100")),
    "simulated_seconds": (
        [
            "--clock=phones", "--clients_per_round=2", "--ks=20",
            "--learned=balance",
        ],
        ("learned_k_balance", "k20", "fedavg"),
    ),
    "cross_replay": (
        ["--comm_times=9,1"],
        ("beta9", "beta1", "beta9_under_beta1", "beta1_under_beta9"),
    ),
}
BAD = {
    "compare_methods": ("--methods=fab", "fab_top_k"),
    "compare_controllers": ("--controllers=pid", "bandit"),
    "best_constant": ("--rules=pid", "balance"),
    "communication_times": ("--comm_times=1,x", "numbers"),
    "cross_replay": ("--seeds=0,x", "whole numbers"),
    "regret": ("--seeds=", "at least one"),
    "independence": ("--first_ks=9,x", "numbers"),
    "simulated_seconds": ("--quiet", "--clock=None: must be set"),
}


class StudyTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    run_test.write_data(cls.folder)

  def flags(self, name, *arguments):
    return run_test.filled(
        (*SETTINGS, f"--workdir=FOLDER/{name}", *arguments), self.folder
    )

  def start(self, name, *arguments):
    """Its error or else its exit code, and what it printed; no process."""
    module = importlib.import_module(f"experiments.paper.{name}")
    with mock.patch.object(scripts, "run") as run:
      study.run(module.compare)
    (main,) = run.call_args.args
    return small.main(
        types.SimpleNamespace(main=main), *self.flags(name, *arguments)
    )

  def times(self, workdir):
    return {
        path: path.stat().st_mtime_ns
        for path in workdir.rglob("*")
        if path.is_file()
    }

  @parameterized.parameters(*sorted(set(STUDIES) - {"compare_methods"}))
  def test_leaves_runs_a_figure_and_a_table(self, name):
    self.check(name, *self.start(name, *STUDIES[name][0]))

  def check(self, name, end, printed):
    arguments, labels = STUDIES[name]
    self.assertEqual(end, 0, printed)
    workdir = self.folder / name
    image = matplotlib.image.imread(workdir / "figure.png")
    self.assertGreater(np.ptp(image[..., :3]), 0.5)
    self.assertIn((workdir / "table.md").read_text(), printed)
    for label in labels:
      for run in (workdir / label).iterdir():
        rounds = [row["round"] for row in read_run(run).rows]
        self.assertEqual(rounds[:6], [1, 2, 3, 4, 5, 6])
        if "under" not in label:
          self.assertLen(rounds, 6)
          continue
        # Law: k is of the one run, beta and the time are of the other.
        source, target = (
            workdir / beta / run.name for beta in label.split("_under_")
        )
        rows, k_rows = read_run(run).rows, read_run(source).rows
        for row, k_row in zip(rows, k_rows, strict=False):
          self.assertEqual(row["k"], k_row["k"])
        own = read_run(target).rows
        self.assertGreaterEqual(rows[-1]["time"], own[-1]["time"])
        self.assertLess(rows[-2]["time"], own[-1]["time"])
        config = json.loads((run / "config.json").read_text())
        self.assertEqual(f"beta{config['comm_time']:g}", target.parent.name)
        # And its loss stands in the row of the one, the column of the other.
        column = arguments[0].removeprefix("--comm_times=").split(",").index(
            target.parent.name.removeprefix("beta")
        )
        beta = source.parent.name.removeprefix("beta")
        (line,) = (
            line.strip("| ").split(" | ")
            for line in (workdir / "table.md").read_text().splitlines()
            if line.startswith(f"| {beta} |")
        )
        loss = rows[-1]["train_loss"]
        self.assertEqual(line[1 + column], f"{loss:.4g}")

  def test_a_second_start_does_what_is_missing(self):
    """One study stands for all; its first start is a real process."""
    name = "compare_methods"
    arguments, labels = STUDIES[name]
    workdir = self.folder / name
    stored = f"--compilation_cache_dir={self.folder / 'programs'}"
    first = run_test.run_python(
        "-m", f"experiments.paper.{name}", *self.flags(name, *arguments, stored)
    )
    self.check(name, first.returncode, first.stdout + first.stderr)
    # Law: seeds of one setting share a program.
    programs = list((self.folder / "programs").glob("jit_run-*-cache"))
    self.assertLen(programs, len(labels))
    before, table = self.times(workdir), (workdir / "table.md").read_text()
    # As if it was stopped in the middle of the last run.
    last = workdir / labels[-1] / "seed3"
    (last / "summary.json").unlink()
    self.assertEqual(self.start(name, *arguments)[0], 0)
    self.assertEqual((workdir / "table.md").read_text(), table)
    changed = {
        path for path, time in self.times(workdir).items()
        if before[path] != time
    }
    inside = {path for path in changed if path.is_relative_to(last)}
    self.assertEqual(
        {path.name for path in changed - inside}, {"figure.png", "table.md"}
    )
    self.assertIn(last / "metrics.jsonl", inside)
    other, _ = self.start(name, *arguments, "--learning_rate=0.5")
    line = other.splitlines()[-1]
    self.assertStartsWith(
        line, f"error: --workdir={workdir / labels[0] / 'seed0'}: "
    )
    self.assertIn("learning_rate=0.01, asked for 0.5", line)

  @parameterized.parameters(*BAD)
  def test_a_wrong_list_is_refused(self, name):
    argument, allowed = BAD[name]
    error, _ = self.start(name, argument, "--workdir=FOLDER/bad")
    (line,) = error.splitlines()
    self.assertStartsWith(line, "error: ")
    for word in (*argument.split("=")[:-1], allowed):
      self.assertIn(word, line)
    self.assertFalse((self.folder / "bad").exists())


class NumbersTest(parameterized.TestCase):

  @parameterized.parameters("0,0", "1,0,01")
  def test_named_twice(self, texts):
    """A run that is counted twice would give a wrong spread."""
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    with flagsaver.flagsaver(seeds=texts.split(",")):
      with self.assertRaisesRegex(ConfigError, f"^--seeds={texts}: .* once$"):
        study.seeds()


class StopTest(absltest.TestCase):
  """A signal is noted, and the loops of a study ask for it."""

  def setUp(self):
    super().setUp()
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.enterContext(
        flagsaver.flagsaver(workdir=folder, seeds=["0", "1"], quiet=True)
    )

  def test_between_runs(self):
    signal_in = lambda *_: begun.append(signal.raise_signal(signal.SIGTERM))
    begun = []
    with (
        mock.patch.object(study.runner, "run", signal_in),
        mock.patch.object(study, "read_run"),
        self.assertRaises(StoppedError),
    ):
      study.run_all({"a": study.seeded(Config())})
    self.assertLen(begun, 1)

  def test_between_rounds(self):
    done = []
    with self.assertRaises(StoppedError):
      for step in study.progress(range(5)):
        done.append(step)
        if step == 2:
          signal.raise_signal(signal.SIGTERM)
    self.assertEqual(done, [0, 1, 2])


class OverSeedsTest(absltest.TestCase):

  def test_worked(self):
    self.assertEqual(groups.over_seeds([1.0, 2.0, 6.0]), "3 ± 2.5")
    self.assertEqual(groups.over_seeds([43925.2, 43754.6], ".0f", ".0f"),
                     "43840 ± 85")
    self.assertEqual(groups.over_seeds([0.12345]), "0.1235")


class SpreadTest(absltest.TestCase):

  def drawn(self, *all_times):
    """What is drawn of losses that are the times, and 3 times the times."""
    runs = [
        Run([{"time": t, "loss": slope * t} for t in times], {}, {}, {})
        for times, slope in zip(all_times, (1, 3), strict=True)
    ]
    _, axes = plt.subplots()
    self.addCleanup(plt.close)
    curves.draw_spread(axes, runs, "loss", "two")
    return axes

  def test_mean_over_the_time_that_all_have(self):
    axes = self.drawn((1, 2, 4), (2, 6))
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xydata(), [[2, 4], [4, 8]])
    self.assertLen(axes.collections, 1)

  def test_runs_that_share_no_time_are_drawn_each(self):
    """In one colour, once in the legend."""
    axes = self.drawn((1, 4), (20, 60))
    one, two = axes.lines
    np.testing.assert_allclose(one.get_xydata(), [[1, 1], [4, 4]])
    np.testing.assert_allclose(two.get_xydata(), [[20, 60], [60, 180]])
    self.assertEqual(one.get_color(), two.get_color())
    self.assertEqual(axes.get_legend_handles_labels()[1], ["two"])


if __name__ == "__main__":
  absltest.main()
