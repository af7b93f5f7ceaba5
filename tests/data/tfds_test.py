"""TensorFlow Datasets without TensorFlow: mocked sets, and one for real."""

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import tensorflow_datasets as tfds
from absl.testing import absltest, parameterized

from agsfl.data import federated as data
from agsfl.data.partitions import Partition
from agsfl.data.sources import femnist
from agsfl.data.sources import tfds as sources
from agsfl.errors import ConfigError, StoppedError
from tests.data.leaf_test import document, ink, user


@contextlib.contextmanager
def prepared_sets(num_examples=30):
  """Every set of the catalogue is there, with random content."""
  prepared = mock.patch.object(
      tfds.core.DatasetBuilder, "is_prepared", lambda self: True
  )
  with tfds.testing.mock_data(num_examples=num_examples), prepared:
    yield


class CatalogueTest(parameterized.TestCase):

  @parameterized.parameters(
      ("mnist", (28, 28, 1), 10),
      ("fashion_mnist", (28, 28, 1), 10),
      ("emnist/byclass", (28, 28, 1), 62),
      ("cifar10", (32, 32, 3), 10),
      ("cifar100", (32, 32, 3), 100),
  )
  def test_sets_of_the_field(self, name, shape, num_classes):
    """The records' images and labels, training before test."""
    with prepared_sets():
      federated = data.load(f"tfds:{name}", Partition("iid", 5))
      builder = tfds.builder(name, file_format="array_record")
      records = [
          *builder.as_data_source(split="train"),
          *builder.as_data_source(split="test"),
      ]
    clients = federated.clients
    self.assertEqual(clients.features.shape, (60, *shape))
    self.assertEqual(clients.features.dtype, np.uint8)
    self.assertEqual(clients.features.ctypes.data % 64, 0)
    self.assertLess(clients.labels.max(), num_classes)
    for row, record in enumerate(records):
      np.testing.assert_array_equal(clients.features[row], record["image"])
      self.assertEqual(clients.labels[row], record["label"])
    self.assertEqual(federated.test_rows.tolist(), list(range(30, 60)))

  def test_no_classification(self):
    with prepared_sets(), self.assertRaisesRegex(
        ConfigError, "--dataset=tfds:ag_news_subset: .*no feature 'image'"
    ):
      data.load("tfds:ag_news_subset")

  def test_mixed_sizes(self):
    """imagenette's photographs differ in size; mocked ones do, too."""
    with prepared_sets(), self.assertRaisesRegex(ConfigError, "of one size"):
      data.load("tfds:imagenette")

  @parameterized.parameters(
      ("tfds:no_such_set", "no_such_set"),
      ("tfds:mnist/none", "cannot be opened"),
      ("tfds:..", "cannot be opened"),
  )
  def test_names_that_are_none(self, dataset, word):
    with self.assertRaises(ConfigError) as caught:
      data.load(dataset)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--dataset={dataset}: ")
    self.assertIn(word, problem)
    self.assertNotIn("\n", problem)


