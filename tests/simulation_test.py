"""Runs by the loop over rounds, and what goes wrong around them."""

import contextlib
import dataclasses
import errno
import io
import json
import os
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import programs, simulation
from agsfl.errors import ConfigError, StoppedError
from agsfl.records import folder as records
from tests.small import config, files_of, rows_of, state_of

# The cheapest to compile.
PLAIN = {"controller": "fixed"}


class Counter:
  """Several runs whose states are the number of rounds done."""

  def __init__(self, *begun, rounds_per_call=1):
    self.calls = []
    self.simulation = programs.Simulation(
        model=None,
        state=np.array(begun),
        advance=self.advance,
        rounds_per_call=rounds_per_call,
        evaluate=[],
        lane=lambda state, index: int(state[index]),
        pack=lambda state: state,
        like=None,
        unpack=None,
    )

  def advance(self, state, num_rounds):
    self.calls.append(num_rounds)
    infos = [[done + i + 1 for i in range(num_rounds)] for done in state]
    return state + num_rounds, infos


class Sheet:
  """A recorder of a `Counter`: what it was asked, and how it ends."""

  def __init__(self, end, *, begun=0, period=4, saves=()):
    self.end, self.period, self.saves = end, period, saves
    self.rows = [*range(1, begun + 1)]
    self.outcome = None
    self.saved, self.settled = [], False

  @property
  def rounds_ahead(self):
    done = len(self.rows)
    return min(self.end - done, self.period - done % self.period)

  def begin(self, state):
    assert state == len(self.rows)

  def end_if_reached(self, state):
    assert state == len(self.rows)
    if state == self.end:
      self.outcome = "read"

  def add(self, infos, state, seconds):
    self.rows += infos
    assert state == len(self.rows) and seconds >= 0
    if state >= self.end:
      self.outcome = "done"

  def is_save_due(self, stopping):
    return stopping or len(self.rows) in self.saves

  def save(self, state):
    self.saved.append(state)

  def settle(self):
    self.settled = True


class PlayTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, [1] * 10),
      # Never past an evaluation, whose weights would be gone by then.
      (3, [3, 1, 3, 1, 2]),
      (99, [4, 4, 2]),
  )
  def test_calls_end_where_something_is_due(self, rounds_per_call, calls):
    counter = Counter(0, rounds_per_call=rounds_per_call)
    sheet = Sheet(10, saves=(4, 10))
    simulation.play(counter.simulation, [sheet])
    self.assertEqual(counter.calls, calls)
    self.assertEqual(sheet.rows, [*range(1, 11)])
    self.assertEqual(sheet.saved, [4, 10])
    self.assertTrue(sheet.settled)

  def test_lanes_of_different_rounds(self):
    """Each goes on from its own round; what has ended is left alone."""
    ended, read = Sheet(3), Sheet(6, begun=6)
    ended.outcome = "refused"
    late, early = Sheet(10, begun=6), Sheet(10)
    sheets = [ended, read, late, early]
    counter = Counter(0, 6, 6, 0, rounds_per_call=99)
    simulation.play(counter.simulation, sheets)
    # To rounds 8 and 2, 10 and 4, then 8, then 10.
    self.assertEqual(counter.calls, [2, 2, 4, 2])
    for sheet in (late, early):
      self.assertEqual((sheet.rows, sheet.outcome), ([*range(1, 11)], "done"))
    self.assertEqual((read.rows, read.outcome), ([*range(1, 7)], "read"))
    self.assertEqual((ended.rows, ended.settled), ([], False))

  def test_a_stop(self):
    """All that have not ended save their states, and the round is named."""
    sheets = [Sheet(2), Sheet(10)]
    counter = Counter(0, 0)
    asked = iter([False, False, True])
    with self.assertRaisesRegex(StoppedError, "^round 3: stopped$"):
      simulation.play(counter.simulation, sheets, lambda: next(asked))
    self.assertEqual([sheet.saved for sheet in sheets], [[], [3]])
    self.assertTrue(sheets[1].settled)

  def test_a_stop_in_the_last_round(self):
    """The run is done."""
    sheet = Sheet(3)
    simulation.play(Counter(0).simulation, [sheet], lambda: len(sheet.rows) > 2)
    self.assertEqual(sheet.outcome, "done")


