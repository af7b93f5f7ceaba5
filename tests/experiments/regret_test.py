"""Regret and Assumption 1: parts by hand, and both scripts on small data."""

import dataclasses
import json
import tempfile
from pathlib import Path
from unittest import mock

import chex
import jax
import numpy as np
import optax
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

from agsfl import controllers
from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.rounds import build_round
from agsfl.sparsifiers import fab_top_k
from experiments.paper import independence, recorded_costs, regret, study
from tests import linear, reference

DIM = 36 * 128 + 128 + 128 * 3 + 3  # 6 x 6 images, 3 classes
BETA = 10.0


def round_of(k):
  """FAB with a constant k, on the clients of `linear`."""
  return build_round(
      linear.linear_model(),
      fab_top_k(),
      controllers.fixed(k),
      server=optax.sgd(0.5),
      batch_size=linear.BATCH,
      comm_time=BETA,
  )


class RegretTest(parameterized.TestCase):

  def test_regret_of_a_constant_k(self):
    """tau(k) = |k - 5|: k = 8 costs 3 a round, k = 4 costs 1, k* nothing."""
    cost = lambda k: np.abs(k - 5.0)
    ks = np.array([[8, 8, 8], [4, 4, 4], [5, 5, 5]])
    np.testing.assert_array_equal(
        regret.regret(cost, ks, 5.0), [[3, 6, 9], [1, 2, 3], [0, 0, 0]]
    )
    # Against another k, here 7, the same play may win.
    np.testing.assert_array_equal(
        regret.regret(cost, np.array([8, 5, 5]), 7.0), [1, -1, -3]
    )

  def test_bound(self):
    """sqrt(2 m) is 2 at m = 2 and 4 at m = 8; H = 3 triples it."""
    np.testing.assert_allclose(regret.bound(8)[[1, 7]], [2, 4])
    np.testing.assert_allclose(regret.bound(8, 3.0)[[1, 7]], [6, 12])

  def test_noise(self):
    """Signs that are right 3 times of 4 have the mean 3/4 - 1/4 = 1/2."""
    self.assertEqual(regret.noise_of(1.0), 1)
    self.assertEqual(regret.noise_of(0.75), 2)
    for accuracy in (0.5, 0.0, 1.1, np.nan):
      with self.assertRaisesRegex(ConfigError, "--sign_accuracy"):
        regret.noise_of(accuracy)

  @parameterized.parameters((2, 6), (3, 4), (4, 2), (7, 3.5), (1, 8), (12, 6))
  def test_interpolate(self, k, cost):
    """Slopes -2 and 0.5 meet at (4, 2), and go on beyond 2 and 10."""
    grid, costs = np.float32([2, 4, 10]), np.float32([6, 2, 5])
    self.assertEqual(regret.interpolate(np.float32(k), grid, costs), cost)

  def test_slopes_and_convexity(self):
    """On an uneven grid slopes decide, not differences of costs."""
    grid = np.array([1.0, 2.0, 4.0, 8.0])
    costs = np.array([[9.0, 6.0, 2.0, 0.0], [0.0, 1.0, 2.0, 4.0]])
    np.testing.assert_array_equal(
        recorded_costs.slopes(grid, costs), [[-3, -2, -0.5], [1, 0.5, 0.5]]
    )
    self.assertEqual(recorded_costs.convex_share(grid, costs[0]), 1)
    self.assertEqual(recorded_costs.convex_share(grid, costs[1]), 0.5)
    self.assertEqual(recorded_costs.convex_share(grid, costs), 0.75)

  def test_costs_of(self):
    """A k with half of the fall needs two of its rounds for the whole fall."""
    np.testing.assert_allclose(
        recorded_costs.costs_of(
            np.array([3.0, 2.0]), np.array([0.4, 0.1]), 0.2
        ),
        [1.5, 4],
    )

  def test_average(self):
    recorded = recorded_costs.Recorded(
        1, (1, 3), np.array([1.0, 3.0]), np.arange(10.0).reshape(5, 2), 0
    )
    # Parts of 2, 2 and 1 rounds.
    averaged = recorded_costs.average(recorded, 2)
    np.testing.assert_array_equal(averaged.costs, [[1, 2], [5, 6], [8, 9]])
    np.testing.assert_array_equal(averaged.order, [0, 0, 1, 1, 2])

  def test_play_recorded(self):
    """k = 3 costs 2.5 and 3 in turn; the best k = 4 costs 1 and 2."""
    averaged = recorded_costs.Averaged(
        grid=np.array([2.0, 4.0, 6.0]),
        costs=np.array([[4.0, 1.0, 5.0], [4.0, 2.0, 0.5]]),
        order=np.array([0, 1]),
    )
    played = regret.play_recorded(controllers.fixed(3.0), averaged, 3)
    np.testing.assert_allclose(played.regret, [1.5, 2.5, 4], rtol=1e-6)
    self.assertEqual((played.best, played.least), (4, 4))

  def test_falls_are_of_the_weights_that_each_k_gives(self):
    """Each k as if it were played: its time, and its fall by data size."""
    steady = round_of(6)
    recorder = recorded_costs.build_recorder(steady.step, linear.BATCH)
    key, clients = jax.random.key(0), linear.example()
    state = steady.init(key, linear.NUM_CLIENTS)
    # In the second round there are residuals.
    step = jax.jit(steady.step)
    state, _ = step(clients, state)
    after, info, times, falls = jax.jit(recorder)(
        clients, state, np.float32([1, 24])
    )
    samples = linear.one_sample_each()
    loss = lambda params: np.average(
        linear.losses_and_gradients(params, *samples)[0], weights=linear.COUNTS
    )
    before = loss(state.params)
    for k, time, fall in zip((6, 1, 24), times, falls, strict=True):
      # k of a round is in the state already.
      begun = round_of(k).init(key, linear.NUM_CLIENTS)
      there = state.replace(
          proposal=begun.proposal, controller=begun.controller
      )
      want, _ = step(clients, there)
      if k == 6:
        numbers = lambda state: state.replace(key=())
        chex.assert_trees_all_close(numbers(after), numbers(want), rtol=1e-5)
      np.testing.assert_allclose(
          fall, before - loss(want.params), rtol=1e-3
      )
      theta = reference.round_time(
          k, k, linear.DIM, BETA, 1 + 1 / linear.BATCH
      )
      np.testing.assert_allclose(time, theta, rtol=1e-6)
    np.testing.assert_allclose(info.minibatch_loss, before, rtol=1e-5)

  @parameterized.parameters(1.0, 0.75)
  def test_synthetic_regret_within_the_bound(self, accuracy):
    measured = regret.synthetic(controllers.sign_descent, accuracy, 500, 20)
    limit = regret.bound(500, regret.noise_of(accuracy))
    for name, values in measured.items():
      with self.subTest(name):
        np.testing.assert_array_less(values, limit)
        # From k_1 far from the worst k* the first round costs much of G B.
        self.assertBetween(values[0], 0.2, 1.0)


