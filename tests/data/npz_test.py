"""NumPy's npz files, by their laws and by what may be wrong with them."""

import functools
import io
import os
import pickle
import tempfile
import zipfile
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.data import federated as data
from agsfl.data.partitions import Partition
from agsfl.errors import ConfigError
from tests.data.helpers import (
    any_array,
    arrays_of,
    load,
    rows_of,
    samples_or_one_line,
)

SHAPES = ((2, 3), (3, 2, 1), (2, 3, 2))


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
    images = federated.clients.features
    self.assertEqual(images.shape, (7, *shape[:2], (*shape, 1)[2]))
    self.assertEqual(images.dtype, dtype)
    np.testing.assert_array_equal(
        images.reshape(arrays["images"].shape), arrays["images"]
    )
    self.assertEqual(federated.test_rows.tolist(), [6])

  @parameterized.parameters(
      np.uint8, np.int16, np.int64, np.uint64, np.float32, np.float64, ">i8"
  )
  def test_accepts_labels_of_any_type(self, dtype):
    """Floats are whole numbers here."""
    arrays = arrays_of((np.arange(7) % 3).astype(dtype), 1)
    federated = load(arrays, partition="iid", num_clients=1)
    self.assertEqual(federated.clients.labels.tolist(), [0, 1, 2, 0, 1, 2, 0])
    self.assertEqual(federated.clients.labels.dtype, np.int32)

  @parameterized.product(
      dtype=(np.float64, np.float16, ">f4", np.int64, np.uint16, bool),
      shape=((6,), (2, 3), (1, 2, 3, 1, 1)),
      key=("images", "features"),
  )
  def test_brings_features_to_few_types(self, dtype, shape, key):
    """Any shape; whole numbers stay whole; images get an axis of channels."""
    values = np.arange(42).reshape(7, *shape).astype(dtype)
    arrays = arrays_of(np.arange(7) % 3, 1)
    del arrays["images"]
    features = load({**arrays, key: values}, num_clients=3).clients.features
    is_whole = np.dtype(dtype).kind in "iu"
    self.assertEqual(features.dtype, np.int32 if is_whole else np.float32)
    self.assertEqual(features.ctypes.data % 64, 0)
    if key == "images" and len(shape) == 2:
      values = values[..., None]
    np.testing.assert_array_equal(features, values.astype(features.dtype))

  def test_home_folder(self):
    """~ in a path is the user's home."""
    with tempfile.TemporaryDirectory() as folder:
      (Path(folder) / "set.npz").write_bytes(npz())
      with mock.patch.dict(os.environ, HOME=folder):
        federated = data.load("npz:~/set.npz", Partition("natural"))
    self.assertLen(federated.clients.labels, 20)

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
      images = data.load(f"npz:{path}", Partition("iid", 2)).clients.features
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


def huge():
  images = np.ones((20, 2, 3))
  images[19, 1, 2] = 1e39
  return images


def objects(count=20):
  return np.array([None] * count, object)


# What a file holds, and words of the message.
MALFORMED = {
    "no_features": (
        lambda: npz(images=None, pixels=np.ones(3)), "'features'",
        "has labels, is_train, client, pixels",
    ),
    "no_labels": (lambda: npz(labels=None), "labels"),
    "no_is_train": (lambda: npz(is_train=None), "is_train"),
    "images_complex": (
        lambda: npz(images=np.ones((20, 2, 3), complex)), "images",
        "complex128[20, 2, 3, 1]",
    ),
    "images_one_axis": (
        lambda: npz(images=np.ones(20, np.uint8)), "images", "uint8[20]",
    ),
    "images_channels_first": (
        lambda: npz(images=np.ones((20, 3, 8, 8), np.uint8)), "images",
        "[20, 3, 8, 8]", "channels come last",
    ),
    "images_grey_channels_first": (
        lambda: npz(images=np.ones((20, 1, 28, 20), np.uint8)), "images",
        "channels come last",
    ),
    "images_above_float32": (lambda: npz(images=huge()), "images", "finite"),
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
    "labels_between": (lambda: npz(labels=np.full(20, 2.5)), "labels", "2.5"),
    "labels_nan": (lambda: npz(labels=np.full(20, np.nan)), "labels", "nan"),
    "labels_inf": (lambda: npz(labels=np.full(20, np.inf)), "labels", "inf"),
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
        lambda: npz(**{k: v[:0] for k, v in good().items()}), "samples",
    ),
    "empty": (lambda: b"",),
    "text": (lambda: b"images, labels\n1, 2\n",),
    "truncated_early": (lambda: npz()[:3],),
    "truncated": (lambda: npz()[: len(npz()) // 2],),
    "truncated_late": (lambda: npz()[:-1],),
    "npy": (lambda: npy(np.ones((20, 2, 3), np.uint8)),),
    "npy_objects": (lambda: npy(objects()),),
    "zip_of_text": (lambda: members(readme="hello"), "features"),
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
    np.testing.assert_array_equal(
        noted.clients.features, plain.clients.features
    )

  @hypothesis.settings(deadline=None)
  @hypothesis.given(st.booleans(), st.booleans(), st.data())
  def test_any_damage(self, compressed, text, draws):
    """A byte changed, or the end cut off."""
    content = bytearray(whole(compressed, text))
    at = draws.draw(st.integers(0, len(content) - 1))
    if draws.draw(st.booleans()):
      content[at] ^= draws.draw(st.integers(1, 255))
    else:
      del content[at:]
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      path.write_bytes(content)
      samples_or_one_line(self, f"npz:{path}")

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.dictionaries(
          st.sampled_from(
              ("images", "features", "labels", "is_train", "client", "writer")
          ),
          any_array(),
      )
  )
  def test_any_arrays(self, changes):
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "set.npz"
      np.savez(path, **{**good(), **changes})
      samples = samples_or_one_line(self, f"npz:{path}")
    if not changes:
      self.assertIsNotNone(samples)


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

if __name__ == "__main__":
  absltest.main()
