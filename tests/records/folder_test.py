"""The folder of a run: who may use it, and what a disk or a stranger does."""

import json
import os
import resource
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.errors import ConfigError
from agsfl.records import client_evaluations, read
from agsfl.records import folder as records
from tests.small import files_of, rows_of

_FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def description(data="a", **others):
  """What config.json needs."""
  return {
      "method": "mine", "controller": "fixed", "num_rounds": 3,
      "eval_every": 5, "num_weights": 2, "num_clients_used": 2, "data": data,
      **others,
  }


def row(number, **others):
  """A row of a round, as it is read back."""
  evaluation = {"train_loss": 0.5, "test_loss": 0.1, "test_accuracy": None}
  return {
      "round": number, "time": 2.5 * number, "k": 1.5, "k_probe": 1.0,
      "k_up": 1, "k_down": 2, "minibatch_loss": None, "sign": None,
      **evaluation, **others,
  }


CLIENTS = {
    "client": ["a", "b"], "samples": [3, 4], "test_samples": [1, 0],
    "test_loss": [0.5, float("nan")], "test_accuracy": [1.0, float("nan")],
    "rounds": [3, 0], "contributed": [3, 0],
}


START = {
    "round": 0, "time": 0.0, "train_loss": 2.0, "test_loss": 2.5,
    "test_accuracy": 0.125,
}


