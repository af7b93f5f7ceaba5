"""The figure and the table of plot and sweep: what they say and show."""

import contextlib
import doctest
import io
import itertools
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized
from matplotlib import pyplot as plt

from agsfl import words
from agsfl.errors import ConfigError
from agsfl.records import titles
from agsfl.records.moment import Moment
from agsfl.records.read import Run
from experiments import plot
from experiments.lib import comparison, curves, drawing, groups, ranking
from tests.records.moment_test import run_of
from tests.small import given, main


def run_with(loss, rounds=4, **asked):
  """A run whose losses are these times 9, 5 and 4 in rounds 0, 2 and 4."""
  run = run_of(rounds)
  rows = [
      {**row, "train_loss": loss * row["test_loss"],
       "test_loss": loss * row["test_loss"]} if "test_loss" in row else row
      for row in [run.start, *run.rows]
  ]
  return Run(rows[1:], {"samples": [1, 1]}, rows[-1],
             run.config | {"asked": asked}, start=rows[0])


# Means of the test loss at the end: 4, 2 and 8; one ends early.
RUNS = [
    run_with(1.0, k=1000.0, seed=0),
    run_with(0.5, k=0.5, seed=0),
    run_with(1.5, k="10%", seed=0),
    run_with(2.5, k="10%", seed=1),
    run_with(1.0, k="1.5%", seed=0, rounds=2),
]


