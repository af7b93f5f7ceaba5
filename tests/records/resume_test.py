"""Runs that are stopped or killed, and go on; finished ones that grow."""

import atexit
import contextlib
import dataclasses
import functools
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import recorder, simulation
from agsfl.data.federated import fingerprint
from agsfl.errors import ConfigError, StoppedError
from agsfl.records.folder import RunFolder
from tests.small import (
  MANY,
  Killed,
  RoundRows,
  config,
  content_of,
  ends_of,
  files_of,
  kill_at,
  rows_of,
  state_of,
  stop_after,
  without_evaluation,
)

# State in every place: residuals, sparsifier, server, controller.
KINDS = {
    "sign_interval": {"method": "fab_top_k", "server_optimizer": "adam"},
    "sign": {"controller": "sign", "stuck_rounds": 2},
    "periodic": {
        "controller": "value", "rounds_per_call": 4,
    },
    "exp3": {"controller": "exp3", "exp3_arms": 5, "local_steps": 2},
    "bandit": {"controller": "bandit", "per_layer": True},
    "dense": {
        "method": "send_all", "server_optimizer": "momentum",
        "time_budget": 130.0,
    },
    # Draws random numbers in the network, and changes the images.
    "fedavg": {
        "method": "fedavg", "k": "20%", "local_optimizer": "adam",
        "model": "cnn_small_dropout", "augmentation": "crop_flip",
    },
}

# The cheapest to compile.
PLAIN = {"controller": "fixed"}


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def simulate(self, settings=None, *, below="run", **options):
    return agsfl.simulate(
        config(**(PLAIN if settings is None else settings)),
        workdir=self.folder / below,
        **options,
    )

  def stopped(self, rounds, settings=None, **options):
    with self.assertRaises(StoppedError):
      self.simulate(settings, **stop_after(rounds), **options)

  def refused(self, settings, *words, **options):
    """A refusal in one line, which leaves all files as they were."""
    before = files_of(self.folder / "run")
    with self.assertRaises(ConfigError) as caught:
      self.simulate(settings, **options)
    self.assertLen(str(caught.exception).splitlines(), 1)
    for word in words:
      self.assertIn(word, str(caught.exception))
    self.assertEqual(files_of(self.folder / "run"), before)


@functools.cache
def _killed_run():
  """The folder of a run with two checkpoints, and that run in one go."""
  folder = tempfile.mkdtemp()
  atexit.register(shutil.rmtree, folder, ignore_errors=True)
  asked = config(**PLAIN)
  with contextlib.suppress(Killed):
    agsfl.simulate(
        asked, workdir=folder, checkpoint_every=4, on_row=kill_at(13)
    )
  steps = [path.name for path in Path(folder, "checkpoints").iterdir()]
  assert sum(map(str.isdigit, steps)) >= 2, steps
  return Path(folder), agsfl.simulate(asked)


