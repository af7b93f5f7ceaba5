"""Image sets of TensorFlow Datasets, read without TensorFlow."""

import importlib.util
import itertools
import os

import numpy as np

from agsfl.data import aligned
from agsfl.data.samples import Samples, checked, fail, hold_out, in_order
from agsfl.errors import ConfigError

_TEST_SPLITS = ("test", "validation")
# Features that say whose a sample is.
_OWNERS = ("client", "writer")


def femnist(dataset: str, seed: int) -> Samples:
  """LEAF's FEMNIST by writer, once `agsfl.femnist.prepare` has been run."""
  return _read(
      dataset,
      "agsfl_femnist",
      seed,
      unprepared="run python -m experiments.prepare_femnist --leaf_dir=DIR "
      "with LEAF's folder data/femnist/data",
  )


def read(dataset: str, place: str, seed: int) -> Samples:
  """A set with the features image and label, such as cifar10.

  Prepared first if need be, which takes TensorFlow and perhaps a download.
  The test samples are the split test, or validation, or else held out. Images
  are as TFDS has them; its emnist is transposed.

  Args:
    dataset: for messages.
    place: name in the catalogue, such as "emnist/byclass".
    seed: see `samples.hold_out`.

  Returns:
    The samples.

  Raises:
    ConfigError: the set is not there, cannot be prepared, or has other
      features.
  """
  return _read(
      dataset,
      place,
      seed,
      unprepared="TensorFlow prepares it: pip install 'agsfl[tfds]', and start "
      "again",
  )


def _read(dataset, name, seed, unprepared):
  import tensorflow_datasets as tfds  # takes a second

  def refuse(problem):
    fail(dataset, problem)

  ours = dataset == "femnist"
  place = os.path.expanduser(tfds.core.constants.DATA_DIR)
  try:
    builder = _builder(name)
  except tfds.core.registered.DatasetNotFoundError:
    if ours:
      refuse(f"is not prepared in {place}; {unprepared}")
    refuse(f"TensorFlow Datasets has no {name!r}")
  except Exception as error:
    refuse(f"cannot be opened ({error})")
  if not builder.is_prepared():
    if ours or importlib.util.find_spec("tensorflow") is None:
      refuse(f"is not prepared in {place}; {unprepared}")
    try:
      builder.download_and_prepare()
    except Exception as error:
      refuse(f"cannot be prepared ({error})")
  try:
    return checked(_gather(dataset, _splits(dataset, builder), seed))
  except (ConfigError, MemoryError):
    raise
  except NotImplementedError:
    refuse(
        f"lies in {builder.data_dir} in a form that only TensorFlow reads; set "
        "TFDS_DATA_DIR to another folder, and it is prepared anew there"
    )
  except Exception as error:
    # Damage shows in many ways: the archive's, the images', the records'.
    refuse(
        f"cannot be read ({type(error).__name__}: {error}); if it is damaged, "
        f"remove {builder.data_dir}, and it is prepared anew"
    )


def _builder(name):
  """The set as it lies there, or to be prepared as ArrayRecord."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, file_format="array_record")
  except ValueError:  # also where it lies there in another form
    return tfds.builder(name)


def _splits(dataset, builder):
  """The training samples, and those for testing where the set has some."""
  known = builder.info.splits or ("train", "test")
  if "train" not in known:
    fail(dataset, f"has no split 'train' but {', '.join(known)}")
  names = ["train", *[name for name in _TEST_SPLITS if name in known][:1]]
  return [builder.as_data_source(split=name) for name in names]


def _gather(dataset, sources, seed):
  """The records of the splits, one after another, in arrays."""
  total = sum(map(len, sources))
  records = itertools.chain.from_iterable(sources)
  images, labels = None, np.zeros(total, np.int64)
  key, owners, places = None, np.zeros(total, np.int32), {}
  for row, record in enumerate(records):
    for feature in ("image", "label"):
      if feature not in record:
        fail(dataset, f"has no feature {feature!r} but {', '.join(record)}")
    image = np.asarray(record["image"])
    if images is None:
      key = next((key for key in _OWNERS if key in record), None)
      images = aligned.empty((total, *image.shape), image.dtype)
    if image.shape != images.shape[1:]:
      fail(
          dataset,
          f"image {row} has the shape {list(image.shape)}, others "
          f"{list(images.shape[1:])}; all must be of one size",
      )
    images[row] = image
    label = np.asarray(record["label"])
    if label.ndim or label.dtype.kind not in "iu":
      fail(dataset, "label must be one whole number for each image")
    labels[row] = label
    if key is not None:
      owner = record[key]
      if isinstance(owner, bytes):
        owner = owner.decode()
      elif np.ndim(owner) or np.asarray(owner).dtype.kind not in "iu":
        fail(dataset, f"{key} must be one integer or string for each image")
      owners[row] = places.setdefault(owner, len(places))
  if images is None:
    fail(dataset, "holds no samples")
  if len(sources) == 1:
    is_train = hold_out(total, seed)
  else:
    is_train = np.arange(total) < len(sources[0])
  samples = Samples(dataset, images, labels, is_train)
  if key is None:
    return samples
  owners, names = in_order(owners, places)
  return samples._replace(owners=owners, owner_names=names, owner_key=key)