class GapsTest(absltest.TestCase):

  def test_greatest_gaps(self):
    """All fall by 2; the first and the last are 1.5 apart in the middle."""
    lines = np.array([[3.0, 1.5, 1.0], [3.0, 2.0, 1.0], [3.0, 3.0, 1.0]])
    np.testing.assert_allclose(
        independence.greatest_gaps(lines), [0.75, 0.5, 0.75]
    )
    self.assertTrue(np.isnan(independence.greatest_gaps(lines[:, ::-1])).all())


def write_data(path):
  """96 images of 6 x 6 in 3 classes, each with a bright line of its own."""
  rng = np.random.default_rng(0)
  labels = np.arange(96) % 3
  images = rng.integers(0, 80, (96, 6, 6)).astype(np.uint8)
  images[np.arange(96), 2 * labels] += 150
  np.savez(
      path, images=images, labels=labels, is_train=np.arange(96) % 5 > 0
  )


class ScriptsTest(absltest.TestCase):
  """Each script on small data, through its figure and its table."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(flagsaver.flagsaver())
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
      self.addCleanup(flags.FLAGS.unparse_flags)
    flags.FLAGS.workdir = str(self.folder / "study")
    write_data(self.folder / "tiny.npz")
    self.base = Config(
        dataset=f"npz:{self.folder / 'tiny.npz'}",
        model="mlp",
        k=60.0,
        learning_rate=0.05,
        num_clients=3,
        batch_size=8,
        num_rounds=8,
        eval_every=4,
    )

  def lines(self):
    """The table's cells without its header, and the whole text."""
    self.assertGreater((self.folder / "study/figure.png").stat().st_size, 1000)
    text = (self.folder / "study/table.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[c.strip() for c in row.split("|")[1:-1]] for row in rows[2:]], text

  def test_regret(self):
    flags.FLAGS.play_rounds = 200
    flags.FLAGS.noise_seeds = 5
    flags.FLAGS.grid_size = 4
    flags.FLAGS.average_over = 3
    base = dataclasses.replace(self.base, k=10.0, k_min=10.0)
    record, made = recorded_costs.record, []

    def watched(*arguments):
      made.append(record(*arguments))
      return made[-1]

    with mock.patch.object(recorded_costs, "record", watched):
      regret.compare(base)
    (recorded,) = made
    self.assertEqual(len(recorded.costs) + recorded.left_out, base.num_rounds)
    self.assertEqual((recorded.k, recorded.interval), (10, (10, DIM)))
    self.assertEqual((recorded.grid[0], recorded.grid[-1]), (10, DIM))
    # Law: the k that the run played costs its own time,
    # theta = 1 + 1 / batch_size + beta (2 k + 2 k) / (2 D).
    theta = 1 + 1 / 8 + 10 * 2 * 10 / DIM
    np.testing.assert_allclose(recorded.costs[:, 0], theta, rtol=1e-5)
    self.assertTrue(np.all(recorded.costs > 0))
    lines, text = self.lines()
    self.assertLen(lines, 2 * 2 * len(regret.SHAPES) + 2)
    for line in lines[:-2]:
      if line[2] == "Alg. 2":
        self.assertLess(float(line[5]), 1)
      else:
        self.assertEqual(line[4:], ["", ""])  # No bound is claimed.
    self.assertIn(
        f"seed 0: {len(recorded.costs)} rounds have a cost, "
        f"{recorded.left_out} are left out.",
        text,
    )
    with self.subTest("started again, it reads what is there"):
      with mock.patch.object(recorded_costs, "record", None):
        regret.compare(base)
      self.assertEqual(self.lines()[1], text)
    with self.subTest("other settings are refused"):
      other = dataclasses.replace(base, learning_rate=0.5)
      wrong = "seed0.json.*learning_rate=0.05, asked for 0.5"
      with self.assertRaisesRegex(ConfigError, wrong):
        regret.compare(other)

  def test_regret_refuses_a_method_without_k(self):
    base = dataclasses.replace(self.base, method="send_all")
    with self.assertRaisesRegex(ConfigError, "--method=send_all"):
      regret.compare(base)

  def test_independence(self):
    """One test for all, so that it compiles once for each k."""
    flags.FLAGS.first_ks = ["40", "400"]
    flags.FLAGS.then_k = 400.0
    flags.FLAGS.switch_loss = 1.05
    flags.FLAGS.max_rounds = 200
    independence.compare(self.base)
    first, _ = self.lines()
    self.assertEqual([line[0] for line in first], ["40", "400"])
    paths = sorted(study.folder().glob("k*/seed0.json"))
    self.assertLen(paths, 2)
    of_ks = [json.loads(path.read_text())["made"] for path in paths]
    for rows in of_ks:
      self.assertEqual([row["since"] for row in rows], [0, 4, 8])
      self.assertLessEqual(rows[0]["train_loss"], 1.05)
      # theta = 1 + beta (2 k + 2 k) / (2 D) with the second k.
      theta = 1 + 10 * 2 * 400 / DIM
      times = np.diff([row["time"] for row in rows])
      np.testing.assert_allclose(times, 4 * theta, rtol=1e-5)
    with self.subTest("started again, it reads what is there"):
      before = [path.stat().st_mtime_ns for path in paths]
      independence.compare(dataclasses.replace(self.base, k=70.0))
      self.assertEqual(self.lines()[0], first)
      self.assertEqual([path.stat().st_mtime_ns for path in paths], before)
    with self.subTest("other settings are refused"):
      flags.FLAGS.then_k = 90.0
      wrong = "then_k=400, asked for 90"
      with self.assertRaisesRegex(ConfigError, wrong):
        independence.compare(self.base)
    with self.subTest("residuals may be emptied"):
      before, after = (
          dataclasses.replace(
              self.base, controller="fixed", k=k, num_rounds=rounds
          )
          for k, rounds in ((40.0, 200), (400.0, 8))
      )
      emptied = independence.switched_run(before, after, 1.05, False)
      # Residuals matter, but not before a round has used them.
      self.assertEqual(emptied[0], of_ks[0][0])
      self.assertNotEqual(emptied[1]["train_loss"], of_ks[0][1]["train_loss"])
    with self.subTest("a loss that is not reached"):
      before = dataclasses.replace(before, num_rounds=4)
      with self.assertRaisesRegex(ConfigError, "--switch_loss=0.001.*=4 "):
        independence.switched_run(before, after, 1e-3)


if __name__ == "__main__":
  absltest.main()