class StoppedTest(FolderTest):

  @parameterized.named_parameters(KINDS.items())
  def test_stopped_twice_is_as_in_one_go(self, settings):
    """Law: the files of a run do not depend on where it was stopped."""
    done = self.simulate(settings, below="whole")
    for rounds in (3, 4):
      self.stopped(rounds, settings)
      self.assertFalse((self.folder / "run" / "summary.json").exists())
    again = self.simulate(settings)
    whole, parts = self.folder / "whole", self.folder / "run"
    self.assertEqual(content_of(parts), content_of(whole))
    self.assertEqual(state_of(parts), state_of(whole))
    self.assertEqual((again.rows, again.clients), (done.rows, done.clients))

  def test_other_devices_go_on(self):
    """Padding of clients is not in a checkpoint: ten over 4 and 3 cores.

    Sums over devices are rounded otherwise.
    """
    done = agsfl.simulate(config(**PLAIN))
    self.stopped(5, {**PLAIN, "num_devices": 4})
    # The same run for all but the number of devices.
    path = self.folder / "run" / "config.json"
    held = json.loads(path.read_text())
    held["asked"]["num_devices"] = 3
    path.write_text(json.dumps(held))
    again = self.simulate({**PLAIN, "num_devices": 3})
    for row, other in zip(again.rows, done.rows, strict=True):
      self.assertIsNone(row.pop("sign"))
      for key, value in row.items():
        np.testing.assert_allclose(value, other[key], rtol=1e-3, err_msg=key)

  def test_a_finished_run_is_read(self):
    """With the results of the run that has no folder."""
    done, loose = self.simulate(), agsfl.simulate(config(**PLAIN))
    seen = []
    again = self.simulate(on_row=seen.append)
    self.assertEmpty(seen)
    for other in (loose, again):
      self.assertEqual((other.rows, other.clients), (done.rows, done.clients))
      np.testing.assert_array_equal(other.params, done.params)
    self.assertEqual(again.summary, done.summary)

  def test_a_run_of_before_data_seed_is_read(self):
    done = self.simulate()
    path = self.folder / "run" / "config.json"
    content = json.loads(path.read_text())
    for settings in (content, content["asked"]):
      self.assertIsNone(settings.pop("data_seed"))
    path.write_text(json.dumps(content))
    self.assertEqual(self.simulate().rows, done.rows)
    self.refused({**PLAIN, "data_seed": 5}, "data_seed=None, asked for 5")

  @parameterized.parameters((0, 1), (1, 8), (5, 6), (100, 1))
  def test_rows_since_the_checkpoint_are_repeated(self, every, first):
    """A run that was killed goes on from its newest saved state."""
    with self.assertRaises(Killed):
      self.simulate(checkpoint_every=every, on_row=kill_at(8))
    path = self.folder / "run" / "metrics.jsonl"
    self.assertLen(rows_of(path.parent), 8)
    with path.open("a") as file:
      file.write('{"round": 9, "ti')  # and half a row
    seen = []
    done = self.simulate(on_row=seen.append)
    # The first weights are evaluated where a run begins anew.
    first = first if first > 1 else 0
    self.assertEqual([row["round"] for row in seen], [*range(first, 15)])
    self.assertEqual(rows_of(path.parent), done.rows)
    self.assertEqual(done.rows, agsfl.simulate(config(**PLAIN)).rows)

  def test_stopped_without_saving_on_the_way(self):
    """A state is saved where a run stops, whatever else is saved."""
    options = {"checkpoint_every": 0, "keep_state": False}
    self.stopped(6, **options)
    seen = []
    done = self.simulate(on_row=seen.append, **options)
    self.assertEqual([row["round"] for row in seen], [*range(7, 15)])
    self.assertEqual(done.rows, agsfl.simulate(config(**PLAIN)).rows)
    self.assertFalse((self.folder / "run" / "checkpoints").exists())

  @parameterized.parameters(True, False)
  def test_other_settings_are_refused(self, finished):
    """With a list of what differs."""
    if finished:
      self.simulate()
    else:
      self.stopped(2)
    self.refused(
        {**PLAIN, "k": 30.0, "seed": 3},
        f"--workdir={self.folder / 'run'}: ",
        "(k=None, asked for 30; seed=0, asked for 3)",
    )

  @parameterized.parameters(True, False)
  def test_other_data_are_refused(self, finished):
    """The same settings, but another pixel of one image."""
    asked = config(**PLAIN)
    data = agsfl.load(asked.dataset, asked)
    if finished:
      self.simulate(data=data)
    else:
      self.stopped(2, data=data)
    features = data.clients.features.copy()
    features.flat[0] += 1
    other = data._replace(clients=data.clients.replace(features=features))
    self.refused(
        PLAIN,
        f"data={fingerprint(data)}, asked for {fingerprint(other)}",
        data=other,
    )

  def test_a_finished_run_of_a_file_that_changed(self):
    """Refused; several runs of the file read it once to see it."""
    path = self.folder / "set.npz"
    arrays = {
        "images": np.arange(8 * 9, dtype=np.uint8).reshape(8, 3, 3),
        "labels": np.arange(8) % 2,
        "is_train": np.arange(8) < 6,
    }
    np.savez(path, **arrays)
    settings = {
        **PLAIN, "dataset": f"npz:{path}", "num_clients": 2, "num_rounds": 1,
        "k": 9.0,
    }
    self.simulate(settings)
    fingerprint_of = simulation.data_fingerprints()
    asked = [config(**settings), config(**settings, num_devices=None)]
    with mock.patch.object(
        simulation, "load", side_effect=simulation.load
    ) as load:
      self.assertEqual(fingerprint_of(asked[0]), fingerprint_of(asked[1]))
      self.assertTrue(
          simulation.is_finished(asked[0], self.folder / "run", fingerprint_of)
      )
    load.assert_called_once()
    np.savez(path, **{**arrays, "images": arrays["images"] + 1})
    self.refused(settings, "data=", ", asked for ")
    with self.assertRaisesRegex(ConfigError, "data=.*, asked for"):
      simulation.is_finished(asked[0], self.folder / "run")

  def test_a_run_that_another_process_finished_is_read(self):
    """It looked before the other began, and begins after the other's end."""
    build = simulation.build_from

    def late(*arguments):
      with mock.patch.object(simulation, "build_from", build):
        self.simulate()
      return build(*arguments)

    seen = []
    with mock.patch.object(simulation, "build_from", late):
      run = self.simulate(on_row=seen.append)
    self.assertEmpty(seen)
    self.assertEqual(rows_of(self.folder / "run"), run.rows)
    self.assertLen(run.rows, 14)

  @parameterized.parameters((1, 9), (2, None))
  def test_damaged_checkpoints(self, count, begins):
    """The one before is used; where none can be read, it says so."""
    for rounds in (8, 3):
      self.stopped(rounds)
    for step in (8, 11)[-count:]:
      place = self.folder / "run" / "checkpoints" / str(step)
      for path in place.rglob("*"):
        if path.is_file():
          path.write_bytes(path.read_bytes()[:9])
    if begins is None:
      self.refused(PLAIN, "/checkpoints: no checkpoint in it can be read")
      return
    seen = []
    done = self.simulate(on_row=seen.append)
    self.assertEqual([row["round"] for row in seen], [*range(begins, 15)])
    self.assertEqual(done.rows, agsfl.simulate(config(**PLAIN)).rows)

  @hypothesis.settings(max_examples=1000 if MANY else 6)
  @hypothesis.given(st.data())
  def test_any_damage_of_checkpoints(self, data):
    """Law: the run goes on to the results of one go, or one line says why not.

    Whatever is cut, changed or removed of whichever files.
    """
    begun, whole = _killed_run()
    with tempfile.TemporaryDirectory() as folder:
      place = Path(folder) / "run"
      shutil.copytree(begun, place)
      files = sorted(
          path for path in (place / "checkpoints").rglob("*") if path.is_file()
      )
      for path in data.draw(st.lists(st.sampled_from(files), min_size=1)):
        if not path.exists():
          continue
        content = path.read_bytes()
        start = data.draw(st.integers(0, len(content)))
        match data.draw(st.sampled_from(("cut", "change", "remove", "folder"))):
          case "cut":
            path.write_bytes(content[:start])
          case "change":
            piece = data.draw(st.binary(min_size=1, max_size=9))
            after = content[start + len(piece) :]
            path.write_bytes(content[:start] + piece + after)
          case "remove":
            path.unlink()
          case "folder":
            shutil.rmtree(path.parent)
      try:
        run = agsfl.simulate(config(**PLAIN), workdir=place)
      except ConfigError as error:
        self.assertLen(str(error).splitlines(), 1)
        self.assertIn(str(place), str(error))
        return
      self.assertEqual(run.rows, whole.rows)
      np.testing.assert_array_equal(run.params, whole.params)

  @parameterized.product(
      name=("summary.json", "clients.csv"), keep_state=(True, False)
  )
  def test_the_way_out_of_a_damaged_end(self, name, keep_state):
    """Law: it is what the message says, and gives the files of before."""
    self.simulate(keep_state=keep_state)
    before = content_of(self.folder / "run")
    (self.folder / "run" / name).write_text("{}")
    self.refused(
        PLAIN, f"{name} is damaged", "; if you remove summary.json, the "
        "command of this run writes it again", keep_state=keep_state,
    )
    (self.folder / "run" / "summary.json").unlink()
    self.simulate(keep_state=keep_state)
    self.assertEqual(content_of(self.folder / "run"), before)

  def test_lost_rows_are_noticed(self):
    self.stopped(6)
    path = self.folder / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    self.refused(PLAIN, "6 rows ", "metrics.jsonl has lost some")

  @parameterized.parameters(
      ({"checkpoint_every": -1}, "--checkpoint_every=-1: must be at least 0"),
      ({"checkpoints_kept": 0}, "--checkpoints_kept=0: must be at least 1"),
  )
  def test_no_such_numbers_of_checkpoints(self, wrong, problem):
    with self.assertRaisesRegex(ConfigError, f"^{problem}$"):
      agsfl.simulate(config(), **wrong)

  @parameterized.parameters(1, 3)
  def test_the_newest_stay_while_it_runs(self, number):
    held = set()

    def look(row):
      place = self.folder / "run" / "checkpoints"
      if row["round"] == 14:
        names = (path.name for path in place.iterdir())
        held.update(int(name) for name in names if name.isdigit())

    self.simulate(checkpoint_every=2, checkpoints_kept=number, on_row=look)
    # The newest, 12, may still be on its way, and what it displaces be there.
    self.assertBetween(len(held), number, number + 1)
    self.assertLessEqual(held, set(range(12 - 2 * number, 13, 2)))