class PreparedTest(parameterized.TestCase):
  """Sets that are prepared in a folder, or not."""

  def setUp(self):
    super().setUp()
    folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.place, self.leaf = folder / "tfds", folder / "leaf"
    self.enter_context(
        mock.patch.object(tfds.core.constants, "DATA_DIR", str(self.place))
    )

  def write_leaf(self, **users):
    for split, rows in (("train", 3), ("test", 1)):
      (self.leaf / split).mkdir(parents=True, exist_ok=True)
      content = {
          name: user(
              *[ink(*(start + i + np.arange(784)) % 256) for i in range(rows)],
              labels=[(start + i) % 62 for i in range(rows)],
          )
          for name, start in users.items()
      }
      text = femnist.leaf.json.dumps(document(content))
      (self.leaf / split / "all.json").write_text(text)

  @parameterized.parameters(
      ("tfds:mnist", "pip install tensorflow"),
      ("tfds:cifar10", "TensorFlow"),
      ("femnist", "python -m experiments.prepare_femnist --leaf_dir=DIR"),
  )
  def test_not_prepared(self, dataset, command):
    """One line with the command that helps, and no download."""
    absent = mock.patch("importlib.util.find_spec", lambda name: None)
    with absent, self.assertRaises(ConfigError) as caught:
      data.load(dataset)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--dataset={dataset}: is not prepared")
    self.assertIn(command, problem)
    self.assertIn(str(self.place), problem)
    self.assertNotIn("\n", problem)

  def test_femnist_for_real(self):
    """LEAF's folder, prepared, read by its name: writers keep their samples."""
    starts = {"f0": 0, "f1": 100, "f10": 200}
    self.write_leaf(**starts)
    place = femnist.prepare(self.leaf, self.place)
    self.assertEqual(place.parent, self.place / "agsfl_femnist")
    self.assertEqual(femnist.prepare(self.leaf, self.place), place)
    train = tfds.data_source("agsfl_femnist", split="train")
    self.assertLen(train, 9)
    federated = data.load("femnist", Partition("natural"))
    clients = federated.clients
    self.assertEqual(federated.client_names.tolist(), list(starts))
    self.assertEqual(clients.features.shape, (12, 28, 28, 1))
    for client, start in enumerate(starts.values()):
      first = clients.starts[client]
      for rows, offsets in (
          (clients.order[first : first + clients.counts[client]], range(3)),
          (federated.test_rows[federated.test_clients == client], range(1)),
      ):
        got = sorted(
            (int(clients.labels[row]), clients.features[row].tobytes())
            for row in rows
        )
        want = sorted(
            (
                (start + i) % 62,
                ((start + i + np.arange(784)) % 256).astype(np.uint8).tobytes(),
            )
            for i in offsets
        )
        self.assertEqual(got, want)

  def test_femnist_that_is_stopped(self):
    """Law: no writer is read after a signal, and no set is left."""
    self.write_leaf(f0=0, f1=100, f10=200)
    asked = []
    with self.assertRaises(StoppedError):
      femnist.prepare(
          self.leaf,
          self.place,
          should_stop=lambda: asked.append(1) or len(asked) == 2,
      )
    self.assertLen(asked, 2)
    with self.assertRaisesRegex(ConfigError, "is not prepared"):
      data.load("femnist")

  def test_femnist_of_other_files(self):
    """A set made of other files is not used for these."""
    self.write_leaf(f0=0)
    place = femnist.prepare(self.leaf, self.place)
    self.write_leaf(f0=0, f1=100)
    with self.assertRaises(ConfigError) as caught:
      femnist.prepare(self.leaf, self.place)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--leaf_dir={self.leaf}: {place} was ")
    self.assertIn("remove that folder", problem)
    self.assertEqual(
        femnist.prepare(self.leaf, self.place / "other").parent.parent,
        self.place / "other",
    )

  def test_num_samples_count_for_femnist(self):
    self.write_leaf(f0=0)
    path = self.leaf / "train" / "all.json"
    content = femnist.leaf.json.loads(path.read_text())
    path.write_text(femnist.leaf.json.dumps({**content, "num_samples": [2]}))
    with self.assertRaises(ConfigError) as caught:
      femnist.prepare(self.leaf, self.place)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--leaf_dir={self.leaf}: {path}: ")
    self.assertIn("num_samples says 2", problem)
    self.assertNotIn("\n", problem)

  @parameterized.parameters("leaf_dir", "data_dir")
  def test_paths_that_are_no_text(self, name):
    paths = {"leaf_dir": self.leaf, "data_dir": self.place, name: "a\udcff"}
    self.write_leaf(f0=0)
    with self.assertRaisesRegex(ConfigError, f"--{name}=.* text in UTF-8"):
      femnist.prepare(**paths)

  @parameterized.parameters("cut", "short", "gone")
  def test_damaged(self, how):
    """One line that says which folder to remove."""
    self.write_leaf(f0=0, f1=100)
    place = femnist.prepare(self.leaf, self.place)
    (path,) = place.glob("*test.array_record*")
    if how == "gone":
      path.unlink()
    else:
      path.write_bytes(path.read_bytes()[: 100 if how == "short" else 70000])
    with self.assertRaises(ConfigError) as caught:
      data.load("femnist", Partition("natural"))
    self.assertIn(f"remove {place}", str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  @parameterized.parameters(-1, 62)
  def test_labels_out_of_range(self, label):
    for split in ("train", "test"):
      (self.leaf / split).mkdir(parents=True)
      text = femnist.leaf.json.dumps(
          document({"a": user([0] * 784, labels=[label])})
      )
      (self.leaf / split / "all.json").write_text(text)
    with self.assertRaisesRegex(ConfigError, "y: must lie in 0 to 61"):
      femnist.prepare(self.leaf, self.place)

  def test_what_leaf_has_not(self):
    with self.assertRaisesRegex(ConfigError, r"train/\*.json"):
      femnist.prepare(self.leaf, self.place)
    for content in user([0.5] * 784), {"x": ["a" * 784], "y": ["b"]}:
      for split in ("train", "test"):
        (self.leaf / split).mkdir(parents=True, exist_ok=True)
        text = femnist.leaf.json.dumps(document({"a": content}))
        (self.leaf / split / "all.json").write_text(text)
      with self.assertRaisesRegex(ConfigError, "multiples of 1/255"):
        femnist.prepare(self.leaf, self.place)
    with self.assertRaisesRegex(ConfigError, "is not prepared"):
      data.load("femnist")

  @parameterized.parameters(
      # TFDS's own default form.
      ('"array_record"', '"tfrecord"', "only TensorFlow reads; set TFDS_DATA_"),
      ('"train"', '"validation"', "no split 'train' but validation, test$"),
  )
  def test_whole_but_not_to_be_read(self, old, new, problem):
    """What is wrong; and no advice to remove it."""
    self.write_leaf(f0=0)
    path = femnist.prepare(self.leaf, self.place) / "dataset_info.json"
    path.write_text(path.read_text().replace(old, new))
    with self.assertRaisesRegex(ConfigError, problem) as caught:
      data.load("femnist", Partition("natural"))
    self.assertNotIn("remove", str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_too_large_is_not_damaged(self):
    self.write_leaf(f0=0)
    femnist.prepare(self.leaf, self.place)
    with mock.patch.object(
        sources.aligned, "empty", side_effect=MemoryError
    ), self.assertRaises(MemoryError):
      data.load("femnist")


class HoldOutTest(absltest.TestCase):

  def test_sets_without_a_test_split(self):
    """A fifth is held out, by the seed."""
    def only_train(self, split):
      if split != "train":
        raise ValueError(f"Unknown split {split!r}")
      return [
          {
              "image": np.full((2, 2, 1), i, np.uint8),
              "label": np.float32(i % 3),  # whole floats are labels, too
          }
          for i in range(50)
      ]

    splits = property(lambda self: {"train": None})
    with (
        prepared_sets(),
        mock.patch.object(
            tfds.core.DatasetBuilder, "as_data_source", only_train
        ),
        mock.patch.object(tfds.core.DatasetInfo, "splits", splits),
    ):
      one, again, other = (
          data.load("tfds:mnist", Partition("iid", 4, seed=seed))
          for seed in (1, 1, 2)
      )
    self.assertEqual(one.clients.labels.tolist(), [i % 3 for i in range(50)])
    self.assertLen(one.test_rows, 10)
    np.testing.assert_array_equal(one.test_rows, again.test_rows)
    self.assertFalse(np.array_equal(one.test_rows, other.test_rows))


if __name__ == "__main__":
  absltest.main()
