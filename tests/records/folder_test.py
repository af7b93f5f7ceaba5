"""What a run leaves on disk: written, refused, read back."""

import csv
import json
import tempfile
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.config import ConfigError
from agsfl.records import folder as records

_FINITE = st.floats(allow_nan=False, allow_infinity=False)
_ROW = st.fixed_dictionaries(
    {
        "round": st.integers(1, 10**9),
        "time": _FINITE,
        "k": _FINITE,
        "k_up": st.integers(0, 2**31 - 1),
        "sign": st.sampled_from((-1, 0, 1, None)),
    },
    optional={"test_loss": _FINITE},
)
_NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


class RecordsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def files(self):
    """Every file below the folder, and its bytes."""
    return {
        str(path.relative_to(self.folder)): path.read_bytes()
        for path in self.folder.rglob("*")
        if path.is_file()
    }

  def begun(self, asked, *below, config=None):
    """A folder in use until the test ends."""
    files = records.RunFolder(self.folder.joinpath(*below), asked)
    self.enter_context(files)
    files.begin(config or {})
    return files

  def test_config_is_there_from_the_start(self):
    """In a folder made with its parents, before any round."""
    config = {"k": 1.5, "k_min": None, "versions": {"jax": "1"}, "name": "é"}
    self.begun({"k": 1}, "a", "b", config=config)
    self.assertEqual(
        set(self.files()), {"a/b/config.json", "a/b/metrics.jsonl"}
    )
    text = (self.folder / "a" / "b" / "config.json").read_text()
    self.assertEqual(json.loads(text), {**config, "asked": {"k": 1}})

  def test_a_look_writes_nothing(self):
    files = records.RunFolder(self.folder / "run", {})
    self.assertFalse(files.finished)
    self.assertFalse((self.folder / "run").exists())

  @parameterized.parameters(str, Path)
  def test_an_empty_folder_will_do(self, kind):
    (self.folder / "notes.txt").write_text("mine")
    with records.RunFolder(kind(self.folder), {}) as files:
      files.begin({})
    self.assertEqual(records.read_rows(kind(self.folder)), [])
    self.assertEqual(self.files()["notes.txt"], b"mine")

  @parameterized.parameters(0, 1)
  def test_refuses_a_run_of_other_settings(self, rows):
    """And leaves the run as it was, were it killed before its first row."""
    with records.RunFolder(self.folder, {"seed": 1, "k": 2}) as files:
      files.begin({})
      for _ in range(rows):
        files.row({"round": 1})
    before = self.files()
    with self.assertRaises(ConfigError) as caught:
      records.RunFolder(self.folder, {"seed": 2, "k": 2})
    self.assert_one_line(
        caught.exception, self.folder, "it has seed=1, asked for 2"
    )
    self.assertEqual(self.files(), before)
    same = records.RunFolder(self.folder, {"seed": 1, "k": 2})
    self.assertFalse(same.finished)

  @parameterized.parameters("{}", "[]", "", "text", '{"asked"')
  def test_refuses_what_is_no_run(self, text):
    (self.folder / "config.json").write_text(text)
    with self.assertRaises(ConfigError) as caught:
      records.RunFolder(self.folder, {})
    self.assert_one_line(caught.exception, self.folder, "config.json")

  @parameterized.parameters(
      "metrics.jsonl", "clients.csv", "params.npy", "summary.json", "figures",
      "checkpoints",
  )
  def test_refuses_a_folder_with_what_a_run_makes(self, name):
    """A file or a folder of that name, of something else."""
    def write(path):
      path.write_text("mine")

    for make in (write, Path.mkdir):
      folder = self.folder / make.__name__
      folder.mkdir()
      make(folder / name)
      with self.assertRaises(ConfigError) as caught:
        records.RunFolder(folder, {})
      self.assert_one_line(caught.exception, folder, name)
      self.assertEqual([path.name for path in folder.iterdir()], [name])

  def test_looks_again_once_it_has_the_folder(self):
    """All looked while it was empty; the first to begin says what it holds."""
    first, other, same = (
        records.RunFolder(self.folder, {"k": k}) for k in (1, 2, 1)
    )
    with first:
      first.begin({"data": "a"})
      with self.assertRaisesRegex(ConfigError, "must not be in use"):
        other.begin({"data": "a"})
      first.row({"round": 1})
      first.finish({}, {"client": ["x"]}, np.zeros(1))
    with self.assertRaisesRegex(ConfigError, "k=1, asked for 2"):
      other.begin({"data": "a"})
    with self.assertRaisesRegex(ConfigError, "data=a, asked for b"):
      same.begin({"data": "b"})
    self.assertFalse(same._open)
    with same:
      same.begin({"data": "a"})
      self.assertTrue(same.finished)
    self.assertLen(records.read_rows(self.folder), 1)

  def test_restart_drops_rows_and_checkpoints(self):
    files = self.begun({})
    files.row({"round": 1})
    files.checkpoints.mkdir()
    files.restart()
    self.assertEmpty(records.read_rows(self.folder))
    self.assertFalse(files.checkpoints.exists())

  def test_a_folder_that_cannot_be(self):
    (self.folder / "file").touch()
    for place in (self.folder / "file" / "run", self.folder / ("x" * 300)):
      with self.assertRaises(ConfigError) as caught:
        records.RunFolder(place, {}).begin({})
      self.assert_one_line(caught.exception, place, "that can be written")

  def test_refuses_a_folder_in_use(self):
    """Until it is let go, by whatever end of the process."""
    files = self.begun({})
    other = records.RunFolder(self.folder, {})
    with self.assertRaisesRegex(ConfigError, "must not be in use"):
      other.begin({})
    files.row({"round": 1})
    files.close()
    with other:
      other.begin({})
      other.row({"round": 2})
    self.assertEqual(
        records.read_rows(self.folder), [{"round": 1}, {"round": 2}]
    )

  @parameterized.parameters("file", "file/below", "file/far/below")
  def test_refuses_what_cannot_be_written(self, name):
    (self.folder / "file").write_text("text")
    with self.assertRaises(ConfigError) as caught:
      records.RunFolder(self.folder / name, {}).begin({})
    self.assert_one_line(caught.exception, self.folder / name, "written")
    self.assertEqual(self.files(), {"file": b"text"})

  def assert_one_line(self, error, workdir, word):
    self.assertLen(str(error).splitlines(), 1)
    self.assertStartsWith(str(error), f"--workdir={workdir}: must ")
    self.assertIn(word, str(error))

  @absltest.skipUnless(Path("/dev/full").exists(), "no Linux")
  def test_a_full_disk(self):
    """Told by what writes; the folder is let go of nevertheless."""
    with records.RunFolder(self.folder, {}) as files:
      files.begin({})
    (self.folder / "metrics.jsonl").unlink()
    (self.folder / "metrics.jsonl").symlink_to("/dev/full")
    with records.RunFolder(self.folder, {}) as files:
      files.begin({})
      with self.assertRaises(ConfigError) as caught:
        files.row({"round": 1})
    self.assert_one_line(caught.exception, self.folder, "No space left")

  def test_a_file_that_cannot_be_replaced(self):
    files = self.begun({})
    (self.folder / "summary.json" / "below").mkdir(parents=True)
    with self.assertRaises(ConfigError) as caught:
      files.finish({}, {"client": ["x"]}, np.zeros(1))
    self.assert_one_line(caught.exception, self.folder, "can be written")

  @parameterized.parameters(0, 2, 3)
  def test_keep(self, count):
    """Law: the first rows stay, byte for byte, and others follow them."""
    rows = [{"round": i, "x": 0.1 * i} for i in range(1, 4)]
    with records.RunFolder(self.folder, {}) as files:
      files.begin({})
      for row in rows:
        files.row(row)
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"rou')  # torn
    with records.RunFolder(self.folder, {}) as files:
      files.begin({})
      self.assertEqual(files.keep(count), rows[:count])
      files.row({"round": 9})
    self.assertEqual(
        records.read_rows(self.folder), [*rows[:count], {"round": 9}]
    )

  def test_keep_wants_whole_rows(self):
    files = self.begun({})
    files.row({"round": 1})
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"round": 2}')  # without its end
    before = self.files()
    with self.assertRaisesRegex(ConfigError, "2 rows"):
      files.keep(2)
    self.assertEqual(self.files(), before)

  @parameterized.parameters(b'{"round": 2', b"\0\0\0", b"\xff{}", b"")
  def test_keep_wants_rows_undamaged(self, damaged):
    files = self.begun({})
    (self.folder / "metrics.jsonl").write_bytes(
        b'{"round": 1}\n' + damaged + b'\n{"round": 3}\n'
    )
    before = self.files()
    with self.assertRaises(ConfigError) as caught:
      files.keep(3)
    self.assert_one_line(
        caught.exception, self.folder, "(metrics.jsonl, line 2: "
    )
    self.assertEqual(self.files(), before)

  @parameterized.parameters(
      (records.read_config, "config.json", b""),
      (records.read_summary, "summary.json", b'{"a'),
      (records.read_params, "params.npy", b""),
      (records.read_clients, "clients.csv", b"client\nx,1"),
      (records.read_rows, "metrics.jsonl", b"{}\n{"),
  )
  def test_a_damaged_file_is_named(self, read, name, torn):
    for damaged in (torn, b"\xff\0"):
      (self.folder / name).write_bytes(damaged)
      with self.assertRaisesRegex(ValueError, f"^{name}"):
        read(self.folder)

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(st.lists(_ROW, max_size=5))
  def test_rows_read_back(self, rows):
    """Each is there at once, to the bit, one line a row."""
    with tempfile.TemporaryDirectory() as folder:
      with records.RunFolder(folder, {}) as writer:
        writer.begin({})
        for count, row in enumerate(rows, 1):
          writer.row(row)
          self.assertEqual(records.read_rows(folder), rows[:count])
      self.assertEqual(records.read_rows(folder), rows)
      text = (Path(folder) / "metrics.jsonl").read_text()
    self.assertEqual([json.loads(line) for line in text.splitlines()], rows)
    self.assertEqual(text.count("\n"), len(rows))

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(
      st.lists(
          st.tuples(_NAMES, st.integers(1, 10**6), st.integers(0, 2**53)),
          min_size=1,
          max_size=6,
      )
  )
  def test_contributions_read_back(self, clients):
    """In the order of the clients, whatever their names hold."""
    names, samples, contributed = zip(*clients, strict=True)
    with tempfile.TemporaryDirectory() as folder:
      with records.RunFolder(folder, {}) as writer:
        writer.begin({})
        columns = {
            "client": np.array(names, str),
            "samples": np.array(samples),
            "contributed": np.array(contributed),
        }
        writer.finish({}, columns, np.zeros(1))
      held = records.read_clients(folder)
      self.assertEqual(held["contributed"], list(contributed))
      self.assertEqual(held["samples"], list(samples))
      self.assertEqual(held["client"], [name.rstrip("\0") for name in names])
      path = Path(folder) / "clients.csv"
      with path.open(newline="", encoding="utf-8") as file:
        header, *table = csv.reader(file)
    self.assertEqual(header, ["client", "samples", "contributed"])
    # A NumPy string ends at its last character that is not NUL.
    self.assertEqual(
        table,
        [[name.rstrip("\0"), str(s), str(c)] for name, s, c in clients],
    )

  def test_finish_leaves_all_files(self):
    summary = {"round": 3, "time": 0.1, "sign": None}
    with records.RunFolder(self.folder, {"seed": 1}) as writer:
      writer.begin({})
      writer.row({"round": 1})
      writer.checkpoints.mkdir()
      self.assertFalse(writer.finished)
      clients = {"client": ["a", "b"], "samples": [3, 4], "contributed": [7, 0]}
      writer.finish(summary, clients, np.float32([0.5, 1e-30]))
      self.assertTrue(writer.finished)
    with self.assertRaises(ValueError):  # closed
      writer.row({"round": 2})
    files = self.files()
    self.assertEqual(
        set(files),
        {
            "config.json", "metrics.jsonl", "clients.csv", "params.npy",
            "summary.json",
        },
    )
    self.assertEqual(json.loads(files["summary.json"]), summary)
    self.assertEqual(records.read_summary(self.folder), summary)
    params = records.read_params(self.folder)
    self.assertEqual(params.tolist(), np.float32([0.5, 1e-30]).tolist())
    self.assertFalse((self.folder / "checkpoints").exists())
    self.assertEqual(
        files["clients.csv"].decode().splitlines(),
        ["client,samples,contributed", "a,3,7", "b,4,0"],
    )

  def test_environment_is_plain(self):
    environment = records.environment()
    self.assertEqual(json.loads(json.dumps(environment)), environment)
    self.assertContainsSubset(
        ("python", "versions", "device", "platform"), environment
    )
    self.assertContainsSubset(
        ("agsfl", "jax", "numpy"), environment["versions"]
    )


if __name__ == "__main__":
  absltest.main()
