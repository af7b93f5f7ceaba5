"""Makes an npz data set of encoded images: PNG, JPEG and others.

Reads npz files with the keys `jpeg` (the files' bytes, one after another),
`offsets` (where each begins, and the end) and `labels`, as copies of CIFAR-10
are passed on, and writes one that --dataset=npz:PATH takes.
"""

import io
import itertools
import os
from pathlib import Path

import numpy as np
from absl import app, flags
from PIL import Image, UnidentifiedImageError

from agsfl import aligned
from agsfl.errors import ConfigError
from experiments import run

_TRAIN = flags.DEFINE_string("train", None, "Training images.", required=True)
_TEST = flags.DEFINE_string("test", None, "Test images.", required=True)
_OUT = flags.DEFINE_string("out", None, "The npz to write.", required=True)


def _read(flag):
  """The encoded images and labels of a file."""
  where = f"--{flag.name}={flag.value}"
  try:
    with np.load(flag.value, allow_pickle=False) as file:
      encoded, offsets, labels = (
          file[key] for key in ("jpeg", "offsets", "labels")
      )
  except Exception as error:
    problem = " ".join(str(error).split())
    raise ConfigError(
        f"{where}: must be an npz file of jpeg, offsets and labels ({problem})"
    ) from error
  if (
      encoded.dtype != np.uint8
      or len(offsets) != len(labels) + 1
      or np.any(np.diff(offsets.astype(np.int64)) <= 0)
      or offsets[-1] > len(encoded)
  ):
    raise ConfigError(
        f"{where}: offsets must rise from each image of jpeg to the next, one "
        f"more than the {len(labels)} labels"
    )
  return where, encoded, offsets, labels


def _decoded(where, encoded, offsets):
  """The images of one file, one after another."""
  for index, (start, end) in enumerate(itertools.pairwise(offsets)):
    try:
      with Image.open(io.BytesIO(encoded[start:end].tobytes())) as image:
        yield index, np.asarray(image)
    except (UnidentifiedImageError, OSError) as error:
      raise ConfigError(f"{where}: image {index} cannot be read") from error


def convert(parts, out: Path):
  """Writes all images into one file, whole or not at all."""
  total = sum(len(labels) for *_, labels in parts)
  images, filled = None, 0
  for where, encoded, offsets, labels in parts:
    for index, image in _decoded(where, encoded, offsets):
      if images is None:
        images = aligned.empty((total, *image.shape), np.uint8)
      if image.shape != images.shape[1:] or image.dtype != np.uint8:
        raise ConfigError(
            f"{where}: image {index} is {image.dtype}{list(image.shape)}, the "
            f"first was uint8{list(images.shape[1:])}"
        )
      images[filled + index] = image
    filled += len(labels)
  labels = np.concatenate([labels for *_, labels in parts])
  num_train = len(parts[0][-1])
  temporary = out.with_name(out.name + ".tmp")
  try:
    with temporary.open("wb") as file:
      np.savez(
          file,
          images=images,
          labels=labels,
          is_train=np.arange(total) < num_train,
      )
    os.replace(temporary, out)
  except OSError as error:
    temporary.unlink(missing_ok=True)
    raise ConfigError(
        f"--out={out}: cannot be written ({error.strerror})"
    ) from error


def main(argv):
  run.start(argv)
  with run.one_line_errors():
    out = Path(_OUT.value)
    convert([_read(_TRAIN), _read(_TEST)], out)
  print(f"--dataset=npz:{out}")


if __name__ == "__main__":
  app.run(main)