# A budget that is spent on the way, and one for the rest.
SHORT, LONG = 60.0, 150.0


class GrownTest(FolderTest):

  @parameterized.named_parameters(
      ("rounds", {}, {"num_rounds": 10}, {"num_rounds": 25}),
      (
          "budget", {}, {"num_rounds": 60, "time_budget": SHORT},
          {"num_rounds": 60, "time_budget": LONG},
      ),
      (
          "evaluations", {"server_optimizer": "adam"},
          {"num_rounds": 10, "eval_every": 3},
          {"num_rounds": 25, "eval_every": 4},
      ),
      (
          "periods", {"controller": "value"},
          {"num_rounds": 10}, {"num_rounds": 25},
      ),
  )
  def test_grown_is_as_in_one_go(self, settings, first, then):
    """Law: rows, weights, residuals and state are those of one go, bit for bit.

    Where the first part ended there is one more evaluation.
    """
    begun = self.simulate({**settings, **first})
    seen = RoundRows()
    grown = self.simulate({**settings, **then}, on_row=seen.append)
    whole = self.simulate({**settings, **then}, below="whole")
    self.assertEqual(seen, grown.rows[len(begun.rows) :])
    self.assertNotEmpty(seen)
    self.assertEqual(grown.rows[: len(begun.rows)], begun.rows)
    self.assertEqual(
        without_evaluation(grown.rows), without_evaluation(whole.rows)
    )
    self.assertEqual(seen, whole.rows[len(begun.rows) :])
    places = self.folder / "run", self.folder / "whole"
    self.assertEqual(*map(ends_of, places))
    self.assertEqual(*map(state_of, places))
    self.assertEqual(
        *(json.loads((x / "config.json").read_text()) for x in places)
    )
    self.assertEqual(agsfl.read_run(places[0]).rows, grown.rows)

  def test_killed_while_it_grows(self):
    """It goes on, and the run of before is not finished any more."""
    self.simulate({**PLAIN, "num_rounds": 10})
    longer = {**PLAIN, "num_rounds": 25}
    with self.assertRaises(Killed):
      self.simulate(longer, on_row=kill_at(17), checkpoint_every=6)
    self.assertFalse(agsfl.read_run(self.folder / "run").finished)
    seen = []
    grown = self.simulate(longer, on_row=seen.append)
    self.assertEqual(seen[0]["round"], 13)
    whole = self.simulate(longer, below="whole")
    self.assertEqual(
        without_evaluation(grown.rows), without_evaluation(whole.rows)
    )
    self.assertEqual(
        ends_of(self.folder / "run"), ends_of(self.folder / "whole")
    )

  @parameterized.named_parameters(
      ("files", RunFolder, "finish"), ("state", recorder.Recorder, "save")
  )
  def test_killed_at_the_end(self, kind, step):
    """Between the last row, the closing files and the last state."""
    method = getattr(kind, step)

    def killed(self, *arguments):
      if step == "finish" or isinstance(self.outcome, agsfl.Run):
        raise Killed
      method(self, *arguments)

    with mock.patch.object(kind, step, killed), self.assertRaises(Killed):
      self.simulate(checkpoint_every=5)
    self.assertLen(rows_of(self.folder / "run"), 14)
    self.simulate()
    self.simulate(below="whole")
    self.assertEqual(
        content_of(self.folder / "run"), content_of(self.folder / "whole")
    )
    # In both cases there is a state to go on from.
    grown = self.simulate({**PLAIN, "num_rounds": 16})
    self.assertLen(grown.rows, 16)

  @parameterized.parameters({"num_rounds": 8}, {"time_budget": 20.0})
  def test_stopped_and_then_asked_for_no_more(self, **extent):
    """It ends where it is, with an evaluation and all files."""
    settings = {**PLAIN, "k": 1000.0, "comm_time": 15.0}
    self.stopped(8, settings)
    now = {**settings, **extent}
    # 8 rounds of 1 + 15 x 1000 / 9610 units, 20.5 in all.
    done = self.simulate(now)
    self.assertLen(done.rows, 8)
    self.assertEqual(done.rows, agsfl.simulate(config(**now)).rows)
    self.assertEqual(agsfl.read_run(self.folder / "run").rows, done.rows)

  @parameterized.parameters("exp3", "bandit")
  def test_what_depends_on_the_number_of_rounds(self, controller):
    """Refused: its steps would have been others from the start."""
    settings = {"controller": controller, "num_rounds": 2, "exp3_arms": 5}
    self.simulate(settings)
    self.refused(
        {**settings, "num_rounds": 4},
        "num_rounds=2, asked for 4",
        "use another folder, or remove this one",
    )
    self.assertLen(self.simulate({**settings, "eval_every": 9}).rows, 2)

  @parameterized.parameters(True, False)
  def test_less_than_is_done(self, finished):
    if finished:
      self.simulate()
    else:
      self.stopped(11)
    done = 14 if finished else 11
    self.refused(
        {**PLAIN, "num_rounds": 5},
        f"--num_rounds=5: must be at least {done}, ",
        "or use another --workdir",
    )
    time = rows_of(self.folder / "run")[-2]["time"]
    self.refused(
        {**PLAIN, "time_budget": time}, "--time_budget=", f" than {time:g}, "
    )

  @parameterized.parameters(True, False)
  def test_no_state_to_go_on_from(self, removed):
    """Refused, for all rows would be lost; the run can still be read."""
    self.simulate(keep_state=removed)
    shutil.rmtree(self.folder / "run" / "checkpoints", ignore_errors=True)
    before = files_of(self.folder / "run")
    with self.assertRaises(ConfigError) as caught:
      self.simulate({**PLAIN, "num_rounds": 20})
    self.assertRegex(
        str(caught.exception),
        "^--workdir=.*/run: holds a finished run without its last state .*"
        "keep_state=False.*; use another folder, or remove this one$",
    )
    after = files_of(self.folder / "run")
    self.assertEqual({name: after[name] for name in before}, before)
    self.assertLen(self.simulate().rows, 14)

  def test_a_damaged_state(self):
    """A finished run stays one where it cannot go on."""
    self.simulate()
    for path in (self.folder / "run" / "checkpoints").rglob("*"):
      if path.is_file():
        path.write_bytes(b"")
    self.refused({**PLAIN, "num_rounds": 20}, "no checkpoint in it can be read")
    self.assertTrue(agsfl.read_run(self.folder / "run").finished)

  def test_a_time_that_float32_rounds(self):
    """A round of 1 + 6.6 units spends a budget of 7.6, below it in float32."""
    settings = {
        "method": "send_all", "comm_time": 6.6, "time_budget": 7.6,
        "num_rounds": 3,
    }
    (row,) = self.simulate(settings).rows
    self.assertLess(row["time"], 7.6)
    seen = []
    self.simulate(settings, on_row=seen.append)
    self.assertEmpty(seen)

  def test_the_size_of_a_state(self):
    """Residuals and weights, 4 (N + 1) D bytes, are all that counts."""
    run = self.simulate({})
    size = sum(
        path.stat().st_size
        for path in (self.folder / "run" / "checkpoints").rglob("*")
        if path.is_file()
    )
    full = 4 * (10 + 1) * run.config["num_weights"]
    self.assertBetween(size, full / 4, full)


