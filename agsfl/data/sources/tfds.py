"""Image sets of TensorFlow Datasets, read without TensorFlow."""

import importlib.util
import itertools
import os

import numpy as np

from agsfl import aligned
from agsfl.data.samples import (
    Names,
    Samples,
    hold_out,
    in_order,
    with_channels,
)
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import ConfigError, refuse, refused

_TEST_SPLITS = ("test", "validation")
# Features with the id of a sample's client.
_OWNERS = ("client", "writer")


def femnist(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """LEAF's FEMNIST by writer, as `femnist.prepare` has written it."""
  del place, options
  return _read(
      f"--dataset={dataset}",
      "agsfl_femnist",
      seed,
      unprepared="run python -m experiments.prepare_femnist --leaf_dir=DIR "
      "with LEAF's folder data/femnist/data",
      preparable=False,
  )


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """A set with the features image and label, such as cifar10.

  A set that is not on the disk is prepared first. This needs TensorFlow and
  perhaps a download. Test samples are the split `test`; without it, the split
  `validation`; without both, a fifth is held out. Images are as TFDS has them;
  those of its emnist are transposed.

  Args:
    dataset: for messages.
    place: name in the catalogue, such as "emnist/byclass".
    options: not read.
    seed: see `samples.hold_out`.

  Returns:
    The samples.

  Raises:
    ConfigError: the set does not exist, cannot be prepared, or has other
      features.
  """
  del options
  return _read(
      f"--dataset={dataset}",
      place,
      seed,
      unprepared="TensorFlow prepares it: pip install tensorflow, and start "
      "again",
      preparable=importlib.util.find_spec("tensorflow") is not None,
  )


def _read(setting, name, seed, *, unprepared, preparable):
  import tensorflow_datasets as tfds  # takes a second

  # Open the set, and prepare it if need be.
  data_dir = os.path.expanduser(tfds.core.constants.DATA_DIR)
  missing = f"is not prepared in {data_dir}; {unprepared}"
  with refused(setting, "cannot be opened", Exception):
    try:
      builder = _builder(name)
    except tfds.core.registered.DatasetNotFoundError:
      # This set is not registered until it is prepared.
      if name == "agsfl_femnist":
        refuse(setting, missing)
      refuse(setting, f"TensorFlow Datasets has no {name!r}")
  if not builder.is_prepared():
    if not preparable:
      refuse(setting, missing)
    with refused(setting, "cannot be prepared", Exception):
      builder.download_and_prepare()

  # Read it.
  try:
    return _gather(setting, _splits(setting, builder), seed)
  except (ConfigError, MemoryError):
    raise
  except NotImplementedError:
    refuse(
        setting,
        f"lies in {builder.data_dir} in a form that only TensorFlow reads; set "
        "TFDS_DATA_DIR to another folder, and it is prepared anew there",
    )
  except Exception as error:
    # Damage raises errors of the archive, of images, and of records.
    refuse(
        setting,
        f"cannot be read ({type(error).__name__}: {error}); if it is damaged, "
        f"remove {builder.data_dir}, and it is prepared anew",
    )


def _builder(name):
  """The set as it is on the disk, or to be prepared as ArrayRecord."""
  import tensorflow_datasets as tfds

  try:
    return tfds.builder(name, file_format="array_record")
  except ValueError:  # also where it is on the disk in another form
    return tfds.builder(name)


def _splits(setting, builder):
  """The training split, and the test split if the set has one."""
  known = builder.info.splits or ("train", "test")
  if "train" not in known:
    refuse(setting, f"has no split 'train' but {', '.join(known)}")
  names = ["train", *[name for name in _TEST_SPLITS if name in known][:1]]
  return [builder.as_data_source(split=name) for name in names]


def _gather(setting, splits, seed):
  """The records of the splits, one after another, in arrays."""
  total = sum(map(len, splits))
  images, labels = None, np.zeros(total)  # floats, as some sets have labels
  key, owners = None, np.zeros(total, np.int32)
  numbers: dict[str | int, int] = {}
  for row, record in enumerate(itertools.chain.from_iterable(splits)):
    for feature in ("image", "label"):
      if feature not in record:
        refuse(setting, f"has no feature {feature!r} but {', '.join(record)}")
    # The image; the first one gives the shape of all.
    image = np.asarray(record["image"])
    if images is None:
      key = next((key for key in _OWNERS if key in record), None)
      images = aligned.empty((total, *image.shape), image.dtype)
    if image.shape != images.shape[1:]:
      refuse(
          setting,
          f"image {row} has the shape {list(image.shape)}, others "
          f"{list(images.shape[1:])}; all must be of one size",
      )
    images[row] = image

    # Its label and its client.
    label = np.asarray(record["label"])
    if label.ndim or label.dtype.kind not in "iuf":
      refuse(setting, "label must be one whole number for each image")
    labels[row] = label
    if key is not None:
      owner = record[key]
      if isinstance(owner, bytes):
        owner = owner.decode("utf-8")
      elif np.ndim(owner) or np.asarray(owner).dtype.kind not in "iu":
        refuse(setting, f"{key} must be one integer or string for each image")
      owners[row] = numbers.setdefault(owner, len(numbers))

  # Which are for training, and the clients in the order of their ids.
  if images is None:
    refuse(setting, "must hold samples, found none")
  if len(splits) == 1:
    is_train = hold_out(total, seed)
  else:
    is_train = np.arange(total) < len(splits[0])
  samples = Samples(setting, with_channels(images), labels, is_train)
  if key is None:
    return samples
  owners, owner_names = in_order(owners, numbers)
  return samples._replace(
      owners=owners, owner_names=owner_names, names=Names(owners=key)
  )
