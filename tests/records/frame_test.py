"""Tables of runs: data frames, export and results.csv have the same columns."""

import csv
import json
import tempfile
from pathlib import Path

import numpy as np
import pandas
from absl.testing import absltest, parameterized

import agsfl
from agsfl import frame
from agsfl.errors import ConfigError
from agsfl.records.read import read_all, read_run
from experiments import export, sweep
from tests.records.read_test import OLD, copy_of_run, edit
from tests.small import main

ROWS = [json.loads(x) for x in (OLD / "metrics.jsonl").read_text().split("\n")
        if x]
SUMMARY = json.loads((OLD / "summary.json").read_text())
# Of 10 clients, whose messages have an index and a value for each element.
BYTES = 10 * 8 * np.cumsum([row["k_up"] + row["k_down"] for row in ROWS])


def write_study(folder):
  """Runs of two k, learning rates of which one is whole, and two seeds.

  One is unfinished, and one has round 0 and was asked for a share of D.
  """
  for name, k, rate, seed in (
      ("rate=0.5,seed=1", 200.0, 0.5, 1), ("rate=0.5,seed=10", 200.0, 0.5, 10),
      ("rate=1,seed=1", 96.1, 1.0, 1),
  ):
    place = copy_of_run(folder / name)

    def change(config, k=k, rate=rate, seed=seed):
      own = {"k": k, "learning_rate": rate, "seed": seed}
      config.update(own)
      config["asked"].update(own | ({"k": "1%"} if k < 200 else {}))

    edit(place / "config.json", change)
  for name in ("summary.json", "clients.csv", "params.npy"):
    (folder / "rate=0.5,seed=10" / name).unlink()
  start = {"round": 0, "time": 0.0, "train_loss": 9.0, "test_loss": 8.0,
           "test_accuracy": 0.125}
  path = folder / "rate=1,seed=1" / "metrics.jsonl"
  path.write_text(json.dumps(start) + "\n" + path.read_text())
  return ["rate=0.5,seed=1", "rate=0.5,seed=10", "rate=1,seed=1"]


def read_csv(path):
  with path.open(newline="") as file:
    return list(csv.DictReader(file))


class TablesTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    cls.study = cls.folder / "study"
    cls.names = write_study(cls.study)

  def test_a_line_for_each_run(self):
    """Law: settings as in config.json, values as in summary.json."""
    runs = agsfl.read_runs(self.study)
    self.assertEqual(runs.index.name, "run")
    self.assertEqual(list(runs.index), self.names)
    # Settings that differ come first.
    self.assertEqual(
        list(runs.columns[:4]), ["k", "learning_rate", "seed", "dataset"]
    )
    self.assertEqual(runs["k"].tolist(), [200, 200, 96.1])
    self.assertEqual(set(runs["controller"]), {"sign_interval"})
    self.assertEqual(runs["finished"].tolist(), [True, False, True])
    last = runs.loc[self.names[0]]
    for name, value in SUMMARY.items():
      got = last["row_k" if name == "k" else name]
      self.assertTrue(got == value or (value is None and pandas.isna(got)))
    # The last row is that of the unfinished run too, but nothing else is.
    other = runs.loc[self.names[1]]
    self.assertEqual(other["test_loss"], SUMMARY["test_loss"])
    self.assertTrue(pandas.isna(other["median_round_seconds"]))
    self.assertEqual(runs["bytes"].tolist(), [BYTES[-1]] * 3)
    self.assertEqual(runs.loc[runs["finished"]].groupby("k").size().tolist(),
                     [1, 1])

  def test_a_line_for_each_round(self):
    """Law: rows as in metrics.jsonl, round 0 included."""
    rows = agsfl.read_runs(self.study, rows=True)
    self.assertEqual(list(rows.columns[:4]),
                     ["k", "learning_rate", "seed", "round"])
    self.assertLen(rows, 3 * len(ROWS) + 1)
    for name in self.names:
      got = rows.loc[name]
      got = got.loc[got["round"] > 0]
      for key in ("round", "time", "k_up", "k", "test_loss", "sign"):
        column = "row_k" if key == "k" else key
        want = pandas.Series([row.get(key) for row in ROWS], dtype=float)
        np.testing.assert_array_equal(got[column].astype(float), want)
      np.testing.assert_array_equal(got["bytes"], BYTES)
    start = rows.loc[rows["round"] == 0]
    self.assertEqual(start.index.tolist(), ["rate=1,seed=1"])
    self.assertEqual(
        start[["test_loss", "bytes", "time"]].values.tolist(), [[8.0, 0, 0]]
    )
    self.assertTrue(start["row_k"].isna().all())

  @parameterized.parameters(
      ("seed", "int64"), ("k", "float64"), ("finished", "bool"),
      ("learning_rate", "float64"), ("num_rounds", "int64"),
      ("k_up", "int64"), ("bytes", "int64"), ("test_loss", "float64"),
      ("comm_time", "int64"), ("time_budget", "float64"),
      # Whole numbers stay whole where some are missing.
      ("least_contributed", "Int64"),
  )
  def test_types(self, column, dtype):
    self.assertEqual(agsfl.read_runs(self.study).dtypes[column], dtype)

  def test_folders(self):
    """Names are relative to the folder that has all of them."""
    names = lambda *folders: list(agsfl.read_runs(*folders).index)
    self.assertEqual(names(self.study / "rate=1,seed=1"), ["rate=1,seed=1"])
    self.assertEqual(
        names(self.study / self.names[2], str(self.study / self.names[0])),
        [self.names[2], self.names[0]],
    )
    self.assertEqual(
        names(self.folder), [f"study/{name}" for name in self.names]
    )
    with self.assertRaisesRegex(ConfigError, "^no folder of runs is given"):
      agsfl.read_runs()

  def exported(self, *arguments):
    path = self.folder / "rows.csv"
    code, printed = main(export, *arguments, f"--out={path}")
    self.assertEqual(code, 0, printed)
    return read_csv(path)

  def test_export_has_the_lines_of_the_frame(self):
    """Law: each cell is that of the frame; a whole number has no ".0"."""
    lines = self.exported(self.study)
    rows = agsfl.read_runs(self.study, rows=True).reset_index()
    self.assertEqual(list(lines[0]), list(rows.columns))
    self.assertLen(lines, len(rows))
    for line, (_, row) in zip(lines, rows.iterrows(), strict=True):
      for name, text in line.items():
        if isinstance(row[name], str):
          self.assertEqual(text, row[name])
        elif text == "":
          self.assertTrue(pandas.isna(row[name]), name)
        else:
          self.assertEqual(float(text), row[name], name)
          self.assertNotEndsWith(text, ".0")

  def test_export_at_a_point(self):
    """A line for each run; in half of round 3 the loss is between two."""
    time = (ROWS[1]["time"] + ROWS[2]["time"]) / 2
    lines = self.exported(self.study, f"--at_time={time}", "--sort_by=seed")
    self.assertEqual([line["run"] for line in lines],
                     [self.names[0], self.names[2], self.names[1]])
    x, y = zip(
        *((row["time"], row["test_loss"]) for row in (ROWS[1], ROWS[3])),
        strict=True,
    )
    for line in lines:
      self.assertAlmostEqual(
          float(line["test_loss"]), np.interp(time, x, y), places=12
      )
      self.assertEqual((line["round"], line["bytes"]), ("2", str(BYTES[1])))
      self.assertEqual(float(line["row_k"]), ROWS[1]["k"])
    place = f"--out={self.folder / 'common.csv'}"
    _, printed = main(export, self.study, "--at_rounds=common", place)
    self.assertStartsWith(
        printed, f"a line for each run, at round {ROWS[-1]['round']}\n"
    )
    late = self.exported(self.study, "--at_rounds=9")
    self.assertEqual({(x["round"], x["test_loss"]) for x in late}, {("", "")})
    error, _ = main(export, self.study, "--at_seconds=1", "--out=a.csv")
    self.assertStartsWith(error, "error: --at_seconds=1: must be unset")

  def test_results_of_a_sweep_survive_a_move(self):
    """Its paths lead to its runs from the new place, in order of values."""
    before, after = self.folder / "before", self.folder / "moved" / "after"
    write_study(before)
    runs = [run for run in read_all(before) if run.finished]
    sweep.write_results(runs[::-1], ["learning_rate"], before)
    after.parent.mkdir()
    before.rename(after)
    lines = read_csv(after / "results.csv")
    self.assertEqual([(x["learning_rate"], x["k"]) for x in lines],
                     [("0.5", "200"), ("1", "96.1")])
    for line in lines:
      run = read_run(after / line["run"])
      self.assertEqual(float(line["test_loss"]), run.summary["test_loss"])
      self.assertEqual(float(line["learning_rate"]),
                       run.config["learning_rate"])
    # A k that is asked as a share is between numbers and text.
    self.assertEqual(frame.differing(runs), ["k", "learning_rate"])


if __name__ == "__main__":
  absltest.main()
