"""Makes an npz data set from encoded images: PNG, JPEG and others.

It reads npz files with the keys `jpeg` (the bytes of all images, one after
another), `offsets` (where each image begins, and the end) and `labels`. Some
copies of CIFAR-10 have this form. It writes a file for --dataset=npz:PATH.
"""

import io
import itertools
from pathlib import Path

import numpy as np
from absl import flags
from PIL import Image

from agsfl.data import samples
from agsfl.data.sources import npz
from agsfl.errors import refuse, refused
from agsfl.files import expanded
from agsfl.settings import require_utf8
from experiments.lib import out, scripts, stopping

_TRAIN = flags.DEFINE_string("train", "", "File of the training images.")
_TEST = flags.DEFINE_string("test", "", "File of the test images.")
_STANDARDIZE = flags.DEFINE_bool(
    "standardize_channels",
    False,
    "Bring each channel to mean 0 and deviation 1 over the training images. "
    "The file then holds float32 and is four times as large.",
)
flags.adopt_module_key_flags(out)


def read(flag: str, path: str):
  """The encoded images and labels of the file that a flag names."""
  where, place = f"{flag}={path}", expanded(path)
  keys = "jpeg", "offsets", "labels"
  arrays = npz.read_arrays(where, place, keys)
  for key in keys:
    if key not in arrays:
      npz.refuse_missing(where, place, key)
  encoded, offsets, labels = (arrays[key] for key in keys)
  fits = (
      encoded.dtype == np.uint8
      and encoded.ndim == labels.ndim == offsets.ndim == 1
      and offsets.dtype.kind in "iu"
      and 0 < len(labels) == len(offsets) - 1
      and 0 <= offsets[0]
      and offsets[-1] <= len(encoded)
      and np.all(np.diff(offsets.astype(np.int64)) > 0)
  )
  if not fits:
    refuse(
        where,
        "must hold bytes in jpeg, one whole number for each image in labels, "
        "and rising whole numbers in offsets: where each image begins, and "
        "where the last ends",
    )
  return where, encoded, offsets, labels


def _decoded(where, encoded, offsets):
  """The images of one file, one after another."""
  for index, (start, end) in enumerate(itertools.pairwise(offsets)):
    # Pillow's parsers may raise anything.
    with (
        refused(where, f"image {index} cannot be read", Exception),
        Image.open(io.BytesIO(encoded[start:end].tobytes())) as image,
    ):
      mode, pixels = image.mode, np.asarray(image)
    if mode not in ("L", "RGB"):
      refuse(where, f"image {index} must be grey or RGB, not of mode {mode}")
    yield index, pixels


def standardized(images: np.ndarray, num_train: int) -> np.ndarray:
  """Each channel with mean 0 and deviation 1 over the training images.

  Args:
    images: [C, H, W] or [C, H, W, channels] uint8.
    num_train: the first ones are for training.

  Returns:
    The same shape, float32. A constant channel gets mean 0 alone.
  """
  result = np.empty(images.shape, np.float32)
  channels = (slice(None),) * 3
  levels = np.arange(256)
  for channel in np.ndindex(images.shape[3:]):
    own = images[*channels, *channel]
    counts = np.bincount(own[:num_train].ravel(), minlength=256)
    mean = np.average(levels, weights=counts)
    deviation = np.average((levels - mean) ** 2, weights=counts) ** 0.5
    table = ((levels - mean) / (deviation or 1)).astype(np.float32)
    result[*channels, *channel] = table[own]
  return result


def convert(
    parts, path: Path, signals: stopping.Signals, standardize: bool = False
):
  """Writes all images into one file, whole or not at all.

  Args:
    parts: what `read` returned for each file.
    path: of the file.
    signals: already entered.
    standardize: whether channels are `standardized`.

  Raises:
    ConfigError: an image or a label cannot be used.
    StoppedError: a signal came.
  """
  total = sum(len(labels) for *_, labels in parts)
  images, filled, all_labels = None, 0, []
  for where, encoded, offsets, labels in parts:
    all_labels.append(
        samples.checked_labels(
            where, "labels", labels, (len(labels),), samples.most_classes(total)
        )
    )
    for index, image in _decoded(where, encoded, offsets):
      signals.check()
      if images is None:
        images = np.empty((total, *image.shape), np.uint8)
      if image.shape != images.shape[1:]:
        refuse(
            where,
            f"image {index} is of shape {list(image.shape)}, the first of "
            f"{list(images.shape[1:])}",
        )
      images[filled + index] = image
    filled += len(labels)
  num_train = len(parts[0][-1])
  if standardize:
    images = standardized(images, num_train)
  with out.written(path) as temporary, temporary.open("wb") as file:
    np.savez(
        file,
        images=images,
        labels=np.concatenate(all_labels),
        is_train=np.arange(total) < num_train,
    )


def main(argv):
  scripts.start(argv)
  with scripts.one_line_errors(), stopping.Signals() as signals:
    path = out.path()
    require_utf8("out", str(path))
    parts = []
    for flag, given in (("--train", _TRAIN.value), ("--test", _TEST.value)):
      parts.append(read(flag, given))
      if path.exists() and path.samefile(expanded(given)):
        refuse(f"--out={path}", f"must be another file than {flag}")
    convert(parts, path, signals, _STANDARDIZE.value)
    print(f"--dataset=npz:{path}")


if __name__ == "__main__":
  scripts.run(main)