EVERY = 25
KILLS = 20 if MANY else 3


class KilledTest(absltest.TestCase):

  def test_killed_at_any_moment(self):
    """Law: after some deaths by SIGKILL the files are those of one life.

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
      lost = json.loads(result.stdout.splitlines()[-1])
      runs = sorted(Path(folder).glob("run*"))
      want = content_of(Path(folder) / "whole")
      for run in runs:
        self.assertEqual(content_of(run), want)
    self.assertLen(lost, KILLS)
    # The next save waits for the one before, after its round's row is written.
    self.assertLessEqual(max(lost), 2 * EVERY)


def killed_config():
  """A run of a few seconds, for `KilledTest`."""
  return dataclasses.replace(
      config(**PLAIN), num_rounds=400, eval_every=200
  )


# It imports but once: each life is a fork, in which alone JAX starts, and a
# process of its own that ends by itself or by force.
_PROGRAM = f"""
import json, os, random, signal, sys, time
import orbax.checkpoint
import agsfl
from tests.records.resume_test import killed_config
from jax._src import xla_bridge

folder = sys.argv[1]

def live(name):
  assert not xla_bridge.backends_are_initialized()
  child = os.fork()
  if not child:
    try:
      agsfl.simulate(
          killed_config(), workdir=folder + "/" + name,
          checkpoint_every={EVERY},
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
lost, name = [], "run0"
while len(lost) < {KILLS}:
  child = live(name)
  wait_for_a_row(name, rows(name))
  time.sleep(rng.uniform(0, 0.6))
  os.kill(child, signal.SIGKILL)
  if os.waitpid(child, 0)[1] == 0:  # it was quicker
    name = name + "0"
    continue
  finished = os.path.exists(folder + "/" + name + "/summary.json")
  lost.append(0 if finished else rows(name) - checkpoint(name))
assert os.waitpid(live(name), 0)[1] == 0
print(json.dumps(lost))
"""


if __name__ == "__main__":
  absltest.main()
