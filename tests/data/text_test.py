"""Texts as windows of characters, by what a test writes into files."""

import itertools
import tempfile
from pathlib import Path
from pydoc_data import topics

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.data import federated as data
from agsfl.data import sources
from agsfl.data.partitions import Partition
from agsfl.data.samples import checked
from agsfl.data.sources import SourceOptions, characters
from agsfl.errors import ConfigError
from tests.data.helpers import samples_or_one_line

ROMEO = "But soft! What light\nthrough yonder window?\n"
JULIET = "O Romeo, Romeo!\nWherefore art thou Romeo?\n"


class WindowsTest(parameterized.TestCase):
  """The laws of windows, with texts in Python as the oracle."""

  def check(self, samples, documents, length):
    """Every character but the first is the label of one place."""
    samples = checked(samples)
    vocabulary = sorted(set("".join(documents.values())))
    long = [name for name in sorted(documents) if len(documents[name]) > length]
    self.assertEqual(samples.num_classes, len(vocabulary))
    self.assertEqual(samples.owner_names.tolist(), long)
    self.assertEqual(samples.features.shape, samples.labels.shape)
    self.assertEqual(samples.features.shape[1], length)
    for client, name in enumerate(long):
      text, rows = documents[name], np.flatnonzero(samples.owners == client)
      windows = [
          "".join(vocabulary[i] for i in samples.features[row]) for row in rows
      ]
      pairs = [
          (window[place], vocabulary[label])
          for window, row in zip(windows, rows, strict=True)
          for place, label in enumerate(samples.labels[row])
          if label >= 0
      ]
      self.assertEqual(pairs, list(itertools.pairwise(text)))
      # Only the last window begins before the end of another.
      for number, window in enumerate(windows[:-1]):
        self.assertEqual(window, text[number * length : (number + 1) * length])
      self.assertEqual(windows[-1], text[-1 - length : -1])
      # The end of the text is for testing, so no label is in both parts.
      held = max(1, len(rows) // 5) if len(rows) > 1 else 0
      self.assertEqual(
          samples.is_train[rows].tolist(),
          [place < len(rows) - held for place in range(len(rows))],
      )

  @hypothesis.given(
      st.dictionaries(
          st.text("ab/", min_size=1, max_size=3),
          st.text("ab\né\0\U0001f600", max_size=40),
          max_size=4,
      ),
      st.integers(1, 7),
  )
  def test_any_documents(self, documents, length):
    longest = max(map(len, documents.values()), default=0)
    if longest > length + 1:
      samples = characters.samples_of("--dataset=a", documents, length)
      self.check(samples, documents, length)
    else:
      with self.assertRaisesRegex(ConfigError, r"^--[^\n]+ text of [^\n]+$"):
        characters.samples_of("--dataset=a", documents, length)

  @parameterized.parameters((128, np.int8), (129, np.int16))
  def test_small_types(self, count, dtype):
    """Law: the smallest signed type that holds all tokens."""
    documents = {"a": "".join(map(chr, range(count)))}
    samples = characters.samples_of("--dataset=a", documents, 9)
    self.assertEqual(samples.features.dtype, dtype)
    self.check(samples, documents, 9)

  def test_short_texts_are_counted_in_one_warning(self):
    documents = {"a": "abcabcabc", "b": "xyz", "c": ""}
    with self.assertLogs(level="WARNING") as logged:
      samples = characters.samples_of("--dataset=a", documents, 3)
    (line,) = logged.output
    self.assertIn("2 of 3 texts are left out, for they have less than 4", line)
    self.check(samples, documents, 3)

  def test_topics_of_python(self):
    samples = sources.read("topics", SourceOptions(sequence_length=100), 0)
    self.check(samples, topics.topics, 100)


class TextTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    self.place = Path(self.folder)

  def write(self, name, content):
    path = self.place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
      content = content.encode("utf-8")
    path.write_bytes(content)

  def texts(self, name="", length=5, **options):
    """By client its text, put together again without its first character."""
    options = SourceOptions(sequence_length=length, **options)
    samples = sources.read(f"text:{self.place / name}", options, 0)
    vocabulary = sorted(set("".join(self.contents)))
    owners, names = samples.owners, samples.owner_names
    if owners is None:
      owners, names = np.zeros(len(samples.labels), np.int32), [None]
    return {
        name: "".join(
            vocabulary[i] for i in samples.labels[owners == client].flat
            if i >= 0
        )
        for client, name in enumerate(names)
    }

  def test_files_of_a_folder_are_clients(self):
    self.contents = ROMEO, JULIET
    self.write("plays/romeo.v2.txt", b"\xef\xbb\xbf" + ROMEO.encode())
    self.write("juliet.txt", JULIET.replace("\n", "\r\n"))
    for passed_over in ("notes.md", ".hidden.txt", ".git/head.txt"):
      self.write(passed_over, b"\xff of no client")
    (self.place / "folder.txt").mkdir()
    self.assertEqual(
        self.texts(), {"juliet": JULIET[1:], "plays/romeo.v2": ROMEO[1:]}
    )

  def test_a_file_by_itself_has_no_clients(self):
    """Its windows go to any number of clients by iid."""
    self.contents = (ROMEO,)
    self.write("romeo", ROMEO)
    self.assertEqual(self.texts("romeo"), {None: ROMEO[1:]})
    name, options = f"text:{self.place / 'romeo'}", SourceOptions(
        sequence_length=5
    )
    federated = data.load(name, Partition("iid", 3), options)
    self.assertCountEqual(federated.clients.counts, [3, 3, 2])
    with self.assertRaisesRegex(ConfigError, "natural: .* has no client ids"):
      data.load(name, Partition("natural"), options)

  @parameterized.parameters(
      # Group 1, at the beginning of a line alone; the rest of it is text.
      ("([A-Z]+):( |$)", "", {"ROMEO": ROMEO * 2, "JULIET": JULIET}),
      # The whole match.
      ("[A-Z]+:", "", {"ROMEO:": f" {ROMEO}{ROMEO}", "JULIET:": JULIET}),
      # In a folder, after the file.
      ("(?i)(juliet):$", None, {"play/JULIET": f"{JULIET}ROMEO:\n{ROMEO}"}),
  )
  def test_sections(self, regex, suffix, want):
    self.contents = want.values()
    text = f"Act II\nROMEO: {ROMEO}JULIET:\n{JULIET}ROMEO:\n{ROMEO}"
    self.write("play.txt", text)
    name = "" if suffix is None else "play.txt"
    found = self.texts(name, client_regex=regex)
    self.assertEqual(found, {name: text[1:] for name, text in want.items()})

  @parameterized.parameters(
      ({"a.txt": b"one \xff two"}, {}, r"text:\S+: \S+a.txt: must be a file"),
      ({"a.md": "some text"}, {}, r"text:\S+: must hold files \*.txt"),
      ({"a.txt": "ab"}, {}, r"text:\S+: must hold a text of at least 3"),
      (
          {"a.txt": "abcdefgh", "b.txt": "abc"}, {"length": 7},
          r"--sequence_length=7: must be at most 6, so that .* testing",
      ),
      (
          {"a.txt": ROMEO}, {"client_regex": "(a"},
          r"--client_regex=\(a: must be a regular expression \(missing",
      ),
      (
          {"a.txt": ROMEO}, {"client_regex": "Z+"},
          r"--client_regex=Z\+: matches no line of --dataset=text:",
      ),
      (
          {"a.txt": ROMEO}, {"client_regex": "(x)?"},
          r"--client_regex=\(x\)\?: must match names of 1 to .*/a.txt$",
      ),
  )
  def test_errors_are_one_line(self, written, options, problem):
    for name, content in written.items():
      self.write(name, content)
    self.contents = ()
    with self.assertRaisesRegex(ConfigError, problem) as caught:
      self.texts(**options)
    self.assertNotIn("\n", str(caught.exception))

  def test_another_task_is_refused(self):
    options = SourceOptions(task="regression", sequence_length=9)
    with self.assertRaisesRegex(
        ConfigError, "^--task=regression: must be next_token"
    ):
      data.load("topics", Partition("natural", 2), options)

  def test_two_texts_of_one_name(self):
    """A file's section may have the name of a section of another file."""
    (self.place / "a").mkdir()
    (self.place / "a.txt").write_text("#b/c\n" + 30 * "x")
    (self.place / "a" / "b.txt").write_text("#c\n" + 30 * "y")
    options = SourceOptions(client_regex="#(.*)", sequence_length=9)
    with self.assertRaisesRegex(ConfigError, "two texts of the name 'a/b/c'"):
      data.load(f"text:{self.place}", Partition("natural"), options)

  def test_no_such_file(self):
    with self.assertRaisesRegex(ConfigError, "none: must be a file .*No such"):
      data.load(f"text:{self.place / 'none'}")

  @hypothesis.given(
      st.binary(max_size=60) | st.text(max_size=60),
      st.none() | st.text("ab()?*+\\s.^$[|\n\0", max_size=5),
      st.integers(1, 9),
  )
  def test_any_file(self, content, client_regex, length):
    self.write("any", content)
    samples_or_one_line(
        self,
        f"text:{self.place / 'any'}",
        client_regex=client_regex,
        sequence_length=length,
    )


if __name__ == "__main__":
  absltest.main()
