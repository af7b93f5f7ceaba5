"""Runs that are stopped or killed, and taken up again."""

import dataclasses
import functools
import json
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
from absl.testing import absltest, parameterized

import agsfl
from agsfl import runs
from agsfl.config import Config
from agsfl.errors import ConfigError, StoppedError
from agsfl.records import checkpoints
from agsfl.records import folder as records

# A tiny run with state in every place: residuals, sparsifier, server,
# controller.
CASES = {
    "sign_interval": dict(server_optimizer="adam"),
    "periodic": dict(
        method="periodic_k", controller="value", rounds_per_call=4
    ),
    "exp3": dict(controller="exp3", exp3_arms=5, local_steps=2),
    "bandit": dict(
        method="unidirectional_top_k", controller="bandit", per_layer=True
    ),
    "dense": dict(
        method="send_all", server_optimizer="momentum", time_budget=130.0
    ),
}


def config(**settings):
  return Config(
      dataset="digits",
      model="mlp",
      num_clients=10,
      batch_size=4,
      num_rounds=14,
      eval_every=5,
      **settings,
  )


def stop_after(rounds):
  """Says so when that many rows have been seen."""
  seen = []
  return {"on_row": seen.append, "should_stop": lambda: len(seen) >= rounds}


def content(workdir):
  """What must be the same, bit for bit."""
  workdir = Path(workdir)
  summary = records.read_summary(workdir)
  return {
      **{
          name: (workdir / name).read_bytes()
          for name in ("metrics.jsonl", "clients.csv", "params.npy")
      },
      "summary": {
          name: value
          for name, value in summary.items()
          if not name.endswith(("_seconds", "_mb"))
      },
      "config": json.loads((workdir / "config.json").read_text()),
  }


class StoppedTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  @parameterized.named_parameters(CASES.items())
  def test_stopped_twice_is_as_in_one_go(self, settings):
    """Law: the files of a run do not depend on where it was stopped."""
    whole, parts = self.folder / "whole", self.folder / "parts"
    asked = config(**settings)
    done = agsfl.simulate(asked, workdir=whole)
    for rounds in (3, 4):
      with self.assertRaises(StoppedError):
        agsfl.simulate(asked, workdir=parts, **stop_after(rounds))
      self.assertFalse((parts / "summary.json").exists())
    again = agsfl.simulate(asked, workdir=parts)
    self.assertEqual(content(parts), content(whole))
    self.assertEqual(again.rows, done.rows)
    self.assertEqual(again.clients, done.clients)
    self.assertFalse((parts / "checkpoints").exists())

  def test_other_devices_take_it_up(self):
    """Padding of clients is not in a checkpoint: ten over 4 and 3 cores.

    Sums over devices are rounded otherwise; what is chosen is not close.
    """
    done = agsfl.simulate(config())
    for devices, rounds in ((4, 5), (3, None)):
      stop = {} if rounds is None else stop_after(rounds)
      asked = config(num_devices=devices)
      try:
        again = agsfl.simulate(asked, workdir=self.folder / "run", **stop)
      except StoppedError:
        # The same run for all but the number of devices.
        path = self.folder / "run" / "config.json"
        held = json.loads(path.read_text())
        held["asked"]["num_devices"] = 3
        path.write_text(json.dumps(held))
    for row, other in zip(again.rows, done.rows, strict=True):
      for key, value in row.items():
        np.testing.assert_allclose(value, other[key], rtol=1e-3, err_msg=key)

  def test_a_finished_run_is_read(self):
    asked = config()
    done = agsfl.simulate(asked, workdir=self.folder)
    loose = agsfl.simulate(asked)
    self.assertEqual(loose.rows, done.rows)
    np.testing.assert_array_equal(loose.params, done.params)
    seen = []
    again = agsfl.simulate(asked, workdir=self.folder, on_row=seen.append)
    self.assertEmpty(seen)
    self.assertEqual(again.rows, done.rows)
    self.assertEqual(again.summary, done.summary)
    self.assertEqual(again.clients, done.clients)
    np.testing.assert_array_equal(again.params, done.params)

  @parameterized.parameters(0, 1, 5, 100)
  def test_rows_since_the_checkpoint_are_repeated(self, every):
    """A run that ends by force is continued from its newest checkpoint."""

    class Killed(Exception):
      pass

    def kill(row):
      if row["round"] == 8:
        raise Killed

    asked = config()
    with self.assertRaises(Killed):
      agsfl.simulate(
          asked, workdir=self.folder, checkpoint_every=every, on_row=kill
      )
    self.assertLen(records.read_rows(self.folder), 8)
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"round": 9, "ti')  # and half a row
    seen = []
    done = agsfl.simulate(asked, workdir=self.folder, on_row=seen.append)
    want = {0: 1, 1: 8, 5: 6, 100: 1}[every]
    self.assertEqual([row["round"] for row in seen], [*range(want, 15)])
    self.assertEqual(records.read_rows(self.folder), done.rows)
    self.assertEqual(done.rows, agsfl.simulate(asked).rows)

  @parameterized.parameters(True, False)
  def test_other_settings_are_refused(self, finished):
    """With a list of what differs; the folder stays as it was."""
    stop = {} if finished else stop_after(2)
    try:
      agsfl.simulate(config(), workdir=self.folder, **stop)
    except StoppedError:
      self.assertFalse(finished)
    before = {
        path: path.read_bytes()
        for path in self.folder.rglob("*")
        if path.is_file()
    }
    with self.assertRaises(ConfigError) as caught:
      agsfl.simulate(config(k=30.0, seed=3), workdir=self.folder)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--workdir={self.folder}: ")
    self.assertIn("k=1000.0, asked for 30.0; seed=0, asked for 3", problem)
    self.assertNotIn("\n", problem)
    after = {
        path: path.read_bytes()
        for path in self.folder.rglob("*")
        if path.is_file()
    }
    self.assertEqual(after, before)

  @parameterized.parameters(True, False)
  def test_other_data_are_refused(self, finished):
    """The same settings, but another image of the same shape."""
    asked = config()
    data = agsfl.load(asked.dataset, asked.as_partition())
    stop = {} if finished else stop_after(2)
    try:
      agsfl.simulate(asked, workdir=self.folder, data=data, **stop)
    except StoppedError:
      self.assertFalse(finished)
    images = data.clients.images.copy()
    images[0, 0, 0] += 1
    other = data._replace(clients=data.clients.replace(images=images))
    with self.assertRaisesRegex(ConfigError, "it has data="):
      agsfl.simulate(asked, workdir=self.folder, data=other)

  def test_a_finished_run_of_a_file_that_changed(self):
    """Refused; runs that share data load them once to see it."""
    path = self.folder / "set.npz"
    arrays = {
        "images": np.arange(8 * 9, dtype=np.uint8).reshape(8, 3, 3),
        "labels": np.arange(8) % 2,
        "is_train": np.arange(8) < 6,
    }
    np.savez(path, **arrays)
    asked = Config(
        dataset=f"npz:{path}", num_clients=2, model="mlp", num_rounds=1, k=9.0
    )
    workdir = self.folder / "run"
    done = agsfl.simulate(asked, workdir=workdir)
    self.assertEqual(agsfl.simulate(asked, workdir=workdir).rows, done.rows)
    told = functools.cache(mock.Mock(wraps=runs.fingerprint_of))
    for _ in range(3):
      self.assertTrue(runs.is_finished(asked, workdir, told))
    told.__wrapped__.assert_called_once()
    np.savez(path, **{**arrays, "images": arrays["images"] + 1})
    with self.assertRaisesRegex(ConfigError, "it has data=.*, asked for"):
      agsfl.simulate(asked, workdir=workdir)

  def test_a_run_that_another_process_finished_is_read(self):
    """It looked before the other began, and begins after the other's end."""
    asked, build = config(), agsfl.simulation.build

    def late(*arguments):
      with mock.patch.object(agsfl.simulation, "build", build):
        agsfl.simulate(asked, workdir=self.folder)
      return build(*arguments)

    seen = []
    with mock.patch.object(agsfl.simulation, "build", late):
      run = agsfl.simulate(asked, workdir=self.folder, on_row=seen.append)
    self.assertEmpty(seen)
    self.assertLen(run.rows, 14)
    self.assertEqual(records.read_rows(self.folder), run.rows)

  def test_a_finished_run_without_a_file(self):
    agsfl.simulate(config(), workdir=self.folder)
    (self.folder / "params.npy").unlink()
    with self.assertRaisesRegex(ConfigError, "all files .*params.npy"):
      agsfl.simulate(config(), workdir=self.folder)

  def test_a_call_ends_where_a_checkpoint_is_due(self):
    """However many rounds a call may have."""
    asked = config(rounds_per_call=14)
    asked = dataclasses.replace(asked, eval_every=14)
    with self.assertRaisesRegex(StoppedError, "round 3: "):
      agsfl.simulate(
          asked, workdir=self.folder, checkpoint_every=3, **stop_after(1)
      )
    self.assertTrue((self.folder / "checkpoints" / "3").exists())

  @parameterized.parameters((1, 9), (2, None))
  def test_damaged_checkpoints(self, count, begins):
    """The one before is used; where none can be read, it says so."""
    for rounds in (8, 3):
      with self.assertRaises(StoppedError):
        agsfl.simulate(config(), workdir=self.folder, **stop_after(rounds))
    for step in (8, 11)[-count:]:
      for path in (self.folder / "checkpoints" / str(step)).rglob("*"):
        if path.is_file():
          path.write_bytes(path.read_bytes()[:9])
    seen = []
    again = lambda: agsfl.simulate(
        config(), workdir=self.folder, on_row=seen.append
    )
    if begins is None:
      with self.assertRaisesRegex(ConfigError, "/checkpoints: must hold"):
        again()
      return
    again()
    self.assertEqual([row["round"] for row in seen], [*range(begins, 15)])
    self.assertEqual(
        records.read_rows(self.folder), agsfl.simulate(config()).rows
    )

  @parameterized.parameters("emptied", "no default", "empty newest")
  def test_a_checkpoint_without_its_files(self, damage):
    """The one before is used, as where files of it are damaged."""
    place, tree = self.folder / "checkpoints", {"x": np.arange(9.0)}
    with checkpoints.open_folder(place, 2) as manager:
      for step in (8, 11):
        checkpoints.save(manager, step, tree)
    if damage == "empty newest":
      (place / "999").mkdir()
    else:
      shutil.rmtree(place / "11" / "default")
    if damage == "emptied":
      shutil.rmtree(place / "11")
      (place / "11").mkdir()
    with checkpoints.open_folder(place, 2) as manager:
      step, held = checkpoints.restore(manager, tree)
      self.assertEqual(step, 11 if damage == "empty newest" else 8)
      self.assertEqual(manager.latest_step(), step)
    np.testing.assert_array_equal(held["x"], tree["x"])

  def test_a_flipped_bit(self):
    """Law: wherever it is, what is restored was saved."""
    place = self.folder / "checkpoints"
    tree = lambda step: {
        "x": np.random.default_rng(step).random(999), "y": np.float32([[step]])
    }
    with checkpoints.open_folder(place, 2) as manager:
      for step in (8, 11):
        checkpoints.save(manager, step, tree(step))
    largest = max(
        (place / "11").rglob("*"), key=lambda path: path.stat().st_size
    )
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 4
    largest.write_bytes(content)
    with checkpoints.open_folder(place, 2) as manager:
      step, held = checkpoints.restore(manager, tree(0))
    self.assertEqual(step, 8)
    np.testing.assert_equal(held, tree(8))

  def test_checkpoints_that_cannot_be_written(self):
    """By their folder, and by a save while the run goes on."""
    place = self.folder / "checkpoints"
    problem = f"^{place}: must be a folder that can be written "
    full = ValueError("RESOURCE_EXHAUSTED: No space left on device")
    with mock.patch.object(
        checkpoints.ocp.CheckpointManager, "save", side_effect=full
    ):
      with self.assertRaisesRegex(ConfigError, problem + r"\(RESOURCE_EX"):
        agsfl.simulate(config(), workdir=self.folder, checkpoint_every=3)
    shutil.rmtree(place)
    place.write_text("a file")
    with self.assertRaisesRegex(ConfigError, problem):
      agsfl.simulate(config(), workdir=self.folder)

  def test_lost_rows_are_noticed(self):
    with self.assertRaises(StoppedError):
      agsfl.simulate(config(), workdir=self.folder, **stop_after(6))
    path = self.folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    with self.assertRaisesRegex(ConfigError, "6 rows .* lost"):
      agsfl.simulate(config(), workdir=self.folder)

  @parameterized.parameters(
      ({"checkpoint_every": -1}, "--checkpoint_every=-1: must be at least 0"),
      ({"checkpoints_kept": 0}, "--checkpoints_kept=0: must be at least 1"),
  )
  def test_no_such_numbers_of_checkpoints(self, wrong, problem):
    with self.assertRaisesRegex(ConfigError, f"^{problem}$"):
      agsfl.simulate(config(), **wrong)

  @parameterized.parameters(1, 3)
  def test_the_newest_are_kept(self, kept):
    held = set()

    def look(row):
      place = self.folder / "checkpoints"
      if row["round"] == 14:
        names = (path.name for path in place.iterdir())
        held.update(int(name) for name in names if name.isdigit())

    agsfl.simulate(
        config(),
        workdir=self.folder,
        checkpoint_every=2,
        checkpoints_kept=kept,
        on_row=look,
    )
    # The newest, 12, may still be on its way, and what it displaces be there.
    self.assertBetween(len(held), kept, kept + 1)
    self.assertLessEqual(held, set(range(12 - 2 * kept, 13, 2)))


