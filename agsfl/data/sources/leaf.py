"""LEAF's JSON folders of images, as its preprocess.sh writes them.

Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import contextlib
import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ijson
import numpy as np
from absl import logging

from agsfl import files
from agsfl.data import aligned
from agsfl.data.samples import Samples, checked, in_order, most_classes
from agsfl.data.sources import npz, shallow
from agsfl.errors import refuse

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
  setting = f"--dataset={dataset}"
  found = files_of(setting, Path(place))
  cache = Path(place) / _CACHE
  stamp = np.array(f"{_VERSION} {stamp_of(setting, found)}")
  if cache.exists():
    samples = _cached(dataset, cache, stamp)
    if samples is not None:
      return samples
  samples = checked(_converted(dataset, setting, found))
  _keep(cache, samples, stamp)
  return samples


def files_of(setting: str, place: Path) -> list[tuple[Path, str]]:
  """The JSON files, each with "train" or "test".

  Args:
    setting: that names the folder, for messages, such as "--dataset=leaf:DIR".
    place: the folder.

  Raises:
    ConfigError: there are none of one kind.
  """
  found = []
  for split in SPLITS:
    paths = sorted((place / split).glob("*.json"))
    if not paths:
      refuse(
          setting, f"must be a folder with {split}/*.json, as LEAF writes it"
      )
    found += [(path, split) for path in paths]
  return found


def stamp_of(setting: str, found: list[tuple[Path, str]]) -> str:
  """What the files' sizes and times tell of them, as text."""
  facts = []
  for path, split in found:
    try:
      state = path.stat()
    except OSError as error:
      refuse(setting, f"{path}: cannot be read: {error.strerror}")
    facts.append((f"{split}/{path.name}", state.st_size, state.st_mtime_ns))
  return json.dumps(facts)


def _cached(dataset, cache, stamp):
  """The cache's samples, or None where it is damaged or of other files."""
  try:
    held = npz.read_arrays(dataset, cache, ("stamp",))
    if not np.array_equal(held["stamp"], stamp):
      return None
    keys = ("images", "labels", "is_train", "user", "users")
    held = npz.read_arrays(dataset, cache, keys)
    return checked(Samples(dataset, *(held[key] for key in keys), "user"))
  except Exception:  # the JSON files are there, whatever ails the cache
    return None


def _keep(cache, samples, stamp):
  try:
    with files.written_whole(cache) as path, path.open("wb") as file:
      np.savez(
          file,
          stamp=stamp,
          images=samples.images,
          labels=samples.labels,
          is_train=samples.is_train,
          user=samples.owners,
          users=samples.owner_names,
      )
  except OSError as error:
    logging.warning("%s is not kept: %s", cache, error.strerror)


def sizes_of(setting: str, path: Path) -> dict[str, int]:
  """How many samples of each user a file says that it holds.

  Args:
    setting: see `files_of`.
    path: a JSON file.

  Returns:
    The numbers by user, as `users` and `num_samples` have them.

  Raises:
    ConfigError: the text names the file and the key.
  """
  lists = {"users": [], "num_samples": []}
  missing = set(lists)
  with _readable(setting, path) as file:
    for prefix, event, value in ijson.parse(file, use_float=True):
      key = prefix.removesuffix(".item")
      if key in missing and key != prefix:
        lists[key].append(value)
      elif event == "end_array":
        missing.discard(prefix)
        if not missing:
          break
    most = path.stat().st_size
  if missing:
    refuse(setting, f"{path}: must have the lists 'users' and 'num_samples'")
  users, counts = lists.values()
  for name in users:
    if not isinstance(name, str) or len(name) > _LONGEST_NAME or "\0" in name:
      refuse(
          setting,
          f"{path}: users: must be names of at most {_LONGEST_NAME} letters, "
          f"none of them NUL, not {str(name)[:_LONGEST_NAME]!r}",
      )
  if len(set(users)) != len(counts) or len(users) != len(counts):
    refuse(
        setting,
        f"{path}: num_samples: must be one for each of 'users', which differ",
    )
  for count in counts:
    if type(count) is not int or count < 0:
      refuse(
          setting, f"{path}: num_samples: must be counts, not {count!r}"
      )
  # A sample takes more than one byte of the file.
  if sum(counts) > most:
    refuse(
        setting,
        f"{path}: num_samples: must be at most {most}, the bytes of the file, "
        f"in sum, not {sum(counts)}",
    )
  return dict(zip(users, counts, strict=True))