def evaluation(number):
  """Each client's numbers after a round."""
  return client_evaluations.record(number, SimpleNamespace(**{
      f"client_{name}": np.array(CLIENTS[name])
      for name in ("test_loss", "test_accuracy")
  }))


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def of(self, *below, extent=(3, None), **identity):
    """The folder of a run, looked at."""
    place = self.folder.joinpath(*below)
    return records.RunFolder(place, identity, records.Extent(*extent))

  def write(self, *below, count=3, finished=True, start=None, **identity):
    """A run of some rows."""
    with self.of(*below, **identity) as files:
      files.begin(description())
      files.go_on(0)
      if start is not None:
        files.row(start, evaluation(0))
      for number in range(1, count + 1):
        files.row(row(number), evaluation(number))
      if finished:
        files.finish(row(count), CLIENTS, np.float32([0.5, 1e-30]))

  def refused(self, act, *words, place=None):
    """A refusal in one line, that leaves all files as they were."""
    before = files_of(self.folder)
    with self.assertRaises(ConfigError) as caught:
      act()
    self.assertLen(str(caught.exception).splitlines(), 1)
    for word in (str(place or self.folder), *words):
      self.assertIn(word, str(caught.exception))
    self.assertEqual(files_of(self.folder), before)

  def test_config_is_there_from_the_start(self):
    """In a folder made with its parents, before any round."""
    config = description(k_min=None, versions={"jax": "1"}, name="é")
    with self.of("a", "b", k=1) as files:
      files.begin(config)
      self.assertEqual(
          set(files_of(self.folder)), {"a/b/config.json", "a/b/metrics.jsonl"}
      )
    text = (self.folder / "a" / "b" / "config.json").read_text()
    asked = {
        "k": 1, "num_rounds": 3, "time_budget": None, "seconds_budget": None,
        "eval_every": 5,
    }
    self.assertEqual(json.loads(text), {**config, "asked": asked})

  def test_a_look_writes_nothing(self):
    self.assertFalse(self.of("run").finished)
    self.assertFalse((self.folder / "run").exists())

  def test_other_files_may_be_there(self):
    (self.folder / "notes.txt").write_text("mine")
    (self.folder / "metrics.jsonl").touch()  # of a run killed at its start
    self.write()
    self.assertEqual(files_of(self.folder)["notes.txt"], b"mine")
    self.assertLen(rows_of(self.folder), 3)

  @parameterized.parameters(True, False)
  def test_other_settings_are_refused(self, finished):
    """With each that differs, be it on one side only."""
    self.write(finished=finished, seed=1, k=2, loss="custom:mine")
    self.refused(
        lambda: self.of(seed=2, k=2, model="custom:net"),
        "(loss=custom:mine, asked for None; model=None, asked for custom:net; "
        "seed=1, asked for 2)",
    )
    same = self.of(seed=1, k=2, loss="custom:mine")
    self.assertEqual(same.finished, finished)

  def test_the_extent_may_be_part_of_the_identity(self):
    self.write(num_rounds=3)
    self.refused(lambda: self.of(num_rounds=4), "num_rounds=3, asked for 4")

  @parameterized.parameters("{}", "[]", "", "text", '{"asked"')
  def test_what_is_no_run_is_refused(self, text):
    (self.folder / "config.json").write_text(text)
    self.refused(self.of, "config.json")

  def evaluated(self):
    """The rounds in client_evaluations.npy, read by NumPy's own means."""
    return np.load(self.folder / "client_evaluations.npy")["round"].tolist()

  @parameterized.parameters(
      "metrics.jsonl", "client_evaluations.npy", "clients.csv", "params.npy",
      "summary.json", "figures", "checkpoints",
  )
  def test_files_that_a_run_makes_are_refused(self, name):
    """A file or a folder of that name, of something else."""
    for make in (lambda path: path.write_text("mine"), Path.mkdir):
      make(self.folder / name)
      self.refused(self.of, f"has {name}")
      path = self.folder / name
      path.rmdir() if path.is_dir() else path.unlink()

  def test_looks_again_once_it_has_the_folder(self):
    """All looked while it was empty; the first to begin says what it holds."""
    first, other, same = (self.of(k=k) for k in (1, 2, 1))
    with first:
      first.begin(description())
      self.refused(
          lambda: other.begin(description()), "another run is writing to this"
      )
    self.write(k=1)
    self.refused(lambda: other.begin(description()), "k=1, asked for 2")
    self.refused(
        lambda: same.begin(description("b")), "data=a, asked for b"
    )
    with same:
      same.begin(description())
      self.assertTrue(same.finished)

  def test_a_path_that_is_no_text(self):
    """Its bytes are not UTF-8; checkpoints cannot be written there."""
    problem = r"--workdir=.*a\\udcff: must be text in UTF-8"
    with self.assertRaisesRegex(ConfigError, problem):
      self.of("a\udcff")

  def test_a_refused_one_lets_go(self):
    self.write(finished=False)
    self.refused(lambda: self.of().begin(description("b")), "data=")
    with self.of() as files:
      files.begin(description())

  @parameterized.parameters("file", "file/below", "file/far/below", "x" * 300)
  def test_what_cannot_be_a_folder(self, name):
    (self.folder / "file").write_text("text")
    self.refused(
        lambda: self.of(name).begin(description()),
        "must be a folder that can be written",
        place=self.folder / name,
    )

  @parameterized.parameters(
      ((2, None), "--num_rounds=2: must be at least 3, because the run in"),
      ((3, 5.0), "--time_budget=5: must be more than 5, because the run in"),
  )
  def test_less_than_is_done(self, extent, problem):
    """At 2.5 units a round, the third round begins at 5."""
    self.write()
    self.refused(lambda: self.of(extent=extent).finished, problem)
    (self.folder / "summary.json").unlink()
    with self.of(extent=extent) as files:
      files.begin(description())
      self.refused(lambda: files.go_on(3), problem)

  @parameterized.parameters(
      ((3, None), True), ((3, 5.1), True), ((9, 7.5), True),
      ((4, None), False), ((9, 7.6), False), ((9, None), False),
  )
  def test_finished(self, extent, finished):
    """Three rounds of 2.5 units each are as far as asked for, or not."""
    self.write()
    self.assertEqual(self.of(extent=extent).finished, finished)

  def test_no_state_of_a_finished_run(self):
    """Its rows are never dropped; those of an unfinished one are."""
    self.write()
    with self.of(extent=(9, None)) as files:
      files.begin(description())
      self.refused(lambda: files.go_on(0), "without its last state")
    self.assertTrue(read.read_run(self.folder).finished)
    (self.folder / "summary.json").unlink()
    with self.of(extent=(9, None)) as files:
      files.begin(description())
      self.assertEqual(files.go_on(0), (None, []))
    self.assertEqual(rows_of(self.folder), [])

  @parameterized.product(count=(1, 2, 3), start=(START, None))
  def test_going_on(self, count, start):
    """Law: the first rows stay, byte for byte, and others follow them.

    So do their evaluations, of which the last one was not written whole. Runs
    of earlier versions have no row of round 0.
    """
    self.write(start=start)
    before = (self.folder / "metrics.jsonl").read_text().splitlines()
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"rou')  # torn
    with (self.folder / "client_evaluations.npy").open("ab") as file:
      file.write(b"\7" * 5)
    (self.folder / "summary.json").unlink()
    with self.of(extent=(9, None)) as files:
      files.begin(description(num_rounds=9))
      self.assertEqual(
          files.go_on(count), (start, [row(i) for i in range(1, count + 1)])
      )
      first = 0 if start else 1
      self.assertEqual(self.evaluated(), [*range(first, count + 1)])
      files.row(row(count + 1, own=7), evaluation(count + 1))
    self.assertEqual(self.evaluated(), [*range(first, count + 2)])
    *stay, last = (self.folder / "metrics.jsonl").read_text().splitlines()
    self.assertEqual(stay, before[: count + 1 - first])
    self.assertEqual(json.loads(last), row(count + 1, own=7))
    self.assertEqual(read.read_config(self.folder)["asked"]["num_rounds"], 9)

  def test_a_last_row_with_more_columns(self):
    """The rows before it stay, byte for byte, and its evaluation counts once.
    """
    self.write(finished=False)
    before = (self.folder / "metrics.jsonl").read_text().splitlines()
    with self.of() as files:
      files.begin(description())
      files.go_on(3)
      files.replace_last(row(3, own=0.25), evaluation(3))
    self.assertEqual(self.evaluated(), [1, 2, 3])
    *first, last = (self.folder / "metrics.jsonl").read_text().splitlines()
    self.assertEqual(first, before[:2])
    self.assertEqual(json.loads(last), row(3, own=0.25))

  def test_rows_that_are_lost(self):
    self.write(count=1, finished=False)
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write(json.dumps(row(2)))  # without its end
    with self.of() as files:
      files.begin(description())
      self.refused(lambda: files.go_on(2), "2 rows before its checkpoint")

  @parameterized.parameters("gone", "cut", "of other rounds")
  def test_evaluations_that_are_lost(self, how):
    """Refused in one line; all files stay."""
    self.write(finished=False)
    path = self.folder / "client_evaluations.npy"
    if how == "gone":
      path.unlink()
    elif how == "cut":
      path.write_bytes(path.read_bytes()[:-9])
    else:
      np.save(path, np.stack([evaluation(i) for i in (1, 2, 4)]))
    with self.of() as files:
      files.begin(description())
      self.refused(lambda: files.go_on(3), "client_evaluations.npy")

  @parameterized.parameters(
      b'{"round": 2', b"\0\0\0", b"\xff{}", b"", b"{}", b"[" * 10**5,
      # Twice the same row, another round's row, and rows that cannot follow.
      *(
          json.dumps(one).encode()
          for one in (
              row(1), row(3), row(2.0), row(2, time=2.0), row(2, k_up=3),
          )
      ),
  )
  def test_rows_that_are_damaged(self, damaged):
    self.write(finished=False)
    path = self.folder / "metrics.jsonl"
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damaged, lines[2], b""]))
    with self.of() as files:
      files.begin(description())
      self.refused(lambda: files.go_on(3), "metrics.jsonl, line 2")

  @absltest.skipUnless(Path("/dev/full").exists(), "no Linux")
  def test_a_full_disk(self):
    """Named by what writes; the folder is let go of nevertheless."""
    self.write(finished=False)
    (self.folder / "metrics.jsonl").unlink()
    (self.folder / "metrics.jsonl").symlink_to("/dev/full")
    with self.of() as files:
      files.begin(description())
      with self.assertRaisesRegex(
          ConfigError, r"must be a folder that can be written \(No space left"
      ):
        files.row(row(1))

  def test_weights_that_the_disk_refuses(self):
    """The reason is the system's, here that of a limit for files."""
    self.write(finished=False)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with self.of() as files:
      files.begin(description())
      files.go_on(3)
      resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
      try:
        with self.assertRaisesRegex(
            ConfigError, r"can be written \(File too large\)$"
        ):
          files.finish(row(3), CLIENTS, np.zeros(9999, np.float32))
      finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

  def test_a_file_that_cannot_be_replaced(self):
    self.write(finished=False)
    with self.of() as files:
      files.begin(description())
      files.go_on(3)
      (self.folder / "summary.json" / "below").mkdir(parents=True)
      with self.assertRaisesRegex(ConfigError, "can be written"):
        files.finish(row(3), CLIENTS, np.zeros(2, np.float32))
    self.assertEmpty([*self.folder.glob("*.tmp")])

  @parameterized.parameters("removed", "replaced", "by a run")
  def test_a_folder_that_is_gone(self, how):
    """Noticed before a state or an end counts on it; the new one stays."""
    with self.of("run") as files:
      files.begin(description())
      files.go_on(0)
      files.row(row(1))
      shutil.rmtree(self.folder / "run")
      if how == "replaced":
        (self.folder / "run").mkdir()
        (self.folder / "run" / "notes.txt").write_text("mine")
      elif how == "by a run":
        self.write("run", finished=False, seed=7)
      files.row(row(2))
      for act in (
          files.sync,
          lambda: files.replace_last(row(2), evaluation(2)),
          lambda: files.finish(row(2), CLIENTS, np.zeros(2, np.float32)),
      ):
        self.refused(act, "another program removed or replaced")

  @hypothesis.given(st.lists(_FINITE, max_size=5), _FINITE)
  def test_rows_are_there_at_once(self, numbers, last):
    """To the bit, one line a row, as Python's own reader sees them."""
    rows = [row(i, own=x) for i, x in enumerate([*numbers, last], 1)]
    with tempfile.TemporaryDirectory() as folder:
      extent = records.Extent(99, None)
      with records.RunFolder(folder, {}, extent) as files:
        files.begin(description())
        for count, one in enumerate(rows, 1):
          files.row(one)
          self.assertEqual(rows_of(folder), rows[:count])
      self.assertEqual(read.read_run(folder).rows, rows)

  def test_the_end(self):
    """All files are there, and the reader takes them."""
    self.write(seed=1)
    self.assertEqual(
        set(files_of(self.folder)),
        {
            "config.json", "metrics.jsonl", "client_evaluations.npy",
            "clients.csv", "params.npy", "summary.json",
        },
    )
    run = read.read_run(self.folder)
    self.assertEqual(run.summary, row(3))
    self.assertEqual(run.params.tolist(), np.float32([0.5, 1e-30]).tolist())
    self.assertEqual(run.clients["client"], ["a", "b"])
    self.assertEqual(run.contributed.tolist(), [3, 0])
    self.assertEqual(
        run.client_evaluations.tobytes(),
        b"".join(evaluation(i).tobytes() for i in (1, 2, 3)),
    )

  def test_no_nan_in_json(self):
    """The writer refuses what JSON has no word for."""
    with self.of() as files:
      files.begin(description())
      with self.assertRaises(ValueError):
        files.row(row(1, own=float("nan")))
    self.assertEqual(rows_of(self.folder), [])

  def test_environment_is_plain(self):
    environment = records.environment()
    self.assertEqual(json.loads(json.dumps(environment)), environment)
    self.assertEqual(environment["platform"], "cpu")
    self.assertContainsSubset(
        ("agsfl", "jax", "numpy"), environment["versions"]
    )

  @absltest.skipIf(os.geteuid() == 0, "root may write everywhere")
  def test_a_folder_without_rights(self):
    self.folder.chmod(0o500)
    self.refused(
        lambda: self.of("run").begin(description()), "can be written"
    )


if __name__ == "__main__":
  absltest.main()
