"""Small data sets for the tests of this folder."""

import tempfile
from pathlib import Path

import hypothesis.extra.numpy as hypothesis_numpy
import hypothesis.strategies as st
import numpy as np

from agsfl.data import federated as data
from agsfl.data import sources
from agsfl.data.partitions import Partition, assign
from agsfl.data.sources import SourceOptions
from agsfl.errors import ConfigError


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


def any_array():
  """Arrays of any type, of few values."""
  return hypothesis_numpy.arrays(
      st.one_of(
          hypothesis_numpy.scalar_dtypes(),
          hypothesis_numpy.unicode_string_dtypes(max_len=3),
          hypothesis_numpy.byte_string_dtypes(max_len=3),
      ),
      st.one_of(
          st.sampled_from([(20,), (20, 2), (20, 2, 3), (20, 1, 5, 5)]),
          hypothesis_numpy.array_shapes(min_dims=0, min_side=0, max_side=4),
      ),
      fill=st.nothing(),
  )


def samples_or_one_line(test, dataset, **options):
  """Law of all readers: samples of the promised form, or one line.

  Returns:
    The samples, or None.
  """
  try:
    samples = sources.read(dataset, SourceOptions(**options), seed=0)
  except ConfigError as error:
    test.assertLen(str(error).splitlines(), 1)
    test.assertStartsWith(str(error), "--")
    return None
  types = np.uint8, np.float32, np.int8, np.int16, np.int32
  test.assertIn(samples.features.dtype, types)
  test.assertGreater(samples.features.ndim, 1)
  test.assertTrue(np.isfinite(samples.features).all())
  count = len(samples.features)
  test.assertEqual(samples.labels.dtype, np.int32)
  test.assertEqual(samples.is_train.dtype, bool)
  sequences = samples.labels.ndim == 2
  shape = samples.features.shape if sequences else (count,)
  test.assertEqual(samples.labels.shape, shape)
  test.assertEqual(samples.is_train.shape, (count,))
  test.assertGreaterEqual(samples.labels.min(), -1 if sequences else 0)
  test.assertLess(samples.labels.max(), samples.num_classes)
  test.assertEqual(set(samples.is_train.tolist()), {True, False})
  name = "iid"
  if samples.owners is not None:
    test.assertEqual(samples.owners.shape, (count,))
    test.assertLess(samples.owners.max(), len(samples.owner_names))
    name = "natural"
  try:
    rows = assign(samples, Partition(name, 1))
  except ConfigError as error:
    test.assertLen(str(error).splitlines(), 1)
    test.assertStartsWith(str(error), "--partition=natural: its 1 clients")
  else:
    rows.names[0].encode("utf-8")  # raises if it cannot
  return samples
