"""LEAF's JSON folders of images, as its preprocess.sh writes them.

Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ijson
import numpy as np
from absl import logging

from agsfl import aligned
from agsfl.errors import ConfigError
from agsfl.samples import Samples, checked, fail
from agsfl.sources import npz

SPLITS = ("train", "test")
_CACHE = "agsfl_cache.npz"
# Raised when what is cached changes.
_VERSION = 1


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
  files = files_of(dataset, Path(place))
  cache = Path(place) / _CACHE
  stamp = np.array(_stamp(files))
  if cache.exists():
    samples = _cached(dataset, cache, stamp)
    if samples is not None:
      return samples
  samples = checked(_converted(dataset, files))
  _keep(cache, samples, stamp)
  return samples


def files_of(dataset: str, place: Path) -> list[tuple[Path, str]]:
  """The JSON files, each with "train" or "test".

  Raises:
    ConfigError: there are none of one kind.
  """
  files = []
  for split in SPLITS:
    found = sorted((place / split).glob("*.json"))
    if not found:
      fail(dataset, f"must be a folder with {split}/*.json, as LEAF writes it")
    files += [(path, split) for path in found]
  return files


def _stamp(files):
  """What a cache was made from, as text."""
  facts = [
      (f"{split}/{path.name}", path.stat().st_size, path.stat().st_mtime_ns)
      for path, split in files
  ]
  return json.dumps([_VERSION, facts])


def _cached(dataset, cache, stamp):
  """The cache's samples, or None where it is damaged or of other files."""
  keys = ("images", "labels", "is_train", "users", "user")
  try:
    held = npz.read_arrays(dataset, cache, ("stamp",))
    if not np.array_equal(held.get("stamp"), stamp):
      return None
    images, labels, is_train, users, user = npz.read_arrays(
        dataset, cache, keys
    ).values()
  except ConfigError:
    return None
  return Samples(dataset, images, labels, is_train, users[user], "user")


def _keep(cache, samples, stamp):
  users, user = np.unique(samples.owners, return_inverse=True)
  temporary = cache.with_name(f"{cache.name}.{os.getpid()}.tmp")
  try:
    with temporary.open("wb") as file:
      np.savez(
          file,
          stamp=stamp,
          images=samples.images,
          labels=samples.labels,
          is_train=samples.is_train,
          users=users,
          user=user.astype(np.int32),
      )
    os.replace(temporary, cache)
  except OSError as error:
    temporary.unlink(missing_ok=True)
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

  def refuse(problem):
    fail(dataset, f"{path}: {problem}")

  def array(name, key, dtype):
    where = f"user_data of {name!r}, {key}"
    try:
      values = np.array(data[key], np.float64 if dtype == "f" else None)
    except KeyError:
      refuse(f"{where}: is missing")
    except (ValueError, TypeError, OverflowError):
      refuse(f"{where}: must be numbers, as many for each sample")
    if values.size and values.dtype.kind != dtype:
      refuse(f"{where}: must be {'whole ' if dtype == 'i' else ''}numbers")
    return values

  try:
    with path.open("rb") as file:
      for name, data in ijson.kvitems(file, "user_data", use_float=True):
        if not isinstance(data, dict):
          refuse(f"user_data of {name!r}: must be an object with x and y")
        x, y = array(name, "x", "f"), array(name, "y", "i")
        if len(x) != len(y):
          refuse(f"user_data of {name!r}: x has {len(x)} samples, y {len(y)}")
        if not len(x):
          continue
        if x.ndim != 2 or math.isqrt(x.shape[1]) ** 2 != x.shape[1]:
          refuse(
              f"user_data of {name!r}, x: must be square images, a row of "
              f"numbers each, as FEMNIST's 784; not {list(x.shape[1:])}"
          )
        if not np.isfinite(x).all():
          refuse(f"user_data of {name!r}, x: holds values that are not finite")
        yield User(name, x.astype(np.float32), y)
  except OSError as error:
    refuse(f"cannot be read: {error.strerror}")
  except (ijson.JSONError, UnicodeDecodeError) as error:
    refuse(f"cannot be read as JSON ({error})")


def _sizes(dataset, path):
  """How many samples the file says that it holds, before they are read."""
  total = 0
  try:
    with path.open("rb") as file:
      for prefix, event, value in ijson.parse(file, use_float=True):
        if prefix == "num_samples.item" and event == "number":
          total += int(value)
        if prefix == "num_samples" and event == "end_array":
          return total
  except OSError as error:
    fail(dataset, f"{path}: cannot be read: {error.strerror}")
  except (ijson.JSONError, UnicodeDecodeError) as error:
    fail(dataset, f"{path}: cannot be read as JSON ({error})")
  fail(dataset, f"{path}: lacks the key 'num_samples'")


def _converted(dataset, files):
  """All files' samples in one array, which is made before they are read."""
  sizes = [_sizes(dataset, path) for path, _ in files]
  images, filled = None, 0
  labels, owners = np.zeros(sum(sizes), np.int64), []
  for (path, _), size in zip(files, sizes, strict=True):
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
  is_train = np.repeat([split == "train" for _, split in files], sizes)
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