class KilledTest(absltest.TestCase):

  def test_killed_at_any_moment(self):
    """Law: after 20 deaths by SIGKILL the files are those of one life.

    Each loses at most the rounds since the newest checkpoint, or the one
    before it where that was being written.
    """
    with tempfile.TemporaryDirectory() as folder:
      result = subprocess.run(
          [sys.executable, "-c", _PROGRAM, folder],
          capture_output=True,
          text=True,
          cwd=Path(__file__).resolve().parents[2],
          check=False,
      )
      self.assertEqual(result.returncode, 0, result.stderr)
      told = json.loads(result.stdout.splitlines()[-1])
      runs = [Path(folder) / name for name in told["runs"]]
      want = content(Path(folder) / "whole")
      for run in runs:
        self.assertEqual(content(run), want)
    self.assertLen(told["lost"], 20)
    # Deaths came at all times: some with much done, some with little.
    self.assertGreater(len(set(told["at"])), 5)
    # The next save waits for the one before, after its round's row is written.
    self.assertLessEqual(max(told["lost"]), 2 * EVERY)


class SignalTest(absltest.TestCase):

  def test_ctrl_c_says_how_to_go_on(self):
    """Exit code 130 and a command, which finishes the run.

    The folder is one of its own choice.
    """
    with tempfile.TemporaryDirectory() as folder:
      # Someone's word with a blank in it, to be quoted.
      (Path(folder) / "my run.flags").write_text("--eval_every=100")
      arguments = (
          "--dataset=digits", "--model=mlp", "--num_clients=10",
          "--num_rounds=200", "--flagfile=my run.flags",
      )
      start = lambda command: subprocess.Popen(
          command,
          stdout=subprocess.PIPE,
          stderr=subprocess.PIPE,
          text=True,
          cwd=folder,
          env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
      )
      process = start([sys.executable, "-m", "experiments.run", *arguments])
      end = time.monotonic() + 120
      found = lambda: [*Path(folder).glob("runs/*/metrics.jsonl")]
      while not any(file.read_bytes().count(b"\n") > 5 for file in found()):
        self.assertLess(time.monotonic(), end)
        time.sleep(0.05)
      (workdir,) = (file.parent for file in found())
      process.send_signal(signal.SIGINT)
      _, told = process.communicate()
      self.assertEqual(process.returncode, 130, told)
      self.assertNotIn("Traceback", told)
      *_, last = told.splitlines()
      done = len(records.read_rows(workdir))
      self.assertEqual(
          last,
          f"round {done}: stopped; to go on: python -m experiments.run "
          + shlex.join([*arguments, f"--workdir=runs/{workdir.name}"]),
      )
      self.assertTrue((workdir / "checkpoints" / str(done)).exists())
      _, _, again = last.partition("to go on: python ")
      process = start([sys.executable, *shlex.split(again)])
      shown, told = process.communicate()
      self.assertEqual(process.returncode, 0, told)
      self.assertLen(records.read_rows(workdir), 200)
      # The table of the whole run, of both parts.
      self.assertIn("\n  100  ", shown)
      # Lines in the log, as standard error is no terminal.
      self.assertRegex(told, r"round 200, time .* round/s, 00:00 left")


