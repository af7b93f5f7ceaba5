"""LEAF's folders, by what a test writes into them."""

import io
import json
import os
import tempfile
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import ijson
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.data import federated as data
from agsfl.data.partitions import Partition
from agsfl.data.sources import leaf, shallow
from agsfl.errors import ConfigError
from tests.data.helpers import samples_or_one_line

# The alphabet of LEAF's Shakespeare, as LEAF has it.
LETTERS = (
    "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]"
    "abcdefghijklmnopqrstuvwxyz}"
)


def user(*rows, labels=None):
  """A user's object: rows of numbers, such as four pixels."""
  labels = list(range(len(rows))) if labels is None else labels
  return {"x": [list(row) for row in rows], "y": labels}


def document(users, /, **changes):
  """A LEAF file of these users."""
  return {
      "users": list(users),
      "num_samples": [len(of["y"]) for of in users.values()],
      "user_data": users,
      **changes,
  }


def ink(*levels):
  """Pixels as LEAF writes them, of levels from 0 to 255."""
  return [level / 255.0 for level in levels]


ANN = user(ink(0, 255, 1, 2), ink(3, 4, 5, 6), labels=[7, 1])
BOB = user(ink(9, 8, 7, 6), labels=[2])
CY = user(ink(10, 20, 30, 40), ink(50, 60, 70, 80), labels=[3, 3])
TESTS = {
    "bob, jr.": user(ink(11, 12, 13, 14), labels=[5]),
    "ann": user(ink(15, 16, 17, 18), labels=[0]),
    "cy": user(ink(19, 20, 21, 22), labels=[1]),
}

# By user: training and test samples, levels with their label.
WANTED = {
    "ann": [
        [([0, 255, 1, 2], 7), ([3, 4, 5, 6], 1)],
        [([15, 16, 17, 18], 0)],
    ],
    "bob, jr.": [[([9, 8, 7, 6], 2)], [([11, 12, 13, 14], 5)]],
    "cy": [
        [([10, 20, 30, 40], 3), ([50, 60, 70, 80], 3)],
        [([19, 20, 21, 22], 1)],
    ],
}


class LeafTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    self.place = Path(self.folder)
    self.write("train", "a", document({"ann": ANN, "bob, jr.": BOB}))
    self.write("train", "b", document({"cy": CY}))
    self.write("test", "a", document(TESTS))

  def write(self, split, name, content):
    path = self.place / split / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")

  def load(self):
    return data.load(f"leaf:{self.folder}", Partition("natural"))

  def clients(self):
    """What was loaded, in the form of `WANTED`."""
    federated = self.load()
    clients = federated.clients
    images = clients.features.reshape(len(clients.features), -1)
    ends = clients.starts + clients.counts
    found = {}
    for client, name in enumerate(federated.client_names):
      train = clients.order[clients.starts[client] : ends[client]]
      test = federated.test_rows[federated.test_clients == client]
      found[str(name)] = [
          [(images[row].tolist(), int(clients.labels[row])) for row in rows]
          for rows in (train, test)
      ]
    return found

  def test_users_keep_their_samples(self):
    """Law: the bytes, labels and splits are the files', user by user."""
    self.assertEqual(self.clients(), WANTED)
    images = self.load().clients.features
    self.assertEqual(images.dtype, np.uint8)
    self.assertEqual(images.shape, (8, 2, 2, 1))
    self.assertEqual(images.ctypes.data % 64, 0)

  def test_keys_in_any_order(self):
    content = document({"cy": CY}, hierarchies=["x"])
    content["user_data"] = {"cy": {"y": CY["y"], "x": CY["x"]}}
    self.write("train", "b", dict(reversed(content.items())))
    self.assertEqual(self.clients(), WANTED)

  def test_other_numbers_stay_floats(self):
    """One pixel that is no multiple of 1/255, after others that are."""
    self.write("train", "b", document({
        "cy": user([0.5, 0.25, -1.0, 2.0], ink(50, 60, 70, 80), labels=[3, 3])
    }))
    found = self.clients()
    want = json.loads(json.dumps(WANTED))
    want["cy"][0][0][0] = [127.5, 63.75, -255.0, 510.0]
    for name, parts in want.items():
      for got, part in zip(found[name], parts, strict=True):
        for (pixels, label), (levels, own) in zip(got, part, strict=True):
          self.assertEqual(label, own)
          np.testing.assert_allclose(pixels, np.array(levels) / 255, 1e-6)

  def test_texts_are_tokens(self):
    """Law: a token is a place in LEAF's own alphabet, from files or cache."""
    self.write_alone(
        {"mab/queen": {"x": ["To be", "o be\n"], "y": ["\n", "}"]}},
        {"mab/queen": {"x": [" be\n}"], "y": ["["]}},
    )
    for read_again in (False, True):
      with mock.patch.object(
          ijson, "kvitems",
          side_effect=AssertionError if read_again else ijson.kvitems,
      ):
        federated = self.load()
      clients = federated.clients
      self.assertEqual(federated.task, "next_token")
      self.assertEqual(federated.num_classes, 80)
      self.assertEqual(clients.features.dtype, np.int8)
      self.assertEqual(
          ["".join(LETTERS[i] for i in row) for row in clients.features],
          ["To be", "o be\n", " be\n}"],
      )
      self.assertEqual("".join(LETTERS[i] for i in clients.labels), "\n}[")
      self.assertEqual(federated.test_rows.tolist(), [2])

  def test_other_characters_are_the_last_letter(self):
    """As Python takes the place -1, which LEAF gives their labels."""
    texts = {"a": {"x": ["a\u00e9\u4e2d", "abc"], "y": ["\u00e9", "b"]}}
    self.write_alone(texts, texts)
    with self.assertLogs(level="WARNING") as logged:
      clients = self.load().clients
    (line,) = logged.output
    self.assertIn("6 of 16 characters are not in LEAF's alphabet", line)
    find = lambda text: [LETTERS.find(letter) % 80 for letter in text]
    wanted = [find("a\u00e9\u4e2d"), find("abc")]
    self.assertEqual(clients.features.tolist(), wanted * 2)
    self.assertEqual(clients.labels.tolist(), find("\u00e9b\u00e9b"))

  @parameterized.parameters(60, 5)
  def test_rows_of_numbers_stay_rows(self, width):
    """LEAF's Synthetic; no square of pixels, and exact also in 0 to 1."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(4, width)).astype(np.float32)
    rows[0] = rng.integers(0, 256, width) / np.float32(255)
    self.write_alone(
        {"f_00000": user(*rows[:3].tolist())},
        {"f_00000": user(*rows[3:].tolist())},
    )
    for _ in range(2):  # the second time from the cache
      clients = self.load().clients
      self.assertEqual(clients.features.dtype, np.float32)
      np.testing.assert_array_equal(clients.features, rows)
      self.assertEqual(clients.labels.tolist(), [0, 1, 2, 0])

  def test_second_load_reads_no_json(self):
    first = self.clients()
    with mock.patch.object(ijson, "kvitems", side_effect=AssertionError):
      self.assertEqual(self.clients(), first)

  @parameterized.parameters("changed", "more", "fewer", "renamed")
  def test_a_stale_cache_is_not_used(self, how):
    self.load()
    self.assertTrue((self.place / "agsfl_cache.npz").exists())
    want = dict(WANTED)
    if how == "changed":
      changed = user(ink(10, 20, 30, 41), ink(50, 60, 70, 80), labels=[3, 3])
      self.write("train", "b", document({"cy": changed}))
      os.utime(self.place / "train" / "b.json", ns=(1, 1))
      want["cy"] = [
          [([10, 20, 30, 41], 3), ([50, 60, 70, 80], 3)], want["cy"][1]
      ]
    if how == "more":
      self.write("train", "c", document({"cy": BOB}))
      want["cy"] = [[*want["cy"][0], ([9, 8, 7, 6], 2)], want["cy"][1]]
    if how == "fewer":
      (self.place / "train" / "b.json").unlink()
      del want["cy"]
      tests = {name: of for name, of in TESTS.items() if name != "cy"}
      self.write("test", "a", document(tests))
    if how == "renamed":
      os.rename(self.place / "train/b.json", self.place / "train/0.json")
    self.assertEqual(self.clients(), want)

  def test_a_link_to_nothing(self):
    (self.place / "train" / "z.json").symlink_to(self.place / "none")
    with self.assertRaisesRegex(ConfigError, "z.json: cannot be read"):
      self.load()

  @parameterized.parameters("user", "users", "labels", "no_text")
  def test_a_cache_with_other_content_is_made_anew(self, key):
    """The stamp alone does not make it whole."""
    self.load()
    path = self.place / "agsfl_cache.npz"
    with np.load(path) as file:
      held = dict(file)
    if key == "labels":
      held[key] = held[key] - 9
    elif key == "no_text":
      held["users"] = np.full(3, 0x7FFFFFFF, "<u4").view("<U1")
    else:
      held[key] = held[key][:1]
    np.savez(path, **held)
    self.assertEqual(self.clients(), WANTED)

  def test_a_cache_with_any_error_is_made_anew(self):
    self.load()
    with mock.patch.object(leaf.npz, "read_arrays", side_effect=SystemError):
      self.assertEqual(self.clients(), WANTED)

  @parameterized.parameters(b"", b"no archive", None)
  def test_a_broken_cache_is_made_anew(self, content):
    self.load()
    path = self.place / "agsfl_cache.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] if content is None else content)
    self.assertEqual(self.clients(), WANTED)
    self.assertEqual(self.clients(), WANTED)

  def test_a_folder_that_cannot_be_written(self):
    with mock.patch.object(Path, "open", refuse_writing(Path.open)):
      self.assertEqual(self.clients(), WANTED)
    self.assertFalse((self.place / "agsfl_cache.npz").exists())
    self.assertLen(list(self.place.iterdir()), 2)

  # A file's content, and words of the message.
  @parameterized.named_parameters(
      ("empty", "", "b.json", "JSON"),
      ("text", "users", "b.json", "JSON"),
      ("truncated", json.dumps(document({"cy": CY}))[:-9], "b.json", "JSON"),
      (
          "truncated_early", json.dumps(document({"cy": CY}))[:20], "b.json",
          "JSON",
      ),
      ("list", [1, 2], "b.json", "num_samples"),
      ("deep", "[" * 10**5, "b.json", "JSON", "16 levels"),
      (
          "deep_in_a_user", json.dumps(document({"cy": CY})).replace(
              "[3, 3]", '{"y":' * 10**5
          ), "b.json", "JSON", "16 levels",
      ),
      ("no_sizes", {"user_data": {"cy": CY}}, "b.json", "num_samples"),
      (
          "wrong_sizes", document({"cy": CY}, num_samples=[3]), "b.json",
          "num_samples", "3",
      ),
      (
          "too_small", document({"cy": CY}, num_samples=[1]), "b.json",
          "num_samples", "1",
      ),
      (
          "negative_size", document({"cy": CY}, num_samples=[-2]), "b.json",
          "num_samples",
      ),
      (
          "sizes_swapped",
          document({"cy": CY, "dan": BOB}, num_samples=[1, 2]),
          "b.json", "'cy'", "num_samples says 1",
      ),
      (
          "sizes_in_sum",
          document(dict.fromkeys("abc", CY), num_samples=[300] * 3),
          "b.json", "num_samples: must sum to at most", "900",
      ),
      ("sizes_few", document({"cy": CY}, num_samples=[]), "num_samples: must"),
      ("users_twice", document({"cy": CY}, users=["cy"] * 2), "num_samples: "),
      (
          "users_of_numbers", document({"cy": CY}, users=[5]), "b.json",
          "users: must be names", "'5'",
      ),
      ("users_others", document({"cy": CY}, users=["dan"]), "'cy'", "'users'"),
      (
          "user_twice", json.dumps(document({"cy": CY, "di": CY})).replace(
              '"di": {', '"cy": {'
          ), "b.json", "'cy'", "once",
      ),
      ("nul", document({"cy": CY, "cy\0": CY}), "b.json", "NUL", r"'cy\x00'"),
      ("no_data", document({"cy": CY}, user_data={}), "b.json", "num_samples"),
      (
          "no_x", document({"cy": {"y": [1]}}), "b.json", "'cy'", "x",
          "missing",
      ),
      (
          "no_y", document({}, user_data={"cy": {"x": CY["x"]}}), "b.json",
          "'cy'", "y", "missing",
      ),
      ("no_object", document({}, user_data={"cy": [1]}), "b.json", "'cy'"),
      (
          "uneven",
          document({"cy": user([0, 0, 0, 0], [0, 0, 0], labels=[1, 2])}),
          "b.json", "'cy'", "x", "numbers",
      ),
      (
          "lengths", document({"cy": user([0, 0, 0, 0], labels=[1, 2])}),
          "b.json", "'cy'", "x has 1", "y 2",
      ),
      (
          "words", document({"cy": {"x": ["a"], "y": [1]}}), "b.json", "'cy'",
          "x", "numbers",
      ),
      (
          "word_labels", document({"cy": {"x": [[0, 0, 0, 0]], "y": ["a"]}}),
          "b.json", "'cy'", "y", "numbers",
      ),
      (
          "label_floats", document({"cy": user([0, 0, 0, 0], labels=[1.5])}),
          "b.json", "'cy'", "y", "whole",
      ),
      (
          "negative_label", document({"cy": user([0, 0, 0, 0], labels=[-1])}),
          "b.json", "'cy'", "y: must lie in 0 to 999, not -1",
      ),
      (
          "large_label", document({"cy": user([0, 0, 0, 0], labels=[1000])}),
          "b.json", "'cy'", "y: must lie in 0 to 999, not 1000",
      ),
      (
          "endless_label", json.dumps(document({"cy": CY})).replace(
              "[3, 3]", f"[3, 1{'0' * 5000}]"
          ), "b.json",
      ),
      (
          "huge_label", document({"cy": user([0, 0, 0, 0], labels=[10**30])}),
          "b.json",
      ),
      (
          "nan", document({"cy": user([0, float("nan"), 0, 0])}), "b.json",
          "JSON",
      ),
      (
          "large", json.dumps(document({"cy": user([0, 1, 0, 0])})).replace(
              "[0, 1, 0, 0]", "[0, 1e999, 0, 0]"
          ), "b.json",
      ),
      (
          "fewer_numbers", document({"cy": user([0, 0, 0])}), "b.json", "'cy'",
          "x: samples of 3 numbers, others have 4 numbers",
      ),
      (
          "text_among_images", document({"cy": {"x": ["abcd"], "y": ["e"]}}),
          "b.json", "'cy'",
          "x: samples of 4 characters, others have 4 numbers",
      ),
      (
          "text_lengths",
          document({"cy": {"x": ["abc", "ab"], "y": ["d", "e"]}}), "b.json",
          "'cy'", "x: must be texts of one length",
      ),
      ("text_empty", document({"cy": {"x": [""], "y": ["a"]}}), "x: must be"),
      (
          "text_count", document({"cy": {"x": ["ab"], "y": ["c", "d"]}}),
          "b.json", "'cy'", "x has 1 samples, y 2",
      ),
      (
          "text_long_label", document({"cy": {"x": ["ab"], "y": ["cd"]}}),
          "b.json", "'cy'", "y: must be a character for each sample",
      ),
      (
          "text_no_y", document({}, user_data={"cy": {"x": ["ab"]}}), "b.json",
          "'cy'", "y: is missing",
      ),
      ("y_column", document({"cy": user([0] * 4, labels=[[1]])}), "y: must be"),
      (
          "y_number", document({}, user_data={"cy": {"x": [[0] * 4], "y": 5}}),
          "y: must be one",
      ),
      ("x_number", document({"cy": {"x": 5, "y": [1]}}), "x: must be rows of"),
      ("x_null", document({"cy": {"x": None, "y": [1]}}), "x: must be"),
      ("x_texts", document({"cy": {"x": [["0"] * 4], "y": [1]}}), "x: must be"),
      ("x_empty", document({"cy": {"x": [[], []], "y": [1, 2]}}), "x: must be"),
      ("sizes_huge", document({"cy": CY}, num_samples=[10**15]), "num_samples"),
      ("sizes_float", document({"cy": CY}, num_samples=[2.5]), "num_samples: "),
      ("sizes_text", document({"cy": CY}, num_samples=["2"]), "num_samples: "),
      ("overflow", document({"cy": user([1e39] * 4)}), "b.json", "finite"),
      ("long_name", document({"c" * 2000: user([0] * 4)}), "1000 letters"),
      (
          "scalars", document({"cy": {"x": [1, 2], "y": [1, 2]}}), "b.json",
          "'cy'", "square",
      ),
      (
          "other_size", document({"cy": user([0] * 9)}), "b.json", "'cy'",
          "9", "4",
      ),
  )
  def test_malformed(self, content, *words):
    self.write("train", "b", content)
    with self.assertRaises(ConfigError) as caught:
      self.load()
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--dataset=leaf:{self.folder}: ")
    self.assertNotIn("\n", problem)
    for word in words:
      self.assertIn(word, problem)
    self.assertFalse((self.place / "agsfl_cache.npz").exists())

  @parameterized.product(size=(1, 2, 3, 5, 1000), levels=(16, 17))
  def test_brackets_in_text_are_no_levels(self, size, levels):
    """Wherever a piece of the file ends."""
    text = json.dumps({'[{\\"[' * 9: ["]" * 20, '\\"', "[\\\\"], "é\\": 1.5})
    content = b"[" * (levels - 2) + text.encode() + b"]" * (levels - 2)
    file = shallow.Shallow(io.BytesIO(content))
    read = lambda: b"".join(iter(lambda: file.read(size), b""))
    if levels == 16:
      self.assertEqual(read(), content)
    else:
      with self.assertRaisesRegex(ijson.JSONError, "16 levels"):
        read()

  def test_a_user_in_test_alone(self):
    """LEAF's split by user: such samples are in the global test set."""
    self.write("test", "b", document({"dan": BOB}))
    self.assertEqual(self.clients(), WANTED)
    federated = self.load()
    (row,) = federated.test_rows[federated.test_clients == -1]
    features = federated.clients.features[row].reshape(-1)
    self.assertEqual(features.tolist(), [9, 8, 7, 6])

  def test_whole_floats_are_labels(self):
    """As FedProx writes them."""
    self.write("train", "b", document({
        "cy": {**CY, "y": [3.0, 3.0]}
    }))
    self.assertEqual(self.clients(), WANTED)

  @parameterized.parameters("grey", "colour")
  def test_rgba_is_refused(self, kind):
    """Rows of four numbers for a pixel look like images of twice the side."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 4))
    if kind == "grey":
      pixels[..., 1:] = pixels[..., :1]
    else:
      pixels[..., 3] = 255
    self.write_rows(pixels.reshape(3, -1))
    with self.assertRaisesRegex(ConfigError, "256 numbers look like RGBA of"):
      self.load()

  @parameterized.parameters("random", "one_colour", "thin")
  def test_what_looks_like_rgba_in_part_is_read(self, kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 64, 4))
    if kind == "one_colour":
      pixels[...] = 255
    if kind == "thin":  # all but one image could be RGBA
      pixels[:2, :, 3] = 255
    self.write_rows(pixels.reshape(3, -1))
    self.assertEqual(self.load().clients.features.shape, (3, 16, 16, 1))

  def write_rows(self, rows):
    """Two samples for training and one for testing, of levels."""
    rows = [ink(*row.tolist()) for row in rows]
    self.write_alone({"ann": user(*rows[:2])}, {"ann": user(*rows[2:])})

  def write_alone(self, train, test):
    """These users in place of all others."""
    for path in self.place.glob("*/*.json"):
      path.unlink()
    self.write("train", "a", document(train))
    self.write("test", "a", document(test))

  @hypothesis.settings(deadline=None)
  @hypothesis.given(st.data())
  def test_any_file(self, draws):
    """Any JSON, or the end of a file cut off or a byte changed."""
    content = json.dumps(document({"cy": CY})).encode("utf-8")
    kind = draws.draw(st.sampled_from(("values", "bytes", "damage")))
    if kind == "bytes":
      content = draws.draw(st.binary(max_size=99))
    elif kind == "damage":
      at = draws.draw(st.integers(0, len(content) - 1))
      byte = draws.draw(st.binary(max_size=1))
      content = content[:at] + (byte and byte + content[at + 1 :])
    else:
      number = st.integers(-1, 3) | st.floats() | st.integers()
      value = st.recursive(
          st.none() | st.booleans() | number | st.text(max_size=2),
          lambda inner: st.lists(inner, max_size=4),
          max_leaves=9,
      )
      rows = st.lists(
          st.lists(number, min_size=4, max_size=4), min_size=1, max_size=3
      )
      texts = st.lists(st.text(min_size=1, max_size=2), max_size=3)
      people = st.dictionaries(
          st.text(max_size=2),
          st.fixed_dictionaries({}, optional={
              "x": rows | texts | value,
              "y": st.lists(number, max_size=3) | texts | value,
          }),
          max_size=2,
      )
      users = draws.draw(people)
      sizes = [
          len(of["y"]) if isinstance(of.get("y"), list) else 1
          for of in users.values()
      ]
      content = json.dumps({
          "users": draws.draw(st.just([*users]) | value),
          "num_samples": draws.draw(st.just(sizes) | value),
          "user_data": draws.draw(st.just(users) | value),
      }).encode("utf-8")
    (self.place / "train" / "b.json").write_bytes(content)
    (self.place / "agsfl_cache.npz").unlink(missing_ok=True)
    samples_or_one_line(self, f"leaf:{self.folder}")

  @parameterized.parameters("train", "test")
  def test_no_files(self, split):
    for path in (self.place / split).iterdir():
      path.unlink()
    with self.assertRaisesRegex(ConfigError, rf"{split}/\*.json"):
      self.load()

  def test_users_without_samples(self):
    """LEAF writes none; they are passed over."""
    self.write("train", "c", document({"dan": {"x": [], "y": []}}))
    self.assertEqual(self.clients(), WANTED)

  @parameterized.parameters(
      ([0.0, 1.0, 0.2], [0, 255, 51]),
      ([0.33], None),
      ([-0.004], None),
      ([1.01], None),
  )
  def test_as_bytes(self, pixels, want):
    got = leaf.as_bytes(np.array([pixels], np.float32))
    self.assertEqual(None if got is None else got[0].tolist(), want)


def refuse_writing(path_open):
  def open_or_refuse(path, mode="r", *arguments, **more):
    if "w" in mode:
      raise PermissionError(13, "Permission denied")
    return path_open(path, mode, *arguments, **more)

  return open_or_refuse


if __name__ == "__main__":
  absltest.main()
