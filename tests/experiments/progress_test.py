"""The bar on a terminal and the lines in a log, from a run's own words."""

import io
import os
import pty
import re
import sys
import termios
from pathlib import Path
from unittest import mock

from absl import flags
from absl.testing import absltest, parameterized

from agsfl.config import Config
from experiments import sweep
from experiments.lib import runner, stopping
from tests import small
from tests.small import given

START = {
    "round": 0, "time": 0.0, "train_loss": 2.5, "test_loss": 2.5,
    "test_accuracy": 0.125,
}
EVALUATED = {"train_loss": 1.5, "test_loss": 1.75, "test_accuracy": 0.5}


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def round_row(index, **more):
  row = {"round": index, "time": 2.5 * index, "k": 31.25, "minibatch_loss": 2.0}
  return row | more


class ProgressTest(parameterized.TestCase):

  def shown(self, config, rows, *flags_):
    """The frames of the bar on a terminal of 80 columns, without empty ones."""
    outside, inside = pty.openpty()
    self.addCleanup(os.close, outside)
    termios.tcsetwinsize(inside, (25, 80))
    with (
        given(*flags_),
        open(inside, "w", encoding="utf-8") as terminal,
        mock.patch.object(sys, "stderr", terminal),
    ):
      with runner._Progress(config) as progress:
        progress._bar.mininterval = 0  # a frame for each row
        progress.stage("loading data")
        progress.stage("compiling")
        for row in rows:
          progress.row(row)
      print("\nend", end="", file=terminal, flush=True)
      printed = b""
      while not printed.endswith(b"end"):
        printed += os.read(outside, 4096)
    *frames, _ = re.split(r"[\r\n]+", printed.decode())
    return [frame.rstrip() for frame in frames if frame.strip()]

  def test_the_newest_accuracy(self):
    """It stays beside k and the loss; compiling lasts until round 1."""
    rows = [START, round_row(1, **EVALUATED), round_row(2)]
    frames = self.shown(Config(num_rounds=2), rows)
    words = [re.sub(r"\|.*\|", "|", frame) for frame in frames]
    self.assertContainsSubsequence(
        [re.sub(r"[\d:]+ left", "? left", line) for line in words],
        [
            "loading data: round 0/2 | ? left",
            "compiling: round 0/2 | ? left",
            "compiling: round 0/2 | ? left, test accuracy 0.1250",
            "round 1/2 | ? left, k 31, loss 2.0000, test accuracy 0.5000",
            "round 2/2 | ? left, k 31, loss 2.0000, test accuracy 0.5000",
        ],
    )

  @parameterized.parameters(
      ({}, "test accuracy 0.5000"),
      ({"test_rmse": 0.25}, "test RMSE 0.2500"),
      ({"test_perplexity": 61.26}, "test perplexity 61.26"),
      ({"test_rmse": None}, "test RMSE none"),
  )
  def test_words_of_tasks(self, more, words):
    rows = [START, round_row(1, **EVALUATED, **more, minibatch_loss=None)]
    last = self.shown(Config(), rows)[-1]
    self.assertEndsWith(last, f", loss none, {words}")

  def test_80_columns(self):
    """Law: no frame is longer than the terminal, whatever the numbers are."""
    large = {"k": 123456789.0, "test_perplexity": 1e30, "minibatch_loss": 1e30}
    rows = [START, round_row(99999, **EVALUATED, **large)]
    for config in (Config(num_rounds=100000), Config(time_budget=123456.7)):
      frames = self.shown(config, rows)
      self.assertBetween(max(map(len, frames)), 70, 80)

  def test_a_budget(self):
    """The bar is about the budget; seconds may not be in the first row."""
    rows = [START, round_row(3, seconds=7.25)]
    last = self.shown(Config(clock="constant", seconds_budget=29.0), rows)[-1]
    self.assertStartsWith(last, "seconds 7.2/29.0 |")

  def test_the_log(self):
    """The stages, then a line for each evaluation from round 0 on."""
    config = Config(num_rounds=4, eval_every=2)
    rows = [START, round_row(1), round_row(2, **EVALUATED), round_row(3)]
    with (
        mock.patch.object(sys, "stderr", io.StringIO()),
        self.assertLogs(level="INFO") as logged,
        runner._Progress(config) as progress,
    ):
      progress.stage("loading data")
      progress.stage("compiling")
      for row in rows:
        progress.row(row)
    *lines, last = [record.getMessage() for record in logged.records]
    self.assertEqual(
        lines,
        [
            "loading data",
            "compiling",
            "round 0, time 0.0, train loss 2.5000, test accuracy 0.1250",
        ],
    )
    self.assertRegex(
        last,
        "^round 2, time 5.0, k 31, train loss 1.5000, test accuracy 0.5000, "
        r".* round/s, \d\d:\d\d left$",
    )

  def test_lanes(self):
    """Their bar counts rounds; the evaluation of round 0 is none."""
    rows = [START, START, round_row(1), round_row(1), round_row(2)]

    def simulate_lanes(group, on_row, **kwargs):
      for row in rows:
        on_row(next(iter(group)), row)

    group = {Path("a"): Config(num_rounds=2), Path("b"): Config(num_rounds=2)}
    with (
        mock.patch.object(sweep.sweeps, "simulate_lanes", simulate_lanes),
        mock.patch.object(runner, "bar") as bar,
    ):
      sweep._side_by_side(group, stopping.Signals())
    self.assertEqual(bar.call_args.kwargs["total"], 4)
    self.assertEqual(bar().__enter__().update.mock_calls, 3 * [mock.call()])

  def test_a_run_that_was_finished_before(self):
    """Law: no row of a round has come."""
    for rows, count in (([], 1), ([START, round_row(1)], 0)):
      progress = runner._Progress(Config())
      for row in rows:
        progress.row(row)
      with mock.patch.object(runner.logging, "info") as info:
        progress.end()
      self.assertLen(info.mock_calls, count)

  def test_quiet(self):
    with mock.patch.object(runner.logging, "info") as info:
      self.assertEqual(self.shown(Config(), [START], "--quiet"), [])
    info.assert_not_called()


class FiguresTest(absltest.TestCase):

  def test_figures_come_while_a_run_goes_on(self):
    """They have what there is so far; those of the run's end come later."""
    folder = Path(self.create_tempdir().full_path)
    draw, seen = runner.draw, []

    def drawn(run):
      draw(run)
      names = {path.stem for path in (folder / "figures").iterdir()}
      seen.append((run.finished, len(run.evaluated), names))

    with (
        given("--quiet"),
        mock.patch.object(runner._Figures, "FIRST", 0.0),
        mock.patch.object(runner, "draw", drawn),
    ):
      runner.run(small.config(num_rounds=10), folder, stopping.Signals())
    some = {"loss", "accuracy", "k", "fairness"}
    self.assertEqual(seen[0], (False, 2, some))
    self.assertEqual(seen[-1], (True, 3, some | {"contributions"}))


if __name__ == "__main__":
  absltest.main()
