"""Folders of images, one subfolder for each class."""

import contextlib
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from agsfl import aligned
from agsfl.data.samples import Samples, hold_out
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import refuse, refused

_SPLITS = ("train", "test")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".bmp")
_FORMATS = ("PNG", "JPEG", "GIF", "BMP")
# Pillow's names of grey images, of 1 or 8 bits, without and with transparency.
_GREY = ("1", "L", "LA")
# Its names of images whose numbers have more than 8 bits.
_DEEP = ("I", "F")


class _File(NamedTuple):
  path: Path
  label: int
  is_train: bool


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """Images whose classes are the sorted names of the subfolders.

  Images are PNG, JPEG, GIF or BMP files of 8 bits, directly in the folder of
  their class. Hidden files and files with other endings are ignored. If all
  images are grey, they have one channel; otherwise all have three.
  Transparency is dropped, and an animation gives its first image.

  Args:
    dataset: for messages.
    place: a folder with one folder for each class; a fifth of the images is
      held out for testing. Or a folder with exactly the folders `train` and
      `test`, each with one folder for each class.
    options: only `image_size` is read.
    seed: see `samples.hold_out`.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file, or the folder.
  """
  setting = f"--dataset={dataset}"
  found, is_split = _files(setting, Path(place))
  # First all headers, for the shape; then each image into its final memory.
  height, width, channels = _shape(setting, found, options.image_size)
  images = aligned.empty((len(found), height, width, channels), np.uint8)
  for image, file in zip(images, found, strict=True):
    image[...] = _pixels(setting, file.path, options.image_size, image.shape)
  labels = np.array([file.label for file in found], np.int32)
  if is_split:
    is_train = np.array([file.is_train for file in found])
  else:
    is_train = hold_out(len(found), seed)
  return Samples(setting, images, labels, is_train)


def _files(setting, place):
  """All image files, and whether they are split into train and test."""
  with refused(setting, "must be a folder that can be read"):
    parts = _folders(place)
    is_split = sorted(part.name for part in parts) == sorted(_SPLITS)
    if is_split:
      by_part = [(part, _folders(part)) for part in parts]
    else:
      by_part = [(place, parts)]
    names = sorted({of.name for _, classes in by_part for of in classes})
    labels = {name: label for label, name in enumerate(names)}
    found = []
    for part, classes in by_part:
      for folder in classes:
        paths = sorted(
            path
            for path in _visible(folder)
            if path.suffix.lower() in _SUFFIXES
        )
        if not paths:
          refuse(setting, f"{folder}: holds no PNG, JPEG, GIF or BMP files")
        found += [
            _File(path, labels[folder.name], part.name == "train")
            for path in paths
        ]
  if not found:
    refuse(setting, "must hold one folder of images for each class")
  return found, is_split


def _visible(folder):
  """The paths in a folder, without hidden ones."""
  return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _folders(folder):
  """The visible folders in a folder."""
  return sorted(path for path in _visible(folder) if path.is_dir())


@contextlib.contextmanager
def _opened(setting, path):
  """The open image; a file that cannot be read is refused."""
  # Each decoder has its own types of errors for a damaged file.
  with (
      refused(setting, f"{path}: cannot be read as an image", Exception),
      warnings.catch_warnings(),
  ):
    # Pillow warns of images so large that they may be an attack.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with Image.open(path, formats=_FORMATS) as image:
      yield image


def _shape(setting, found, size):
  """Height, width and channels of all, by the files' headers."""
  first, channels = ("", 0, 0), 1
  for file in found:
    with _opened(setting, file.path) as image:
      mode, (width, height) = image.mode, image.size
    if mode.startswith(_DEEP):
      refuse(setting, f"{file.path}: must be of 8 bits, is of mode {mode}")
    if mode not in _GREY:
      channels = 3
    if file is found[0]:
      first = file.path, height, width
    if size is None and (height, width) != first[1:]:
      refuse(
          setting,
          f"{first[0]} is {first[2]} x {first[1]}, {file.path} {width} x "
          f"{height}; give --image_size to resize all to one size",
      )
  return (size or first[1], size or first[2], channels)


def _pixels(setting, path, size, shape):
  """One image, [H, W, channels]."""
  with _opened(setting, path) as image:
    # The conversion drops transparency, and Pillow would warn of that.
    image.info.pop("transparency", None)
    image = image.convert("L" if shape[-1] == 1 else "RGB")
    if size is not None:
      image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(shape)
