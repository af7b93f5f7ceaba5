"""The reader of runs: what is whole is read back, all damage is one line."""

import contextlib
import copy
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import programs, words
from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records import client_evaluations, fairness, read, summary, tables
from agsfl.records.folder import Extent, RunFolder
from experiments import export, plot
from experiments.report import __main__ as report
from tests.small import MANY, main

# Left by version 0.1; its params.npy and client_evaluations.npy are made here.
OLD = Path(__file__).parent / "run_of_0_1"
NUM_WEIGHTS = 9610
FILES = (
    "config.json", "metrics.jsonl", "summary.json", "clients.csv", "params.npy",
    "client_evaluations.npy",
)


def copy_of_run(folder):
  """A run of version 0.1 in a new folder."""
  shutil.copytree(OLD, folder)
  np.save(folder / "params.npy", np.arange(NUM_WEIGHTS, dtype=np.float32))
  clients = tables.read_clients(folder / "clients.csv")
  of_clients = SimpleNamespace(
      client_test_loss=clients["test_loss"],
      client_test_accuracy=clients["test_accuracy"],
  )
  np.save(
      folder / "client_evaluations.npy",
      np.stack([client_evaluations.record(i, of_clients) for i in (2, 4)]),
  )
  return folder


def edit(path, change):
  """Changes a JSON file, or each row of metrics.jsonl."""
  text = path.read_text()
  texts = [text] if path.suffix == ".json" else text.splitlines()
  values = [json.loads(text) for text in texts]
  for value in values:
    change(value)
  path.write_text("".join(json.dumps(value) + "\n" for value in values))


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_refused(self, function, *words):
    with self.assertRaises(ConfigError) as caught:
      function()
    self.assertLen(str(caught.exception).splitlines(), 1)
    for word in words:
      self.assertIn(word, str(caught.exception))