class ComparisonTest(parameterized.TestCase):

  def compare(self, runs=RUNS, fields=("k",), **options):
    """The lines of the text, cells of the table; `self.axes` are the panels."""
    with mock.patch.object(comparison, "save") as saved:
      text = comparison.compare(runs, list(fields), Path("a.png"), **options)
    self.figure = saved.call_args.args[0]
    self.addCleanup(plt.close, self.figure)
    self.axes = self.figure.axes
    table, _, notes = text.partition("\n\n")
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    return [lines[0], *lines[2:]], notes

  def labels(self, **options):
    (_, *lines), _ = self.compare(**options)
    return [line[0].strip("*") for line in lines]

  def test_in_order_of_values(self):
    """Numbers before shares, shares by their size; or the best first."""
    self.assertEqual(
        self.labels(), ["k = 0.5", "k = 1000", "k = 1.5%", "k = 10%"]
    )
    self.assertEqual(
        self.labels(sorted_by="test_loss"),
        ["k = 0.5", "k = 1000", "k = 1.5%", "k = 10%"],
    )
    self.assertEqual(
        self.labels(sorted_by="test_loss", moment=Moment("round", 4.0)),
        ["k = 0.5", "k = 1000", "k = 10%", "k = 1.5%"],
    )
    self.assertEqual(
        self.labels(sorted_by="round"),
        ["k = 1.5%", "k = 0.5", "k = 1000", "k = 10%"],
    )

  def test_at_a_point(self):
    """Values, a run that has not come so far, and the axis of all panels."""
    (header, *lines), notes = self.compare(
        moment=Moment("round", 3.0), sorted_by="test_loss"
    )
    self.assertEqual(header[:4],
                     ["group, mean over seed, at round 3", "runs",
                      "training loss", "test loss"])
    self.assertEqual(
        [line[:4] for line in lines],
        [
            ["**k = 0.5**", "1", "2.25", "2.25"],
            ["k = 1000", "1", "4.5", "4.5"],
            ["k = 10%", "2", "9 ± 2.2", "9 ± 2.2"],
            ["k = 1.5%", "1", groups.NONE, groups.NONE],
        ],
    )
    self.assertEqual(
        notes,
        f"{groups.SPREAD}\n"
        "In bold: k = 0.5, which has the smallest test loss.\n"
        "1 of 5 runs do not come so far and so have no values here.",
    )
    for axes in self.axes:
      self.assertEqual(axes.get_xlabel(), "round")
      self.assertEqual(axes.lines[-1].get_xdata(), [3.0, 3.0])
      self.assertEqual(axes.lines[-1].get_linestyle(), "--")
    self.assertEqual(self.axes[0].lines[0].get_xdata().tolist(), [0, 2, 4])

  def test_survivors_do_not_win(self):
    """Law: a group whose runs have not all come so far is not the best one.

    The only run of k = 5 that does has the smallest loss of all.
    """
    runs = [
        run_with(loss, k=5.0, seed=seed, rounds=rounds)
        for seed, (loss, rounds) in enumerate(((0.5, 4), (2.0, 2), (3.0, 3)))
    ] + [run_with(loss, k=9.0, seed=0) for loss in (1.0, 1.5)]
    (_, *lines), notes = self.compare(
        runs, moment=Moment("round", 4.0), sorted_by="test_loss"
    )
    self.assertEqual(
        [line[:4] for line in lines],
        [
            ["**k = 9**", "2", "5 ± 1", "5 ± 1"],
            ["k = 5", "3", "2 (1 of 3)", "2 (1 of 3)"],
        ],
    )
    self.assertEqual(
        notes.splitlines(),
        [
            groups.SPREAD,
            "In bold: k = 9, which has the smallest test loss.",
            groups.PARTLY,
            "2 of 5 runs do not come so far and so have no values here.",
        ],
    )
    # No group is complete.
    more = [*runs, run_with(1.0, k=9.0, seed=2, rounds=2)]
    _, notes = self.compare(more, moment=Moment("round", 4.0))
    self.assertNotIn("In bold", notes)

  def test_equals_are_all_best(self):
    runs = [
        run_with(loss, k=k, seed=seed)
        for loss, k in ((1.0, 1.0), (1.0, 2.0), (1.5, 3.0))
        for seed in (0, 1)
    ]
    (_, *lines), notes = self.compare(runs, sorted_by="test_loss")
    self.assertEqual(
        [line[0] for line in lines], ["**k = 1**", "**k = 2**", "k = 3"]
    )
    self.assertEqual(
        notes,
        f"{groups.SPREAD}\n"
        "In bold: k = 1; k = 2, which have the smallest test loss.",
    )

  def test_a_setting_that_some_runs_do_not_name(self):
    """Law: such a run is where the default of the setting is, which is 10."""
    runs = [
        run_with(1.0, k=k, **more)
        for k, more in ((1.0, {}), (2.0, {"comm_time": 20}),
                        (3.0, {"comm_time": 5}))
    ]
    for some in (runs, runs[::-1]):
      self.assertEqual(
          self.labels(runs=some, sorted_by="comm_time"),
          ["k = 3", "k = 1", "k = 2"],
      )

  def test_a_run_without_a_clock(self):
    runs = [run_of(seconds=float), run_of()]
    _, notes = self.compare(runs, [], moment=Moment("seconds", 3.0))
    self.assertStartsWith(notes, f"{groups.SPREAD}\n{groups.PARTLY}")
    self.assertEndsWith(
        notes, "1 of 2 runs have no simulated seconds and so have no values "
        "here."
    )

  def test_bytes_are_an_axis(self):
    header, *_ = self.compare(moment=Moment("bytes", 6.0))[0]
    self.assertEqual(
        header[-3:], ["rounds", "normalised time", "bytes sent"]
    )
    self.assertStartsWith(self.axes[0].get_xlabel(), "bytes sent")

  def test_figures_say_what_they_show(self):
    self.compare()
    titles = [axes.get_title() for axes in self.axes]
    self.assertEqual(
        titles, ["training loss", "test accuracy", "k: elements per message",
                 "norm"],
    )
    loss, accuracy, k, _ = self.axes
    self.assertEqual(accuracy.get_ylim()[0], 0)
    self.assertEqual(k.get_yscale(), "log")
    # From 2 to 22.5, less than 12 times; then to 225.
    self.assertEqual(loss.get_yscale(), "linear")
    self.compare([*RUNS, run_with(25.0, k=7.0, seed=0)])
    self.assertEqual(self.axes[0].get_yscale(), "log")
    (legend,) = self.figure.legends
    self.assertEqual(legend.get_title().get_text(), "Mean over seed")

  @parameterized.parameters((300, 420), (0.4, 3), (200, 5e4), (1e-3, 1e6))
  def test_a_log_axis_can_be_read(self, low, high):
    """Law: three numbers or more stand beside the part that is drawn."""
    figure, axes = plt.subplots()
    self.addCleanup(plt.close, figure)
    axes.plot([0, 1], [low, high])
    drawing.log_axis(axes)
    figure.canvas.draw()
    bottom, top = axes.get_ylim()
    within = [y for y in axes.get_yticks() if bottom <= y <= top]
    self.assertBetween(len(within), 3, 12)
    texts = [label.get_text() for label in axes.get_yticklabels()]
    self.assertContainsSubset([f"{y:.6g}" for y in within], texts)

  def test_a_mean_over_other_settings_is_said(self):
    """Grouped by k, runs differ in the seed and in two rates, or do not."""
    runs = [
        run_with(loss, k=k, seed=seed, learning_rate=rate)
        for loss, (k, seed, rate) in enumerate(
            itertools.product((5.0, 6.0), (0, 1), (0.1, 0.2)), 1
        )
    ]
    header, *_ = self.compare(runs)[0]
    self.assertEqual(header[0], "group, mean over seed, learning_rate")
    (legend,) = self.figure.legends
    self.assertEqual(legend.get_title().get_text(),
                     "Mean over seed, learning_rate")
    header, *_ = self.compare(runs, ["k", "learning_rate", "seed"])[0]
    self.assertEqual(header[0], "group")
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      plot.warn(groups.averaged_over(groups.grouped(runs, ["k"])), ["k"])
      plot.warn(groups.averaged_over(
          groups.grouped(runs, ["k", "learning_rate"])
      ), ["k", "learning_rate"])
    (line,) = said.getvalue().splitlines()
    self.assertStartsWith(line, "warning: the runs of a group differ in learn")
    self.assertIn("--group_by=k,learning_rate ", line)

  def test_copies(self):
    """Law: runs of the same settings and data are named, and no others."""
    here = lambda run, place, **config: Run(
        run.rows, run.clients, run.summary, run.config | config, Path(place)
    )
    first, again = here(RUNS[0], "a"), here(RUNS[0], "b")
    others = [here(RUNS[1], "c"), here(RUNS[0], "d", data="other")]
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
      groups.warn_of_copies([first, *others, again])
    self.assertEqual(
        said.getvalue(),
        "warning: a and b are runs of the same settings and seed; both count\n",
    )

  def test_unfinished_runs(self):
    """They are compared at a point to which they have come, or counted."""
    done, late, later = RUNS[:4], run_of(2), run_of(5)
    why = "runs are left out, because they are not finished"
    for flag, want, warning in (
        (None, done, f"warning: 2 of 6 {why}\n"),
        # What is common to the finished runs is round 4.
        ("--at_rounds=common", [*done, later],
         f"warning: 1 of 6 {why} and do not come so far\n"),
        ("--at_rounds=1.5", [late, *done, later], ""),
    ):
      said = io.StringIO()
      with given(*filter(None, [flag])), contextlib.redirect_stderr(said):
        got, _ = plot.compared([late, *done, later])
      self.assertEqual([*map(id, got)], [*map(id, want)])
      self.assertEqual(said.getvalue(), warning)
    wanted = "^no run here is finished; report and export show runs so far$"
    with self.assertRaisesRegex(ConfigError, wanted):
      plot.compared([late])

  @parameterized.parameters(
      ([], ["k"]), (["--group_by=seed,k"], ["seed", "k"]),
      (["--group_by="], []),  # all runs are one group
  )
  def test_groups(self, flags, want):
    with (
        mock.patch.object(plot, "read_all", return_value=RUNS),
        mock.patch.object(comparison, "compare") as compared,
        mock.patch.object(plot.out, "written"),
    ):
      code, _ = main(plot, "runs", *flags)
    self.assertEqual(code, 0)
    self.assertEqual(compared.call_args.args[1], want)

  @parameterized.parameters(
      (dict(fields=["zz"]), "--group_by=zz: must be a setting, such as k, "
       "seed"),
      (dict(fields=["sed"]), "--group_by=sed: must be a setting, such as seed, "
       "k"),
      (dict(lead_of="k = 2"), "--lead_of=k = 2: must be one of k = 0.5; "),
  )
  def test_mistakes(self, options, message):
    options = {"fields": ["k"], **options}
    with self.assertRaises(ConfigError) as caught:
      comparison.compare(RUNS, path=Path("a.png"), **options)
    self.assertStartsWith(str(caught.exception), message)

  def test_nothing_to_compare(self):
    """One group is not best; runs without accuracies and losses are none."""
    _, notes = self.compare(RUNS[:1], [])
    self.assertEqual(notes, "")
    self.assertIsNone(
        ranking.best_by([Run([], {}, {}, {"asked": {}})], None)
    )

  def test_examples(self):
    for module in (curves, groups, titles, words):
      self.assertEqual(doctest.testmod(module).failed, 0, module)


if __name__ == "__main__":
  absltest.main()