EVERY = 25
# It imports but once: each life is a fork, in which alone JAX starts, and a
# process of its own that ends by itself or by force.
_PROGRAM = f"""
import json, os, random, signal, sys, time
import orbax.checkpoint
import agsfl
from tests.records.resume_test import config
from jax._src import xla_bridge

EVERY = {EVERY}
folder = sys.argv[1]
asked = config(method="periodic_k", controller="fixed", num_devices=1)
asked = agsfl.Config(**dict(vars(asked), num_rounds=900, eval_every=300))

def live(name):
  assert not xla_bridge.backends_are_initialized()
  child = os.fork()
  if not child:
    try:
      agsfl.simulate(
          asked, workdir=folder + "/" + name, checkpoint_every=EVERY
      )
    except BaseException as error:
      print(repr(error), file=sys.stderr, flush=True)
      os._exit(1)
    os._exit(0)
  return child

def rows(name):
  try:
    with open(folder + "/" + name + "/metrics.jsonl") as file:
      return sum(line.endswith(chr(10)) for line in file)
  except FileNotFoundError:
    return 0

def checkpoint(name):
  try:
    steps = os.listdir(folder + "/" + name + "/checkpoints")
  except FileNotFoundError:
    return 0
  return max([int(step) for step in steps if step.isdigit()], default=0)

def wait_for_a_row(name, before):
  # A life begins by dropping what its checkpoint does not stand for.
  end = time.time() + 60
  while time.time() < end:
    now = rows(name)
    if now != before:
      before = min(now, before)
    if now > before:
      return
    time.sleep(0.005)
  raise AssertionError("no row came in a minute")

assert os.waitpid(live("whole"), 0)[1] == 0
rng = random.Random(0)
lost, at, runs = [], [], ["run0"]
while len(lost) < 20:
  child = live(runs[-1])
  early = rng.random() < 0.3
  if not early:
    wait_for_a_row(runs[-1], rows(runs[-1]))
  time.sleep(rng.uniform(0, 2.0 if early else 0.6))
  os.kill(child, signal.SIGKILL)
  if os.waitpid(child, 0)[1] == 0:  # it was quicker
    runs.append("run" + str(len(runs)))
    continue
  at.append(rows(runs[-1]))
  finished = os.path.exists(folder + "/" + runs[-1] + "/summary.json")
  lost.append(0 if finished else at[-1] - checkpoint(runs[-1]))
assert os.waitpid(live(runs[-1]), 0)[1] == 0
print(json.dumps(dict(runs=runs, lost=lost, at=at)))
"""


if __name__ == "__main__":
  absltest.main()
