"""Tables as CSV, by what a test writes into them."""

import csv
import io
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.data import federated as data
from agsfl.data import sources
from agsfl.data.partitions import Partition
from agsfl.data.sources import SourceOptions, tables
from agsfl.errors import ConfigError
from tests.data.helpers import samples_or_one_line

TABLE = """age,label,is_train,site,height
1,0,1,10,0.5
2,2,0,9,-1e3
3,1,true,10,.25
4,0,False,9,7
"""

# Any text of a cell, also with quotes and line breaks, that UTF-8 can hold.
CELLS = st.text(st.characters(codec="utf-8"), max_size=4)


class TablesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enter_context(tempfile.TemporaryDirectory())
    self.path = Path(folder) / "table.csv"

  def write(self, content):
    if isinstance(content, str):
      content = content.encode("utf-8")
    self.path.write_bytes(content)

  def read(self, content, **options):
    self.write(content)
    return sources.read(f"csv:{self.path}", SourceOptions(**options), 0)

  def error(self, content, **options):
    with self.assertRaises(ConfigError) as caught:
      self.read(content, **options)
    self.assertNotIn("\n", str(caught.exception))
    return str(caught.exception)

  @parameterized.parameters(
      TABLE,
      TABLE.replace("\n", "\r\n"),
      TABLE.replace("\n", "\n\n"),
      TABLE.replace(",", " , "),
      TABLE.replace("2,2,0", "2,2.0,0").replace("4,0,", "4,0.0,"),
      TABLE.replace("age", '"age"').replace("\n1,", '\n"1",').rstrip(),
  )
  def test_columns(self, content):
    """In whatever form programs write a table."""
    samples = self.read(content, client_column="site")
    self.assertEqual(samples.features.dtype, np.float32)
    self.assertEqual(samples.features.ctypes.data % 64, 0)
    self.assertEqual(
        samples.features.tolist(), [[1, 0.5], [2, -1000], [3, 0.25], [4, 7]]
    )
    self.assertEqual(samples.labels.tolist(), [0, 2, 1, 0])
    self.assertEqual(samples.is_train.tolist(), [True, False, True, False])
    self.assertEqual(samples.owner_names.tolist(), [9, 10])
    self.assertEqual(samples.owners.tolist(), [1, 0, 1, 0])

  def test_a_mark_of_utf_8_is_no_part_of_a_name(self):
    samples = self.read("\ufefflabel,x\n1,5\n" + "0,6\n" * 4)
    self.assertEqual(samples.labels.tolist(), [1, 0, 0, 0, 0])

  def test_clients(self):
    """Without the flag the column is a feature."""
    self.write(TABLE)
    options = SourceOptions(client_column="site")
    federated = data.load(
        f"csv:{self.path}", Partition("natural", min_samples=2), options
    )
    self.assertEqual(federated.client_names.tolist(), ["10"])
    self.assertEqual(federated.test_clients.tolist(), [-1, -1])
    self.assertEqual(self.read(TABLE).features.shape, (4, 3))

  def test_names_become_classes_in_sorted_order(self):
    content = TABLE.replace("label", "kind").replace(",0,1,", ",iris,1,")
    samples = self.read(content, label_column="kind")
    # Sorted: "0", "1", "2", "iris".
    self.assertEqual(samples.labels.tolist(), [3, 2, 1, 0])

  def test_names_of_clients(self):
    """One id that is no whole number makes all of them texts."""
    content = TABLE.replace(",9,-1e3", ",Zürich,-1e3")
    samples = self.read(content, client_column="site")
    self.assertEqual(samples.owner_names.tolist(), ["10", "9", "Zürich"])
    self.assertEqual(samples.owners.tolist(), [0, 2, 0, 1])

  def test_a_fifth_is_held_out(self):
    rows = "".join(f"{i},{i % 3}\n" for i in range(50))
    samples = self.read("x,label\n" + rows)
    self.assertEqual(samples.is_train.sum(), 40)

  @parameterized.parameters(1, 3, 7, 4096)
  def test_blocks(self, block):
    """Law: the rows are in order, however many are read together."""
    rows = "".join(f"{i},{i % 3}\n" for i in range(21))
    with mock.patch.object(tables, "_BLOCK", block):
      samples = self.read("x,label\n" + rows)
    self.assertEqual(samples.features[:, 0].tolist(), list(range(21)))

  @parameterized.named_parameters(
      ("number", ("3,1,true", "x3,1,true"), "row 4, column 'age'", "'x3'"),
      ("empty", ("3,1,true", ",1,true"), "row 4, column 'age'", "not ''"),
      ("nan", (",7\n", ",nan\n"), "row 5, column 'height'", "'nan'"),
      ("inf", (",7\n", ",inf\n"), "row 5, column 'height'", "finite"),
      ("large", (",7\n", ",1e39\n"), "row 5, column 'height'", "'1e39'"),
      ("short", (",9,7\n", ",9\n"), "row 5: has 4 cells, the header 5"),
      ("long", (",9,7\n", ",9,7,\n"), "row 5: has 6 cells, the header 5"),
      ("label", ("1,0,1", "1,2.5,1"), "row 2, column 'label'", "'2.5'"),
      ("no_label", ("1,0,1", "1,,1"), "row 2, column 'label'", "not ''"),
      ("negative", ("1,0,1", "1,-1,1"), "label must lie in 0 to 999"),
      ("train", ("true", "yes"), "row 4, column 'is_train'", "'yes'"),
      ("all_train", ("0,9,-1e3", "1,9,-1e3"), ""),
      ("client", (",10,.25", ",,.25"), "row 4, column 'site'", "not ''"),
      ("twice", ("age", "height"), "row 1", "'height' twice"),
      ("quote", (",7\n", ',"7\n'), "CSV file in UTF-8"),
      ("semicolons", (",", ";"), "--label_column=label", "age;label;is_train"),
      ("header", (TABLE, "age,label,site\n"), "must hold samples"),
      ("nothing", (TABLE, ""), "must begin with a row of column names"),
  )
  def test_refused(self, change, *words):
    content = TABLE.replace(*change)
    if not words[0]:
      content = content.replace("False", "1")
      words = ("is_train must mark both",)
    error = self.error(content, client_column="site")
    for word in (*words, f"--dataset=csv:{self.path}"):
      self.assertIn(word, error)

  def test_flags_that_name_no_column(self):
    for flag in ("label_column", "client_column"):
      self.assertStartsWith(
          self.error(TABLE, **{flag: "none"}),
          f"--{flag}=none: must be a column of --dataset=csv:{self.path}, one "
          "of age, label, is_train, site, height",
      )

  def test_only_labels(self):
    self.assertIn("features must be numbers", self.error("label\n1\n0\n"))

  @parameterized.parameters(b"\xff\xfe", b"age,label\n\xff,1\n")
  def test_not_utf_8(self, content):
    self.assertIn("must be a CSV file in UTF-8", self.error(content))

  def test_no_file(self):
    for place in (self.path, self.path.parent):
      with self.assertRaisesRegex(ConfigError, "must be a CSV file"):
        data.load(f"csv:{place}")

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.lists(
          st.tuples(
              st.floats(width=32, allow_nan=False, allow_infinity=False),
              st.floats(width=32, allow_nan=False, allow_infinity=False),
              st.integers(0, 999),
              st.text(
                  st.characters(codec="utf-8", exclude_characters="\0"),
                  min_size=1,
                  max_size=4,
              ).map(str.strip).filter(bool),
              st.booleans(),
          ),
          min_size=2,
          max_size=20,
      )
  )
  def test_reads_what_was_written(self, rows):
    """Law: Python's own writer and this reader agree, bit for bit."""
    rows = [(*rows[0][:4], True), (*rows[1][:4], False), *rows[2:]]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["u", "v", "label", "client", "is_train"])
    writer.writerows([*row[:4], int(row[4])] for row in rows)
    samples = self.read(file.getvalue(), client_column="client")
    np.testing.assert_array_equal(
        samples.features, np.array([row[:2] for row in rows], np.float32)
    )
    self.assertEqual(samples.labels.tolist(), [row[2] for row in rows])
    names = samples.owner_names[samples.owners].astype(str).tolist()
    self.assertEqual(names, [row[3] for row in rows])
    self.assertEqual(samples.is_train.tolist(), [row[4] for row in rows])

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.binary(max_size=60)
      | st.lists(st.lists(CELLS, min_size=3, max_size=3), max_size=4)
      | st.tuples(st.integers(0, len(TABLE) - 1), st.binary(max_size=1)),
      st.sampled_from((None, "site", "age", "label")),
  )
  def test_any_file(self, content, client_column):
    """Any bytes, any cells, or a table with a byte changed or cut off."""
    if isinstance(content, list):
      file = io.StringIO(newline="")
      csv.writer(file).writerows([["label", "age", "site"], *content])
      content = file.getvalue()
    elif isinstance(content, tuple):
      at, byte = content
      table = TABLE.encode("utf-8")
      content = table[:at] + (byte and byte + table[at + 1 :])
    self.write(content)
    samples_or_one_line(
        self, f"csv:{self.path}", client_column=client_column
    )


if __name__ == "__main__":
  absltest.main()
