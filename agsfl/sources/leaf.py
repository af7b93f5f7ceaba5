"""LEAF's JSON folders of images, as its preprocess.sh writes them.

Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ijson
import numpy as np
from absl import logging

from agsfl import aligned, files
from agsfl.errors import ConfigError
from agsfl.samples import Samples, checked, fail
from agsfl.sources import npz

SPLITS = ("train", "test")
_CACHE = "agsfl_cache.npz"
# Raised when what is cached changes.
_VERSION = 1
_LONGEST_NAME = 1000


class User(NamedTuple):
  """One user's samples in one file.

  Attributes:
    name: of the user.
    pixels: [M, P] f32.
    labels: [M] i64.
  """

  name: str
  pixels: np.ndarray
  labels: np.ndarray


def read(dataset: str, place: str, seed: int) -> Samples:
  """The folder's images, with its users as clients.

  Pixels stay as LEAF has them: in FEMNIST ink is 0 and paper 1. They are held
  as bytes where all are multiples of 1 / 255, as FEMNIST's are. JSON is slow,
  so the arrays are kept in the folder as `agsfl_cache.npz`, and read from there
  until a JSON file changes.

  Args:
    dataset: for messages.
    place: the folder that holds `train` and `test`.
    seed: not read; LEAF splits the samples itself.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file and the key.
  """
  del seed
  found = files_of(dataset, Path(place))
  cache = Path(place) / _CACHE
  stamp = np.array(_stamp(dataset, found))
  if cache.exists():
    samples = _cached(dataset, cache, stamp)
    if samples is not None:
      return samples
  samples = checked(_converted(dataset, found))
  _keep(cache, samples, stamp)
  return samples


def files_of(dataset: str, place: Path) -> list[tuple[Path, str]]:
  """The JSON files, each with "train" or "test".

  Raises:
    ConfigError: there are none of one kind.
  """
  found = []
  for split in SPLITS:
    paths = sorted((place / split).glob("*.json"))
    if not paths:
      fail(dataset, f"must be a folder with {split}/*.json, as LEAF writes it")
    found += [(path, split) for path in paths]
  return found


def _stamp(dataset, found):
  """What a cache was made from, as text."""
  facts = []
  for path, split in found:
    try:
      state = path.stat()
    except OSError as error:
      fail(dataset, f"{path}: cannot be read: {error.strerror}")
    facts.append((f"{split}/{path.name}", state.st_size, state.st_mtime_ns))
  return json.dumps([_VERSION, facts])


def _cached(dataset, cache, stamp):
  """The cache's samples, or None where it is damaged or of other files."""
  try:
    held = npz.read_arrays(dataset, cache, ("stamp",))
    if not np.array_equal(held["stamp"], stamp):
      return None
    keys = ("images", "labels", "is_train", "users", "user")
    held = npz.read_arrays(dataset, cache, keys)
    owners = held["users"][held["user"]]
    arrays = (held[key] for key in keys[:3])
    return checked(Samples(dataset, *arrays, owners, "user"))
  except (ConfigError, KeyError, IndexError):
    return None


def _keep(cache, samples, stamp):
  users, user = np.unique(samples.owners, return_inverse=True)
  try:
    with files.written_whole(cache) as path, path.open("wb") as file:
      np.savez(
          file,
          stamp=stamp,
          images=samples.images,
          labels=samples.labels,
          is_train=samples.is_train,
          users=users,
          user=user.astype(np.int32),
      )
  except OSError as error:
    logging.warning("%s is not kept: %s", cache, error.strerror)


def users_of(dataset: str, path: Path) -> Iterator[User]:
  """The users of one file, one after another: never the whole file at once.

  Args:
    dataset: for messages.
    path: a JSON file.

  Yields:
    The users with at least one sample.

  Raises:
    ConfigError: the text names the file, the user and the key.
  """
  try:
    with path.open("rb") as file:
      for name, held in ijson.kvitems(file, "user_data", use_float=True):
        user = _user(lambda problem: fail(dataset, problem), path, name, held)
        if len(user.labels):
          yield user
  except OSError as error:
    fail(dataset, f"{path}: cannot be read: {error.strerror}")
  except (ijson.JSONError, UnicodeError, RecursionError) as error:
    fail(dataset, f"{path}: cannot be read as JSON ({error})")