class SharedTest(parameterized.TestCase):
  """Runs of one process that are alike trace their rounds once."""

  TINY = config(
      **PLAIN, partition="iid", num_clients=4, batch_size=3, num_rounds=3
  )

  def counted(self, *configs):
    """The runs, and how often a round was composed for them."""
    with mock.patch.object(
        programs, "compose", side_effect=programs.compose
    ) as compose:
      runs = [agsfl.simulate(asked) for asked in configs]
    return runs, compose.call_count

  def forget(self):
    for cached in (programs._round, programs._run, programs._init):
      cached.cache_clear()

  def test_numbers_and_seeds_share(self):
    """Law: a run is bit for bit what it is in a process of its own."""
    changes = (
        {}, {"seed": 1}, {"k": 40.0}, {"learning_rate": 0.2, "comm_time": 3.0},
        {"num_rounds": 4, "time_budget": 2.0}, {"eval_every": 2},
    )
    configs = [dataclasses.replace(self.TINY, **change) for change in changes]
    self.forget()
    runs, count = self.counted(*configs)
    self.assertGreater(count, 0)
    self.assertEqual(self.counted(*configs)[1], 0)
    for asked, run in zip(configs, runs, strict=True):
      self.forget()
      (alone,), again = self.counted(asked)
      self.assertEqual(again, count)
      self.assertEqual(alone.rows, run.rows)
      np.testing.assert_array_equal(alone.params, run.params)
    results = [run.rows for run in runs]
    self.assertLen({json.dumps(rows) for rows in results}, len(changes))

  @parameterized.parameters({"batch_size": 4}, {"server_optimizer": "adam"})
  def test_others_do_not(self, **change):
    self.forget()
    agsfl.simulate(self.TINY)
    other = dataclasses.replace(self.TINY, **change)
    self.assertGreater(self.counted(other)[1], 0)

  def test_each_k_is_checked(self):
    agsfl.simulate(self.TINY)
    with self.assertRaisesRegex(ConfigError, "--k=1000000: must be at most"):
      agsfl.simulate(dataclasses.replace(self.TINY, k=1e6))

  def test_a_record_that_changed_is_read_again(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    for k in (50.0, 70.0):
      place = f"{folder}/run"
      shutil.rmtree(place, ignore_errors=True)
      agsfl.simulate(dataclasses.replace(self.TINY, k=k), workdir=place)
      replay = dataclasses.replace(
          self.TINY, controller="replay", replay=place
      )
      rows = agsfl.simulate(replay).rows
      self.assertEqual([row["k"] for row in rows], [k] * 3)


class LargeTest(parameterized.TestCase):
  """Models of more weights than float32 has whole numbers in a row."""

  @parameterized.product(
      dim=(2**24 + 1, 2**24 + 3, 2**25 + 1),
      below=(0, 2),
      controller=("fixed", "sign_interval"),
  )
  def test_k_is_as_played(self, dim, below, controller):
    """Law: a float32 number next to what is asked for, and at most D."""
    asked = agsfl.Config(k=float(dim - below), controller=controller)
    used = asked.k_range(dim)
    for k in used:
      self.assertEqual(np.float32(k), k)
      self.assertLessEqual(k, dim)
    spacing = np.spacing(np.float32(dim))
    self.assertLess(abs(used.k - asked.k), spacing)
    self.assertLess(dim - used.k_max, spacing)

  def test_smaller_k_are_as_asked(self):
    """Where float32 has all whole numbers nothing changes."""
    for k in (1000.1, 2.0**24):
      asked = agsfl.Config(k=k, controller="fixed")
      self.assertEqual(asked.k_range(2**24 + 3).k, k)


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def refused(self, settings, words, **options):
    with self.assertRaisesRegex(ConfigError, words) as caught:
      agsfl.simulate(config(**{**PLAIN, **settings}), **options)
    self.assertLen(str(caught.exception).splitlines(), 1)


class InitFromTest(FolderTest):
  """Weights to begin with."""

  DIM = 9610  # 64 x 128 + 128 + 128 x 10 + 10

  def test_the_weights_are_used(self):
    """Of a run or of a file: both make the same first step from them."""
    first = agsfl.simulate(
        config(**PLAIN, num_rounds=2), workdir=self.folder / "run"
    )
    np.save(self.folder / "file.npy", first.params)
    asked = config(
        **PLAIN, num_rounds=1, k=1.0, learning_rate=1e-3, seed=5,
        init_from=str(self.folder / "run"),
    )
    of_run = agsfl.simulate(asked)
    of_file = agsfl.simulate(
        dataclasses.replace(asked, init_from=str(self.folder / "file.npy"))
    )
    np.testing.assert_array_equal(of_run.params, of_file.params)
    # One element of the weights has moved.
    self.assertEqual(np.sum(of_run.params != first.params), 1)

  def test_what_cannot_be_used(self):
    for name, values in (
        ("short", np.ones(3)), ("table", np.ones((self.DIM, 1))),
        ("nan", np.full(self.DIM, np.nan)),
    ):
      path = self.folder / f"{name}.npy"
      np.save(path, values)
      self.refused(
          {"init_from": str(path)},
          f"^--init_from={path}: must be 9,610 finite weights, as this model "
          r"has; it holds \[.*\]$",
      )
    np.savez(self.folder / "many.npz", a=np.ones(3))
    np.save(self.folder / "text.npy", np.array(["a"] * self.DIM))
    np.save(self.folder / "object.npy", np.array([None]), allow_pickle=True)
    (self.folder / "words.npy").write_text("words")
    (self.folder / "empty.npy").touch()
    (self.folder / "folder").mkdir()
    for name in (
        "many.npz", "text.npy", "object.npy", "words.npy", "empty.npy",
        "folder", "nothing",
    ):
      path = self.folder / name
      self.refused(
          {"init_from": str(path)},
          f"^--init_from={path}: must be the folder of a finished run, or a "
          r"file of NumPy \(",
      )

  def test_an_unfinished_run(self):
    """One that grows has the weights of before, and no end."""
    place = self.folder / "run"
    agsfl.simulate(config(**PLAIN), workdir=place)
    (place / "summary.json").unlink()
    self.refused(
        {"init_from": str(place)},
        "has no final weights .params.npy., because its run is not finished",
    )

  def test_other_weights_in_the_same_file(self):
    path, place = self.folder / "weights.npy", self.folder / "run"
    np.save(path, np.full(self.DIM, 0.01, np.float32))
    asked = {"init_from": str(path), "num_rounds": 2}
    agsfl.simulate(config(**PLAIN, **asked), workdir=place)
    before = files_of(place)
    agsfl.simulate(config(**PLAIN, **asked), workdir=place)
    np.save(path, np.full(self.DIM, 0.02, np.float32))
    self.refused(
        asked,
        "fingerprints={'init_from': '.*'}, asked for {'init_from': '.*'}",
        workdir=place,
    )
    self.assertEqual(files_of(place), before)


class AttackTest(FolderTest):
  """Records while others write, remove or fill what is below them."""

  def test_two_runs_in_threads(self):
    """Each is what it is alone, its last state too."""
    asked = [config(**PLAIN, num_rounds=40, seed=seed) for seed in (1, 2)]
    ends = {}

    def run(one):
      ends[one.seed] = agsfl.simulate(
          one, workdir=self.folder / f"together{one.seed}", checkpoint_every=3
      )

    threads = [threading.Thread(target=run, args=(one,)) for one in asked]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    for one in asked:
      place = self.folder / f"alone{one.seed}"
      alone = agsfl.simulate(one, workdir=place)
      self.assertEqual(ends[one.seed].rows, alone.rows)
      np.testing.assert_array_equal(ends[one.seed].params, alone.params)
      self.assertEqual(
          state_of(self.folder / f"together{one.seed}"), state_of(place)
      )

  def test_two_runs_in_one_folder(self):
    """The second one is refused while the first goes on."""
    place = self.folder / "run"

    def on_row(row):
      if row["round"] == 3:
        self.refused({}, "another run is writing to this folder", workdir=place)

    run = agsfl.simulate(config(**PLAIN), workdir=place, on_row=on_row)
    self.assertEqual(rows_of(place), run.rows)

  @parameterized.product(every=(0, 3), keep_state=(True, False))
  def test_another_run_in_its_place(self, every, keep_state):
    """The first one ends in one line, and the second one's files stay."""
    place = self.folder / "run"
    other, files = config(**PLAIN, seed=7), {}

    def on_row(row):
      if row["round"] == 7:
        while every and not (place / "checkpoints" / "6").exists():
          time.sleep(0.01)  # its writer would make the folder anew
        shutil.rmtree(place)
        agsfl.simulate(other, workdir=place)
        files.update(files_of(place))

    self.refused(
        {}, "another program removed or replaced", workdir=place,
        checkpoint_every=every, keep_state=keep_state, on_row=on_row,
    )
    self.assertEqual(files_of(place), files)
    self.assertEqual(agsfl.read_run(place).rows, agsfl.simulate(other).rows)

  @parameterized.product(how=("removed", "replaced"), every=(0, 3))
  def test_a_folder_that_is_gone(self, how, every):
    """One line; what stands there now is not touched."""
    place = self.folder / "run"

    def on_row(row):
      if row["round"] == 7:
        place.rename(self.folder / "away")
        if how == "replaced":
          # A checkpoint that is being written may have made the folder anew.
          place.mkdir(exist_ok=True)
          (place / "metrics.jsonl").write_text("mine")

    self.refused(
        {},
        f"^--workdir={place}: another program removed or replaced this folder "
        "during the run$",
        workdir=place, checkpoint_every=every, on_row=on_row,
    )
    if how == "replaced":
      self.assertEqual((place / "metrics.jsonl").read_text(), "mine")
    self.assertFalse((place / "summary.json").exists())
    self.assertFalse((place / "params.npy").exists())

  @parameterized.parameters("row", "clients", "params", "summary")
  def test_a_full_disk(self, where):
    """One line wherever it comes; the run goes on when there is room."""
    place = self.folder / "run"
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fail(*arguments, **keywords):
      raise full

    target, name = {
        "row": (records.strict_json, "written"),
        "clients": (records.tables, "write_clients"),
        "params": (records.np, "save"),
        "summary": (records, "write_json"),
    }[where]
    patch = mock.patch.object(target, name, fail)

    def on_row(row):
      if row["round"] == 13:
        patch.start()

    self.addCleanup(patch.stop)
    self.refused(
        {},
        f"^--workdir={place}: must be a folder that can be written "
        r"\(No space left on device\)$",
        workdir=place, checkpoint_every=5, on_row=on_row,
    )
    self.assertFalse((place / "summary.json").exists())
    patch.stop()
    seen = []
    run = agsfl.simulate(config(**PLAIN), workdir=place, on_row=seen.append)
    self.assertEqual(seen[0]["round"], 11)
    self.assertEqual(run.rows, agsfl.simulate(config(**PLAIN)).rows)
    self.assertEqual(agsfl.read_run(place).rows, run.rows)

  @absltest.skipUnless(os.geteuid() == 0, "only root may mount")
  def test_a_disk_that_is_full_indeed(self):
    """400 kB hold a state and its successor, but no run of 200 rounds."""
    place = self.folder / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
      self.skipTest("mounts nothing")
    self.addCleanup(subprocess.run, ["umount", "-l", str(place)], check=True)
    for _ in range(2):
      with contextlib.redirect_stderr(io.StringIO()) as errors:
        self.refused(
            {"num_rounds": 200, "eval_every": 100},
            r"can be written \(No space left on device\)$",
            workdir=place / "run", checkpoint_every=20,
        )
      # TensorStore's threads print here.
      self.assertEqual(errors.getvalue(), "")


if __name__ == "__main__":
  absltest.main()