class WholeTest(FolderTest):

  def test_a_run_of_0_1(self):
    """Its parts are those of its files, as Python's own readers see them."""
    place = copy_of_run(self.folder / "run")
    run = read.read_run(place)
    self.assertTrue(run.finished)
    self.assertEqual(
        run.rows,
        [json.loads(x) for x in (OLD / "metrics.jsonl").read_text().split("\n")
         if x],
    )
    self.assertEqual(
        run.summary, json.loads((OLD / "summary.json").read_text())
    )
    self.assertEqual(run.asked, run.config["asked"])
    self.assertEqual(
        (run.asked["controller"], run.config["controller"]),
        (None, "sign_interval"),
    )
    table = [x.split(",") for x in (OLD / "clients.csv").read_text().split()]
    self.assertEqual(list(run.clients), table[0])
    self.assertEqual(run.clients["client"], [row[0] for row in table[1:]])
    self.assertEqual(
        run.contributed.tolist(), [int(row[-1]) for row in table[1:]]
    )
    self.assertEqual(run.params.tolist(), list(range(NUM_WEIGHTS)))
    self.assertEqual(run.params.dtype, np.float32)
    self.assertEqual([row["round"] for row in run.evaluated], [2, 4])
    self.assertEqual(run.client_evaluations["round"].tolist(), [2, 4])
    for name in ("test_loss", "test_accuracy"):
      self.assertEqual(
          run.client_evaluations[name].tolist(),
          [np.float32(run.clients[name]).tolist()] * 2,
      )
    self.assertEqual(run.metrics, [])
    self.assertEqual(repr(run), f"Run(finished, 4 rounds, {place})")

  def test_series(self):
    """Points of rows that have a finite number."""
    losses = (2.0, None, math.nan, math.inf, 1.0)
    rows = [
        {"time": 1.5 * i, "round": i, "loss": x} for i, x in enumerate(losses)
    ]
    run = read.Run([*rows, {"time": 9.0, "round": 5}], {}, {}, {})
    x, y = run.series("loss")
    self.assertEqual((x.tolist(), y.tolist()), ([0.0, 6.0], [2.0, 1.0]))
    self.assertEqual(run.series("loss", "round")[0].tolist(), [0.0, 4.0])
    self.assertEqual(run.series("none")[0].shape, (0,))

  def test_further_columns(self):
    """A newer run has bytes, fairness, and a column of the user's own."""
    place = copy_of_run(self.folder / "run")
    more = lambda row: row.update(
        bytes_up=8 * row["k_up"], bytes_down=4.5, norm=None,
        **dict.fromkeys(fairness.SPREAD, 0.5),
    )
    edit(place / "metrics.jsonl", more)
    edit(place / "summary.json", more)
    run = read.read_run(place)
    self.assertEqual(run.metrics, ["norm"])
    self.assertEqual(run.rows[0]["bytes_up"], 1600)

  def test_round_0(self):
    """The start of every line, at 0 of every axis; no round counts it.

    Clients with samples send 8 bytes for each element.
    """
    place = copy_of_run(self.folder / "run")
    path = place / "metrics.jsonl"
    path.write_bytes(start() + path.read_bytes())
    evaluations = np.load(place / "client_evaluations.npy")
    first = evaluations[:1].copy()
    first["round"] = 0
    np.save(
        place / "client_evaluations.npy", np.concatenate([first, evaluations])
    )
    run = read.read_run(place)
    self.assertEqual(run.start, START)
    self.assertEqual([row["round"] for row in run.rows], [1, 2, 3, 4])
    self.assertEqual([row["round"] for row in run.evaluated], [0, 2, 4])
    self.assertEqual(run.client_evaluations["round"].tolist(), [0, 2, 4])
    senders = sum(count > 0 for count in run.clients["samples"])
    sent = np.cumsum([row["k_up"] + row["k_down"] for row in run.rows])
    x, y = run.series("train_loss", "bytes")
    self.assertEqual(x.tolist(), [0, *(8 * senders * sent[[1, 3]])])
    self.assertEqual(y[0], 2.0)
    self.assertEqual(run.series("train_loss", "round")[0].tolist(), [0, 2, 4])
    self.assertEqual(run.series("k", "round")[0].tolist(), [1, 2, 3, 4])
    self.assertEmpty(run.series("train_loss", "seconds")[0])

  def test_params_in_memory(self):
    run = read.Run([], {}, {}, {}, params=np.float32([1, 2]))
    self.assertEqual(run.params.tolist(), [1, 2])
    with self.assertRaises(AttributeError):
      run.rows = []

  def test_unfinished(self):
    """As far as it went; what was not written whole is no row."""
    place = copy_of_run(self.folder / "run")
    (place / "summary.json").unlink()
    (place / "clients.csv").unlink()
    text = (place / "metrics.jsonl").read_text()
    (place / "metrics.jsonl").write_text(text[:-30])
    run = read.read_run(place)
    self.assertFalse(run.finished)
    self.assertLen(run.rows, 3)
    self.assertEqual(run.clients, {})
    self.assertEqual(run.contributed.tolist(), [])
    self.assertEqual(run.client_evaluations["round"].tolist(), [2])
    self.assertEqual(repr(run), f"Run(unfinished, 3 rounds, {place})")
    self.assert_refused(lambda: run.params, str(place), "params")
    for name in ("metrics.jsonl", "client_evaluations.npy"):
      (place / name).unlink()
    run = read.read_run(place)
    self.assertEqual((run.rows, len(run.client_evaluations)), ([], 0))


