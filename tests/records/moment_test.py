"""Values of runs at one point, and the flags that name it."""

import doctest
import math

from absl.testing import absltest, parameterized

from agsfl.errors import ConfigError
from agsfl.records import moment
from agsfl.records.moment import Moment, value_at
from agsfl.records.read import Run
from experiments.lib import points, ranking
from tests.small import given

# Losses at rounds 0, 2 and 4.
LOSSES = {0: 9.0, 2: 5.0, 4: 4.0}


def run_of(rounds=4, start=True, pace=2.5, **more):
  """A run whose round m ends at time m * pace, and sends m bytes up."""
  evaluation = lambda m: {
      "train_loss": None, "test_loss": LOSSES.get(m),
      "test_accuracy": 1 / LOSSES.get(m, 1),
  }
  rows = [
      {
          "round": m, "time": m * pace, "k": 10.0 * m, "k_up": m, "k_down": 0,
          "bytes_up": float(m), "bytes_down": 0.0, "norm": m**2,
          **(evaluation(m) if m in LOSSES else {}),
          **{key: value(m) for key, value in more.items()},
      }
      for m in range(1, rounds + 1)
  ]
  config = {
      "method": "periodic_k", "num_clients_used": 2,
      "asked": {"k": 5.0, "seed": 0},
  }
  first = {"round": 0, "time": 0.0, **evaluation(0)} if start else None
  return Run(rows, {}, {}, config, start=first)


class ValueTest(parameterized.TestCase):

  @parameterized.parameters(
      ("test_loss", "round", 3, 4.5),
      ("test_loss", "time", 6.25, 4.75),  # half of round 3 is done
      ("test_loss", "time", 2.5, 7.0),  # from the first weights
      ("test_loss", "bytes", 2 * (1 + 2), 5.0),
      ("test_loss", "time", 10.5, None),
      ("train_loss", "round", 3, None),
      ("norm", "time", 3.75, 2.5),
      ("round", "time", 6.25, 2),
      ("round", "time", 2.4, 0),
      ("time", "round", 3.5, 7.5),
      ("bytes", "time", 6.25, 2 * (1 + 2)),
      ("bytes", "time", 1.0, 0.0),
      ("k", "time", 6.25, 20.0),
      ("k", "time", 1.0, None),
      ("none", "time", 1.0, None),
      ("test_loss", "seconds", 1.0, None),
  )
  def test_worked(self, key, against, value, want):
    """Evaluations are interpolated; what rounds have is that of the last."""
    self.assertEqual(value_at(run_of(), key, Moment(against, value)), want)

  def test_the_end(self):
    run = run_of(rounds=3, infinite=lambda m: math.inf if m == 3 else 1.0)
    keys = ("test_loss", "k", "bytes", "norm", "infinite", "none")
    self.assertEqual(
        [value_at(run, key, None) for key in keys],
        [5.0, 30.0, 2 * (1 + 2 + 3), 9, None, None],
    )
    self.assertIsNone(value_at(run_of(rounds=0, start=False), "k", None))

  def test_a_run_without_round_0(self):
    """Nothing is known before its first evaluation."""
    old = run_of(start=False)
    at = lambda key, m: value_at(old, key, Moment("round", m))
    self.assertEqual([at("test_loss", m) for m in (1, 2)], [None, 5.0])
    self.assertEqual([at("k", m) for m in (0.5, 1)], [None, 10.0])

  @parameterized.parameters("round", "time", "bytes")
  def test_it_is_the_line_of_a_figure(self, against):
    """Law: between two evaluations it is on the line that joins them."""
    run = run_of()
    ends = dict(zip(*run.series("round", against)[::-1], strict=True))
    for first, last in ((0, 2), (2, 4)):
      for part in (0, 0.25, 0.9, 1):
        at = ends[first] + part * (ends[last] - ends[first])
        self.assertAlmostEqual(
            value_at(run, "test_loss", Moment(against, at)),
            LOSSES[first] + part * (LOSSES[last] - LOSSES[first]),
        )

  @parameterized.parameters(None, math.nan, math.inf)
  def test_what_is_not_finite_is_not_filled(self, lost):
    """Law: there is a value only where all evaluations beside it are finite."""
    run = run_of(6, norm=lambda m: lost if m in (2, 6) else m)
    at = lambda m: value_at(run, "norm", Moment("round", m))
    self.assertEqual(
        [at(m) for m in (1, 1.5, 2, 2.5, 3, 4.5, 5, 5.5, 6)],
        [1, None, None, None, 3, 4.5, 5, None, None],
    )

  def test_examples(self):
    self.assertEqual(doctest.testmod(moment).failed, 0)
    self.assertEqual(moment.best_is("client_test_accuracy_jain"), "max")
    self.assertEqual(moment.best_is("client_test_accuracy_std"), "min")


class FlagsTest(parameterized.TestCase):

  # The first evaluation of the last two is at round 0, and there is no other.
  RUNS = (run_of(), run_of(rounds=3, pace=3.0), run_of(0), run_of(1))

  @parameterized.parameters(
      ("--at_time=7", ("time", 7.0)),
      # The second run's last evaluation is in round 2.
      ("--at_time=common", ("time", 6.0)),
      ("--at_rounds=common", ("round", 2.0)),
      ("--at_bytes=common", ("bytes", 2.0 * (1 + 2))),
      ("--at_bytes=1e3", ("bytes", 1000.0)),
  )
  def test_points(self, flag, want):
    with given(flag):
      self.assertEqual(points.asked(self.RUNS), want)
    self.assertIsNone(points.asked(self.RUNS))

  @parameterized.parameters(
      (["--at_time=1", "--at_rounds=2"], "--at_time=1: must be unset with "),
      (["--at_seconds=common"], "--at_seconds=common: must be unset, because "),
      (["--at_time=-1"], "--at_time=-1: must be common or "),
      (["--at_time=inf"], "--at_time=inf: must be common or "),
      (["--at_time=end"], "--at_time=end: must be common or "),
      (["--sort_by=see"],
       "--sort_by=see: must be a setting, such as seed, or one of test_loss, "),
  )
  def test_mistakes(self, arguments, message):
    with given(*arguments), self.assertRaises(ConfigError) as caught:
      points.asked(self.RUNS)
      points.sort_by(self.RUNS)
    self.assertStartsWith(str(caught.exception), message)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_nothing_is_common(self):
    """Round 0 alone is no point to compare at, whatever the axis."""
    for flag in ("--at_time", "--at_rounds", "--at_bytes"):
      with (
          given(f"{flag}=common"),
          self.assertRaisesRegex(ConfigError, f"^{flag}=common: must be a num"),
      ):
        points.asked(self.RUNS[2:])
    # Without a round nothing says whether there is a clock.
    with given("--at_seconds=0"), self.assertRaises(ConfigError):
      points.asked([run_of(0)])

  def test_what_is_best(self):
    """The column of --sort_by, unless it is a setting; else accuracy."""
    for flag, name, best in (
        ("test_loss", "test_loss", "test_loss"), ("k", "k", "test_accuracy"),
    ):
      with given(f"--sort_by={flag}"):
        sorted_by = points.sort_by(self.RUNS)
      self.assertEqual(sorted_by, name)
      self.assertEqual(ranking.best_by(self.RUNS, sorted_by), best)
    nothing = [Run([], {}, {}, {"asked": {}})]
    self.assertIsNone(ranking.best_by(nothing, None))


if __name__ == "__main__":
  absltest.main()
