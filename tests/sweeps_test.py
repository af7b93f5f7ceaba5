"""Runs side by side: each is what it is alone, whatever the others do."""

import dataclasses
import errno
import os
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import sweeps
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.records.folder import RunFolder
from tests.small import RoundRows, config, files_of, rows_of, stop_after

# The cheapest to compile; k moves no array's shape.
PLAIN = {"controller": "fixed", "num_rounds": 8}


class GroupTest(parameterized.TestCase):

  def test_groups(self):
    """By program, in order, with so many lanes at most."""
    base = config(**PLAIN)
    changes = {
        "a": {}, "b": {"seed": 1}, "c": {"batch_size": 8},
        "d": {"k": 50.0, "learning_rate": 0.5, "comm_time": 1.0},
        "e": {"time_budget": 9.0, "server_learning_rate": 0.1},
        "f": {"num_rounds": 9}, "g": {"eval_every": 4},
        "h": {"controller": "value"}, "i": {"init_from": "w.npy"},
        "j": {"batch_size": 8, "seed": 2},
    }
    configs = {
        label: dataclasses.replace(base, **change)
        for label, change in changes.items()
    }
    together = [["a", "b", "d", "e", "i"], ["c", "j"], ["f"], ["g"], ["h"]]
    self.assertEqual(sweeps.group_by_program(configs, 99), together)
    self.assertEqual(
        sweeps.group_by_program(configs, 2),
        [["a", "b"], ["d", "e"], ["i"], *together[1:]],
    )

  @parameterized.parameters(
      # Steps of the bandit and local steps of FedAvg follow from these.
      ({"controller": "bandit"}, {"num_rounds": 9}),
      ({"controller": "balance"}, {"time_budget": 9.0}),
      ({"method": "fedavg"}, {"k": 50.0}),
      # Sequences of k may have different lengths.
      ({"controller": "replay", "replay": "a"}, {"replay": "b"}),
      # Lanes have one model.
      ({"lora_rank": 2, "lora_from": "a"}, {"lora_from": "b"}),
  )
  def test_numbers_that_make_another_program(self, settings, change):
    one = config(**{**PLAIN, **settings})
    other = dataclasses.replace(one, **change)
    self.assertLen(sweeps.group_by_program({1: one, 2: other}, 9), 2)


class LanesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def lanes(self, *changes, **options):
    """Runs by number; PLAIN with changes."""
    configs = {
        self.folder / str(number): config(**{**PLAIN, **change})
        for number, change in enumerate(changes)
    }
    outcomes = sweeps.simulate_lanes(configs, **options)
    self.assertEqual(list(outcomes), list(configs))
    return list(outcomes.values())

  def assert_as_alone(self, lane, changes):
    """Rows to 1e-5; what is chosen and counted is the same."""
    alone = agsfl.simulate(config(**{**PLAIN, **changes}))
    self.assertLen(lane.rows, len(alone.rows))
    for row, other in zip(lane.rows, alone.rows, strict=True):
      self.assertEqual(row.keys(), other.keys())
      for name, value in row.items():
        if name in ("round", "k_up", "k_down", "sign"):
          self.assertEqual(value, other[name], name)
        else:
          np.testing.assert_allclose(value, other[name], 1e-5, err_msg=name)
    np.testing.assert_array_equal(lane.contributed, alone.contributed)
    np.testing.assert_allclose(lane.params, alone.params, atol=1e-5)
    self.assertEqual(lane.config, alone.config)
    read = agsfl.read_run(lane.workdir)
    self.assertEqual((read.rows, read.summary), (lane.rows, lane.summary))

  def test_numbers(self):
    """Law: a lane is its run alone; here all numbers that lanes may have."""
    np.save(self.folder / "w.npy", np.full(9610, 0.01, np.float32))
    changes = (
        {}, {"seed": 1}, {"k": 50.0, "learning_rate": 0.05},
        {"comm_time": 2.0, "server_learning_rate": 0.1},
        {"init_from": str(self.folder / "w.npy")},
    )
    for lane, change in zip(self.lanes(*changes), changes, strict=True):
      self.assert_as_alone(lane, change)

  def test_a_learned_k(self):
    """Alg. 3 with its probe; each lane has its own k."""
    learned = {"method": "fab_top_k", "controller": "sign_interval"}
    changes = [{**learned, "comm_time": beta} for beta in (1.0, 30.0)]
    lanes = self.lanes(*changes)
    for lane, change in zip(lanes, changes, strict=True):
      self.assert_as_alone(lane, change)
    self.assertNotEqual(*([row["k"] for row in lane.rows] for lane in lanes))

  def test_budgets(self):
    """A lane that has spent its own ends there, and the others go on.

    A round takes 1 + 10 x 1000 / 9610 = 2.04 units.
    """
    changes = [{"time_budget": budget} for budget in (4.0, 1.0, None, 7.6)]
    lanes = self.lanes(*changes)
    self.assertEqual([len(lane.rows) for lane in lanes], [2, 1, 8, 4])
    for lane, change in zip(lanes, changes, strict=True):
      self.assert_as_alone(lane, change)

  def test_partitions(self):
    """Each lane has its own clients of the same samples."""
    changes = [
        {"partition": "iid", "seed": seed, "num_clients": 5} for seed in (3, 4)
    ]
    lanes = self.lanes(*changes)
    for lane, change in zip(lanes, changes, strict=True):
      self.assert_as_alone(lane, change)
    self.assertNotEqual(*(lane.config["data"] for lane in lanes))

  def test_one_data_seed(self):
    """Lanes of several seeds share data that are loaded once."""
    changes = [
        {"partition": "iid", "seed": seed, "data_seed": 5} for seed in (3, 4)
    ]
    with mock.patch.object(sweeps, "load", side_effect=sweeps.load) as load:
      lanes = self.lanes(*changes)
    self.assertEqual(load.call_count, 1)
    self.assertEqual([lane.config["data_seed"] for lane in lanes], [5, 5])
    for lane, change in zip(lanes, changes, strict=True):
      self.assert_as_alone(lane, change)
    one, other = lanes
    self.assertEqual(one.config["data"], other.config["data"])
    self.assertNotEqual(
        *([row["minibatch_loss"] for row in lane.rows] for lane in lanes)
    )

  def test_divergence(self):
    """It ends its own lane alone."""
    wild = {"learning_rate": 1e30}
    lanes = self.lanes({}, wild, {"seed": 1})
    self.assertIsInstance(lanes[1], DivergedError)
    self.assertRegex(str(lanes[1]), "^round [0-9]+: .* is not finite")
    with self.assertRaises(DivergedError) as alone:
      agsfl.simulate(config(**PLAIN, **wild))
    self.assertEqual(str(lanes[1]), str(alone.exception))
    self.assert_as_alone(lanes[0], {})
    self.assert_as_alone(lanes[2], {"seed": 1})
    self.assertFalse(agsfl.read_run(self.folder / "1").finished)

  def test_stopped(self):
    """Law: the files do not depend on where lanes were stopped."""
    changes = {"seed": 1}, {"seed": 2, "time_budget": 5.0}, {"seed": 3}
    whole = self.lanes(*changes)
    for number in range(3):
      shutil.rmtree(self.folder / str(number))
    seen = RoundRows()
    on_row = lambda workdir, row: seen.append(row)
    with self.assertRaisesRegex(StoppedError, "^round 2: stopped$"):
      self.lanes(*changes, on_row=on_row, should_stop=lambda: len(seen) >= 6)
    seen.clear()
    lanes = self.lanes(*changes, on_row=on_row)
    self.assertEqual(
        sorted(row["round"] for row in seen),
        [3, 3, 3, *sorted([4, 5, 6, 7, 8] * 2)],
    )
    for lane, one in zip(lanes, whole, strict=True):
      self.assertEqual(lane.rows, one.rows)
      np.testing.assert_array_equal(lane.params, one.params)
      np.testing.assert_array_equal(lane.contributed, one.contributed)

  def test_lanes_of_different_rounds_go_on(self):
    """Each from its own state; a new one begins beside them."""
    with self.assertRaises(StoppedError):
      agsfl.simulate(
          config(**PLAIN, seed=1), workdir=self.folder / "1", **stop_after(5)
      )
    agsfl.simulate(
        config(**{**PLAIN, "num_rounds": 3}, seed=2), workdir=self.folder / "2"
    )
    changes = [{"seed": seed} for seed in range(3)]
    seen = []
    lanes = self.lanes(
        *changes,
        on_row=lambda workdir, row: seen.append((workdir.name, row["round"])),
    )
    rounds = lambda name: [number for place, number in seen if place == name]
    self.assertEqual(rounds("0"), [*range(9)])
    self.assertEqual(rounds("1"), [6, 7, 8])
    self.assertEqual(rounds("2"), [4, 5, 6, 7, 8])
    self.assert_as_alone(lanes[0], changes[0])
    self.assert_as_alone(lanes[1], changes[1])
    # The third was evaluated where it had ended.
    self.assertIn("test_loss", lanes[2].rows[2])
    alone = agsfl.simulate(config(**PLAIN, seed=2))
    start, _, *others = lanes[2].evaluated
    self.assertEqual([start, *others], alone.evaluated)

  def test_killed(self):
    """Lanes go on from what they saved on the way."""

    class Killed(Exception):
      pass

    def kill(workdir, row):
      if row["round"] == 5:
        raise Killed

    with self.assertRaises(Killed):
      self.lanes({}, {"seed": 1}, checkpoint_every=2, on_row=kill)
    seen = []
    lanes = self.lanes(
        {}, {"seed": 1}, on_row=lambda workdir, row: seen.append(row["round"])
    )
    self.assertEqual(min(seen), 5)
    for lane, change in zip(lanes, ({}, {"seed": 1}), strict=True):
      self.assert_as_alone(lane, change)

  def test_finished_lanes(self):
    """A run that is finished by now is read; none is run twice."""
    agsfl.simulate(config(**PLAIN), workdir=self.folder / "0")
    before = files_of(self.folder / "0")
    lanes = self.lanes({}, {"seed": 1})
    self.assertEqual(files_of(self.folder / "0"), before)
    self.assertEqual([len(lane.rows) for lane in lanes], [8, 8])

  @parameterized.parameters(True, False)
  def test_the_last_state(self, keep_state):
    """It stays where a lane is to go on later."""
    self.lanes({}, {"seed": 1}, keep_state=keep_state, checkpoint_every=3)
    for number in ("0", "1"):
      place = self.folder / number / "checkpoints"
      steps = [path.name for path in place.iterdir()] if keep_state else []
      self.assertEqual(steps, ["8"] if keep_state else [])
      self.assertEqual(place.exists(), keep_state)

  def test_refused_lanes(self):
    """By folder the refusal of each; all others run."""
    for number, settings in enumerate((
        {"seed": 9}, {"num_rounds": 9}, {}, {}, {},
    )):
      agsfl.simulate(
          config(**{**PLAIN, **settings}), workdir=self.folder / str(number),
          keep_state=False,
      )
    (self.folder / "2" / "summary.json").write_text("{")
    (self.folder / "3" / "params.npy").unlink()
    shutil.rmtree(self.folder / "4")
    (self.folder / "4").write_text("a file")
    outcomes = self.lanes({}, {}, {}, {}, {}, {"dataset": "npz:/no"}, {})
    problems = (
        "seed=9, asked for 0", "--num_rounds=8: must be at least 9",
        "summary.json is damaged", None, "must be a folder", "npz:/no", None,
    )
    for outcome, problem in zip(outcomes, problems, strict=True):
      if problem is None:
        self.assertLen(outcome.rows, 8)
      else:
        self.assertIsInstance(outcome, ConfigError)
        self.assertLen(str(outcome).splitlines(), 1)
        self.assertIn(problem, str(outcome))

  def test_no_state_to_go_on_from(self):
    """A finished run loses no row; the lane beside it runs."""
    short = config(**{**PLAIN, "num_rounds": 4})
    agsfl.simulate(short, workdir=self.folder / "0", keep_state=False)
    refused, done = self.lanes({}, {"seed": 1})
    self.assertIn("without its last state", str(refused))
    self.assertLen(done.rows, 8)
    self.assertLen(rows_of(self.folder / "0"), 4)
    self.assertTrue(agsfl.read_run(self.folder / "0").finished)

  @parameterized.parameters("removed", "full")
  def test_a_disk_that_refuses(self, how):
    """It ends its own lane alone."""
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    sync = RunFolder.sync

    def on_row(workdir, row):
      if how == "removed" and (workdir.name, row["round"]) == ("0", 3):
        shutil.rmtree(workdir)

    def sync_of(files):
      if how == "full" and files.workdir.name == "0":
        raise full
      sync(files)

    self.enter_context(mock.patch.object(RunFolder, "sync", sync_of))
    ended, done = self.lanes({}, {"seed": 1}, on_row=on_row)
    self.assertIsInstance(ended, ConfigError)
    problem = "removed or replaced" if how == "removed" else "No space left"
    self.assertIn(problem, str(ended))
    self.assert_as_alone(done, {"seed": 1})

  def test_different_shapes(self):
    """Refused for all: lanes share the samples and their number of clients."""
    data = [
        agsfl.load("digits", agsfl.Partition("iid", num_clients=number))
        for number in (10, 5)
    ]
    with self.assertRaisesRegex(
        ConfigError, "^--partition=one_class: must give all lanes of a sweep "
    ):
      sweeps.build_lanes([config(**PLAIN)] * 2, data)


if __name__ == "__main__":
  absltest.main()