class FindTest(FolderTest):

  def make(self, name):
    place = self.folder / name
    place.mkdir(parents=True)
    (place / "config.json").touch()
    return place

  def found(self, folder="."):
    return [
        str(path.relative_to(self.folder))
        for path in read.find_runs(self.folder / folder)
    ]

  def test_all_below_in_natural_order(self):
    for name in ("b/seed10", "b/seed2", "a/k=0.5/x", "seed1"):
      self.make(name)
    # Nothing within a run is one.
    self.make("seed1/checkpoints/3")
    self.assertEqual(
        self.found(), ["a/k=0.5/x", "b/seed2", "b/seed10", "seed1"]
    )
    self.assertEqual(self.found("b"), ["b/seed2", "b/seed10"])
    self.assertEqual(self.found("seed1"), ["seed1"])

  def test_numbers_in_names_by_their_values(self):
    """Decimals and exponents too; names of equal numbers have an order."""
    ordered = [
        "learning_rate=1e-3", "learning_rate=0.02", "learning_rate=0.1",
        "learning_rate=0.5,k=1%", "learning_rate=0.5,k=10%",
        "learning_rate=100", "learning_rate=1e2", "learning_rate=1e3",
        "seed2", "seed10", "v1.2", "v1.2.3", "v1.2.10",
    ]
    self.assertEqual(sorted(ordered[::-1], key=words.natural_order), ordered)

  def test_links_count_once(self):
    """Also one that leads in a circle, and one from outside."""
    self.make("a")
    self.make("out/c")
    (self.folder / "b").mkdir()
    for link, target in (("b/a", "a"), ("b/up", "."), ("b/c", "out/c")):
      (self.folder / link).symlink_to(self.folder / target)
    self.assertEqual(self.found("b/c"), ["b/c"])
    self.assertLen(self.found(), 2)
    self.assertEqual(self.found("b"), ["b/a", "b/c"])

  def test_a_folder_that_goes_during_the_search(self):
    """Another process removes it; the runs that stay are found."""
    for name in ("a", "b/c"):
      self.make(name)
    (self.folder / "gone").mkdir()
    scandir = os.scandir

    def late(place):
      if str(place).endswith("gone"):
        Path(place).rmdir()
      return scandir(place)

    with mock.patch.object(os, "scandir", late):
      self.assertEqual(self.found(), ["a", "b/c"])

  def test_several_folders(self):
    place = copy_of_run(self.folder / "runs" / "a")
    runs = read.read_all(
        self.folder, place, str(self.folder / "runs" / ".." / "runs")
    )
    self.assertLen(runs, 1)
    self.assert_refused(read.read_all, "no folder")

  def test_home(self):
    self.make("runs/a")
    before = os.environ["HOME"]
    self.addCleanup(os.environ.__setitem__, "HOME", before)
    os.environ["HOME"] = str(self.folder)
    self.assertEqual(read.find_runs("~/runs"), [self.folder / "runs" / "a"])

  def test_what_is_no_folder_of_runs(self):
    (self.folder / "file").touch()
    (self.folder / "empty").mkdir()
    for name, word in (
        ("none", "no such folder"), ("file", "is no folder"),
        ("empty", "no config.json in it"), ("~nobody", "no such folder"),
    ):
      place = self.folder / name
      self.assert_refused(lambda place=place: read.find_runs(place),
                          str(place), word)


START = {
    "round": 0, "time": 0.0, "train_loss": 2.0, "test_loss": 2.5,
    "test_accuracy": 0.125,
}


def start(without="", **more):
  """A line of round 0."""
  row = {name: x for name, x in (START | more).items() if name != without}
  return json.dumps(row).encode() + b"\n"