def _user(refuse, path, name, held):
  """A user's object as arrays."""
  where = f"{path}: user_data of {name[:_LONGEST_NAME]!r}"
  if len(name) > _LONGEST_NAME:
    refuse(f"{where}: its name must have at most {_LONGEST_NAME} letters")
  if not isinstance(held, dict):
    refuse(f"{where}: must be an object with x and y")
  arrays = []
  for key, kinds, what in (("x", "if", "numbers"), ("y", "i", "whole numbers")):
    if key not in held:
      refuse(f"{where}, {key}: is missing")
    try:
      array = np.array(held[key])
    except (ValueError, TypeError, OverflowError):
      refuse(f"{where}, {key}: must be {what}, as many for each sample")
    if array.ndim and array.size and array.dtype.kind not in kinds:
      refuse(f"{where}, {key}: must be {what}")
    arrays.append(array)
  pixels, labels = arrays
  if labels.ndim != 1:
    refuse(f"{where}, y: must be one whole number for each sample")
  if not labels.size and not pixels.size:
    return User(name, np.zeros((0, 1), np.float32), labels)
  side = math.isqrt(pixels.shape[1]) if pixels.ndim == 2 else 0
  if not side or side**2 != pixels.shape[1]:
    refuse(
        f"{where}, x: must be square images, a row of numbers each, as "
        f"FEMNIST's 784; not of shape {list(pixels.shape)}"
    )
  if len(pixels) != len(labels):
    refuse(f"{where}: x has {len(pixels)} samples, y {len(labels)}")
  with np.errstate(over="ignore"):
    pixels = pixels.astype(np.float32)
  if not np.isfinite(pixels).all():
    refuse(f"{where}, x: holds values that are not finite")
  return User(name, pixels, labels)


def _sizes(dataset, path):
  """How many samples the file says that it holds, before they are read."""
  total = 0
  try:
    with path.open("rb") as file:
      for prefix, event, value in ijson.parse(file, use_float=True):
        if prefix == "num_samples.item":
          # A sample takes more than one byte of the file.
          if type(value) is not int or not 0 <= value <= path.stat().st_size:
            fail(
                dataset,
                f"{path}: num_samples: must be counts of samples, not {value}",
            )
          total += value
        if prefix == "num_samples" and event == "end_array":
          return total
  except OSError as error:
    fail(dataset, f"{path}: cannot be read: {error.strerror}")
  except (ijson.JSONError, UnicodeError) as error:
    fail(dataset, f"{path}: cannot be read as JSON ({error})")
  fail(dataset, f"{path}: lacks the key 'num_samples'")


def _converted(dataset, found):
  """All files' samples in one array, which is made before they are read."""
  sizes = [_sizes(dataset, path) for path, _ in found]
  images, filled = None, 0
  labels, owners = np.zeros(sum(sizes), np.int64), []
  for (path, _), size in zip(found, sizes, strict=True):
    end = filled + size
    for name, pixels, own in users_of(dataset, path):
      stop = filled + len(own)
      if stop > end:
        break
      if images is None:
        images = aligned.empty((sum(sizes), pixels.shape[1]), np.uint8)
      if pixels.shape[1] != images.shape[1]:
        fail(
            dataset,
            f"{path}: user_data of {name!r}, x: images of {pixels.shape[1]} "
            f"numbers, others have {images.shape[1]}",
        )
      if images.dtype == np.uint8:
        levels = as_bytes(pixels)
        if levels is None:
          images = _as_floats(images, filled)
        else:
          pixels = levels
      images[filled:stop] = pixels
      labels[filled:stop] = own
      owners += [name] * len(own)
      filled = stop
    else:
      stop = filled
    if stop != end:
      fail(dataset, f"{path}: num_samples says {size}, user_data holds others")
  if images is None:
    fail(dataset, "holds no samples")
  side = math.isqrt(images.shape[1])
  is_train = np.repeat([split == "train" for _, split in found], sizes)
  return Samples(
      dataset,
      images.reshape(-1, side, side, 1),
      labels,
      is_train,
      np.array(owners),
      "user",
  )


def as_bytes(pixels: np.ndarray) -> np.ndarray | None:
  """Floats from 0 to 1 as bytes, v / 255, or None where any is none such."""
  levels = np.rint(255 * pixels)
  fits = (levels >= 0) & (levels <= 255) & (abs(255 * pixels - levels) < 1e-3)
  return levels.astype(np.uint8) if fits.all() else None


def _as_floats(images, filled):
  """Bytes as the numbers that they stand for."""
  floats = aligned.empty(images.shape, np.float32)
  for start in range(0, filled, 1024):
    rows = slice(start, min(start + 1024, filled))
    floats[rows] = images[rows] / np.float32(255)
  return floats