def users_of(
    setting: str, path: Path, sizes: dict[str, int], num_classes: int
) -> Iterator[User]:
  """The users of one file, one after another: never the whole file at once.

  Args:
    setting: see `files_of`.
    path: a JSON file.
    sizes: see `sizes_of`.
    num_classes: labels must lie below.

  Yields:
    The users with at least one sample, each as many as `sizes` says.

  Raises:
    ConfigError: the text names the file, the user and the key.
  """
  tell = functools.partial(refuse, setting)
  left = dict(sizes)
  with _readable(setting, path) as file:
    for name, held in ijson.kvitems(file, "user_data", use_float=True):
      where = f"{path}: user_data of {name[:_LONGEST_NAME]!r}"
      user = _user(tell, where, name, held, num_classes)
      if name not in left:
        tell(f"{where}: must be one of 'users', and be there once")
      size, held = left.pop(name), len(user.labels)
      if size != held:
        tell(f"{where}: holds {held} samples, num_samples says {size}")
      if size:
        yield user
  for name, size in left.items():
    if size:
      tell(f"{path}: user_data lacks {name!r}, num_samples says {size}")


@contextlib.contextmanager
def _readable(setting, path):
  """The open file; what ails its JSON is refused."""
  try:
    with path.open("rb") as file:
      yield shallow.Shallow(file)
  except OSError as error:
    refuse(setting, f"{path}: cannot be read: {error.strerror}")
  except (ijson.JSONError, UnicodeError, RecursionError) as error:
    refuse(setting, f"{path}: cannot be read as JSON ({error})")


def _user(refuse, where, name, held, num_classes):
  """A user's object as arrays."""
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
  if labels.min() < 0 or labels.max() >= num_classes:
    wrong = next(y for y in labels.tolist() if not 0 <= y < num_classes)
    refuse(f"{where}, y: must lie in 0 to {num_classes - 1}, not {wrong}")
  with np.errstate(over="ignore"):
    pixels = pixels.astype(np.float32)
  if not np.isfinite(pixels).all():
    refuse(f"{where}, x: holds values that are not finite")
  return User(name, pixels, labels)


def _converted(dataset, setting, found):
  """All files' samples in one array, which is made before they are read."""
  sizes = [sizes_of(setting, path) for path, _ in found]
  counts = [sum(of_file.values()) for of_file in sizes]
  total = sum(counts)
  images, filled = None, 0
  labels, owners = np.zeros(total, np.int64), np.zeros(total, np.int32)
  places = {}
  for (path, _), of_file in zip(found, sizes, strict=True):
    for name, pixels, own in users_of(
        setting, path, of_file, most_classes(total)
    ):
      if images is None:
        images = aligned.empty((total, pixels.shape[1]), np.uint8)
      if pixels.shape[1] != images.shape[1]:
        refuse(
            setting,
            f"{path}: user_data of {name!r}, x: images of {pixels.shape[1]} "
            f"numbers, others have {images.shape[1]}",
        )
      if images.dtype == np.uint8:
        levels = as_bytes(pixels)
        if levels is None:
          images = _as_floats(images, filled)
        else:
          pixels = levels
      rows = slice(filled, filled + len(own))
      images[rows] = pixels
      labels[rows] = own
      owners[rows] = places.setdefault(name, len(places))
      filled = rows.stop
  if images is None:
    refuse(setting, "holds no samples")
  side = math.isqrt(images.shape[1])
  is_train = np.repeat([split == "train" for _, split in found], counts)
  return Samples(
      dataset,
      images.reshape(-1, side, side, 1),
      labels,
      is_train,
      *in_order(owners, places),
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