# File, damage to its content, a word of the message.
DAMAGE = (
    ("config.json", lambda x: b"", "not JSON"),
    ("config.json", lambda x: b"null", "JSON object, not None"),
    ("config.json", lambda x: b'"=cmd()"', "JSON object, not '=cmd()'"),
    ("config.json", lambda x: b"{}", "asked is None"),
    ("config.json", lambda x: b"[" * 10**5, "recursion"),
    ("config.json", lambda x: b"\xff" + x, "not JSON"),
    ("config.json", lambda x: x.replace(b'"digits"', b'"\\ud800"'), "dataset"),
    ("config.json", lambda x: x.replace(b"9610", b"9" * 400), "num_weights"),
    ("config.json", lambda x: x.replace(b"9610", b"9" * 5000), "not JSON"),
    ("config.json", lambda x: x.replace(b"10.0", b"NaN"), "comm_time is nan"),
    ("config.json", lambda x: x.replace(b"1438", b"[]"), "num_train is []"),
    ("metrics.jsonl", lambda x: b"", "0 rows"),
    ("metrics.jsonl", lambda x: x.replace(b"2186.3154296875", b"1e39"),
     "line 3 is damaged: k is 1e+39"),
    ("metrics.jsonl", lambda x: x.replace(b"2186.3154296875", b"1e-320"),
     "line 3 is damaged: k is 1e-320"),
    ("metrics.jsonl", lambda x: x[: x.index(b"\n") + 1] + x,
     "line 2 is damaged: round is 1"),
    ("metrics.jsonl", lambda x: x + start(), "line 5 is damaged: round is 0"),
    ("metrics.jsonl", lambda x: start() + start() + x, "line 2", "round is 0"),
    ("metrics.jsonl", lambda x: start("test_loss") + x, "test_loss is None"),
    ("metrics.jsonl", lambda x: start(time=None) + x, "line 1", "time is None"),
    ("metrics.jsonl", lambda x: start(k=2.0) + x, "all or none of k_up"),
    ("metrics.jsonl", lambda x: start(norm="x") + x, "norm is 'x'"),
    ("metrics.jsonl", lambda x: x[:-1], "not whole"),
    ("metrics.jsonl", lambda x: b"[" * 10**5 + b"\n", "line 1 is damaged"),
    ("metrics.jsonl", lambda x: b"\n" + x, "line 1 is damaged"),
    ("metrics.jsonl", lambda x: x.split(b"\n", 1)[1], "line 1", "round is 2"),
    ("metrics.jsonl", lambda x: x.replace(b'"round": 2', b'"round": 2.0'),
     "line 2 is damaged: round is 2.0"),
    ("metrics.jsonl", lambda x: x.replace(b": 6981,", b": 9611,"),
     "line 2 is damaged: k_up is 9611"),
    ("metrics.jsonl", lambda x: x.replace(b"17.0", b"1.0"),
     "line 2 is damaged: time is 1.007", "less than"),
    ("metrics.jsonl", lambda x: x.replace(b"17.0073", b"1e999"), "time is inf"),
    ("metrics.jsonl", lambda x: x.replace(b": 200.0", b': "200"'), "k is '200"),
    ("metrics.jsonl", lambda x: x.replace(b"2186.3154296875", b"9" * 400),
     "line 3 is damaged: k is 9999"),
    ("metrics.jsonl", lambda x: x.replace(b'"sign": -1', b'"sign": 7'), "sign"),
    ("metrics.jsonl", lambda x: x.replace(b"0.1699", b"1.1699"),
     "test_accuracy is 1.1699"),
    ("metrics.jsonl", lambda x: x.replace(b'"test_loss"', b'"text_loss"'),
     "all or none of train_loss"),
    ("metrics.jsonl", lambda x: x.replace(b'"sign"', b'"bytes_up": 1, "sign"'),
     "all or none of bytes_up"),
    ("metrics.jsonl",
     lambda x: x.replace(b'"sign"', b'"client_test_accuracy_std": 0, "sign"'),
     "all or none of client_test_accuracy_mean"),
    ("metrics.jsonl", lambda x: x.replace(b'"sign"', b'"norm": "x", "sign"'),
     "norm is 'x'"),
    ("summary.json", lambda x: b"7", "JSON object, not 7"),
    ("summary.json", lambda x: b"{}", "summary.json is damaged: round is None",
     "; if you remove summary.json, the command of this run writes it again"),
    ("summary.json", lambda x: x.replace(b'"round": 4', b'"round": 5'),
     "round is 5, metrics.jsonl has 4"),
    ("summary.json", lambda x: x.replace(b"2.3427", b"2.3428"), "train_loss"),
    ("summary.json", lambda x: x.replace(b": 7808", b': "7808"'),
     "most_contributed is '7808'"),
    ("clients.csv", lambda x: b"", "line 1"),
    ("clients.csv", lambda x: x.replace(b"samples", b"amples"), "no column"),
    ("clients.csv", lambda x: x.replace(b"test_loss", b"test_accuracy"),
     "line 1"),
    ("clients.csv", lambda x: x.replace(b",7327", b""), "line 2: must have 6"),
    ("clients.csv", lambda x: x.replace(b"7327", b"=7"), "line 2: contributed"),
    ("clients.csv", lambda x: x.replace(b"7327", b"7.5"), "contributed is 7.5"),
    ("clients.csv", lambda x: x.replace(b"7327", b"9" * 400), "contributed"),
    ("clients.csv", lambda x: x.replace(b"7327", b"99999"), "contributed is 9"),
    ("clients.csv", lambda x: x[:-2] + b'"', "clients.csv"),
    ("clients.csv", lambda x: x[: x.rindex(b"\n9")+1], "9 clients, config"),
    ("clients.csv", lambda x: x.replace(b"0,146,", b"0,147,"), "1439 samples"),
    ("clients.csv", lambda x: x.replace(b",32,", b",33,"), "360 test samples"),
    ("params.npy", lambda x: b"", "no npy"),
    ("params.npy", lambda x: x[:-4], "9610 numbers"),
    ("params.npy", lambda x: x + b"\0", "9610 numbers"),
    ("params.npy", lambda x: x.replace(b"<f4", b"<i4"), "int32"),
    ("params.npy", lambda x: x.replace(b"(9610", b"(9999"), "[9999]"),
    ("params.npy", lambda x: x.replace(b"<f4", b"|O8"), "must hold"),
    ("client_evaluations.npy", lambda x: b"", "no npy"),
    ("client_evaluations.npy", lambda x: x[:-4], "2 whole records"),
    ("client_evaluations.npy", lambda x: x + b"\0", "2 whole records"),
    ("client_evaluations.npy", lambda x: x.replace(b"(2,)", b"(3,)"), "has 3"),
    ("client_evaluations.npy", lambda x: x.replace(b"(2,)", b"(1,)"), "has 1"),
    ("client_evaluations.npy", lambda x: x.replace(b"(10,)", b"(11,)"),
     "records of 10 clients"),
    ("client_evaluations.npy", lambda x: x.replace(b"(2,)", b"()  "),
     "records of 10 clients"),
    ("client_evaluations.npy", lambda x: x.replace(b"False", b"True "),
     "in C order"),
    ("client_evaluations.npy",
     lambda x: x.replace(b"\2\0\0\0", b"\3\0\0\0"), "rounds are not those"),
    ("client_evaluations.npy", lambda x: x[:-2] + b"\x80\x40",
     "test_accuracy must be from 0 to 1"),
    ("client_evaluations.npy", lambda x: x[:-4] + b"\0\0\0\x3f",
     "its last test_accuracy are not those of clients.csv"),
)

_TOKENS = (
    b"null", b"{}", b"[]", b"[" * 10**5, b"NaN", b"-Infinity", b"1e999",
    b"9" * 400, b"9" * 5000, b'"=cmd()"', b'"\\ud800"', b"\xed\xa0\x80",
    b"\xff\xfe", b"\0", b"\n", b'"', b",", b"-1", b"true", b"0.5", b"",
)


_VALUES = (
    None, {}, [], [[]], {"a": {"b": [None]}}, "=cmd()", "", "1%", "\ud800",
    "\x1b[31m", "x" * 1000, -1, -1.5, 0, 2.5, True, 1e308, 1e-320, 10**18,
    10**400, math.nan, math.inf,
)


def _places(value, path=()):
  """The keys that lead to each value inside a JSON value."""
  yield path
  if isinstance(value, dict):
    for key, inner in value.items():
      yield from _places(inner, (*path, key))


@st.composite
def _valued(draw, content):
  """JSON lines, in one of which a value is another one, or is gone."""
  lines = content.splitlines() if content.count(b"}\n{") else [content]
  index = draw(st.integers(0, len(lines) - 1))
  line = json.loads(lines[index])
  *path, last = draw(st.sampled_from([*_places(line)][1:]))
  inner = line
  for key in path:
    inner = inner[key]
  if draw(st.integers(0, 9)):
    inner[last] = draw(st.sampled_from(_VALUES))
  else:
    del inner[last]
  lines[index] = json.dumps(line).encode()
  return b"\n".join([*lines, b""])


@st.composite
def _damaged(draw, content):
  """Content of which a piece is replaced, removed or cut off."""
  tokens = [token.span() for token in re.finditer(rb"[-\w.]+", content)]
  any_span = st.integers(0, len(content)).flatmap(
      lambda start: st.tuples(
          st.just(start), st.integers(start, start + 40) | st.just(len(content))
      )
  )
  spans = [any_span, *[st.sampled_from(tokens)] * bool(tokens)]
  start, end = draw(st.one_of(spans))
  piece = draw(st.sampled_from(_TOKENS) | st.binary(max_size=8))
  return content[:start] + piece + content[end:]


def commands(place, folder):
  """What commands do with a run, by their names: read it, or go on with it.

  Args:
    place: of the run.
    folder: for what they write.
  """

  def command(script, name):
    code, printed = main(script, place, f"--out={folder / name}")
    if isinstance(code, str):
      raise ConfigError(code.removeprefix("error: ").removesuffix("\n"))
    assert code == 0, printed

  asked = json.loads((OLD / "config.json").read_text())["asked"]
  identity = {
      name: value for name, value in asked.items()
      if name not in (*Extent._fields, "eval_every")
  }
  replay = Config(controller="replay", replay=str(place))
  return {
      "export": lambda: command(export, "rows.csv"),
      "plot": lambda: command(plot, "plot.png"),
      "report": lambda: command(report, "report.html"),
      "replay": lambda: programs.recorded_ks(replay, NUM_WEIGHTS),
      "run": lambda: RunFolder(place, identity, Extent(4, None)).finished,
  }


class DamageTest(FolderTest):

  @parameterized.parameters(*DAMAGE)
  def test_is_one_line(self, name, damage, *words):
    """It names the folder, the file and, of rows, the line."""
    place = copy_of_run(self.folder / "run")
    before = (place / name).read_bytes()
    after = damage(before)
    self.assertNotEqual(after, before)
    (place / name).write_bytes(after)

    def read_all():
      run = read.read_run(place)
      return run.params, run.client_evaluations

    self.assert_refused(read_all, f"{place}: ", *words)
    # Every command says the same, about the files that all of them read.
    if not name.endswith(".npy"):
      with self.assertRaises(ConfigError) as said:
        read.read_run(place)
      for act in commands(place, self.folder).values():
        with self.assertRaises(ConfigError) as caught:
          act()
        # A command cuts its line at 300 characters.
        start = str(caught.exception).removesuffix("...")
        self.assertEqual(start, str(said.exception)[: len(start)])

  @parameterized.parameters(*FILES)
  def test_a_file_that_is_none(self, name):
    """It is gone, or a folder."""
    place = copy_of_run(self.folder / "run")
    (place / name).unlink()

    def use():
      run = read.read_run(place)
      return run.params, run.client_evaluations

    word = "not finished" if name == "summary.json" else "cannot be read"
    self.assert_refused(use, str(place), word)
    (place / name).mkdir()
    self.assert_refused(use, f"{place}: {name} cannot be read")

  @hypothesis.given(st.data())
  def test_any_damage(self, data):
    """Law: what is left is a Run, or one line says why not.

    No command has anything else to say.
    """
    name = data.draw(st.sampled_from(FILES))
    with tempfile.TemporaryDirectory() as folder:
      place = copy_of_run(Path(folder) / "run")
      content = (place / name).read_bytes()
      damages = [_damaged(content)]
      if name.startswith(("config", "metrics", "summary")):
        damages.append(_valued(content))
      (place / name).write_bytes(data.draw(st.one_of(damages)))
      acts = commands(place, Path(folder))
      if not MANY:
        del acts["plot"]  # it takes long to draw
      for act in acts.values():
        with contextlib.suppress(ConfigError):
          act()
      try:
        run = read.read_run(place)
        self.assertEqual(run.params.shape, (run.config["num_weights"],))
        self.assertLen(run.client_evaluations, len(run.evaluated))
        for key in (*run.metrics, "test_loss"):
          x, y = run.series(key)
          self.assertTrue(np.isfinite([x, y]).all())
        self.assertLen(run.contributed, run.config["num_clients_used"])
        json.dumps(run.config).encode()
      except ConfigError as error:
        self.assertLen(str(error).splitlines(), 1)
        self.assertTrue(str(error).isprintable())
        self.assertIn(str(place), str(error))


_NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)


class TablesTest(FolderTest):

  @hypothesis.given(st.lists(
      st.tuples(
          st.sampled_from(["", "=", "+", "-", "@", "'", "'=", "''@", "\t"]),
          _NAMES,
          st.integers(0, 2**53),
          st.floats(),
      ),
      max_size=6,
  ))
  def test_names_read_back(self, clients):
    """Law: all names come back, and no cell begins like a formula."""
    names = [start + rest for start, rest, *_ in clients]
    columns = {
        "client": names,
        "samples": [x for *_, x, _ in clients],
        "test_loss": [x for *_, x in clients],
    }
    path = self.folder / "clients.csv"
    tables.write_clients(path, columns)
    held = tables.read_clients(path)
    np.testing.assert_equal(held, columns)
    for name in names:
      cell = tables.as_cell(name)
      self.assertNotIn(cell[:1] or " ", "=+-@\t\r")

  def test_a_name_that_is_no_unicode(self):
    """It ends no run; it is shown by its number."""
    path = self.folder / "clients.csv"
    tables.write_clients(path, {"client": ["a\ud800"], "samples": [1]})
    self.assertEqual(tables.read_clients(path)["client"], ["a\\ud800"])


class SummaryTest(absltest.TestCase):

  def test_by_client_and_summary(self):
    """Three clients, of which the last has no test sample, by hand."""
    data = SimpleNamespace(
        client_names=np.array(["a", "b", "c"]),
        clients=SimpleNamespace(counts=np.int32([4, 5, 6])),
        test_clients=np.array([1, 0, -1, 1]),
    )
    evaluation = SimpleNamespace(
        client_test_loss=np.array([0.5, 0.25, np.nan]),
        client_test_accuracy=np.array([1.0, 0.5, np.nan]),
    )
    totals = {"rounds": np.array([2, 0, 1]), "contributed": np.array([7, 0, 3])}
    clients = summary.by_client(data, totals, evaluation)
    np.testing.assert_equal(clients, {
        "client": ["a", "b", "c"], "samples": [4, 5, 6],
        "test_samples": [1, 2, 0], "test_loss": [0.5, 0.25, np.nan],
        "test_accuracy": [1.0, 0.5, np.nan], "rounds": [2, 0, 1],
        "contributed": [7, 0, 3],
    })
    row = {"round": 2, "test_loss": np.nan, "sign": None}
    held = copy.copy(row)
    got = summary.summarize(row, [3.0, 1.0, 2.0], clients)
    np.testing.assert_equal(row, held)
    self.assertGreater(got.pop("peak_memory_mb"), 1)
    self.assertEqual(got, {
        "round": 2, "test_loss": None, "sign": None,
        "first_round_seconds": 3.0, "median_round_seconds": 2.0,
        "least_contributed": 0, "most_contributed": 7,
    })
    json.dumps(got, allow_nan=False)


if __name__ == "__main__":
  absltest.main()
