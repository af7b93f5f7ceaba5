"""LEAF's JSON folders, as its preprocess.sh writes them.

Source: Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import ijson
import numpy as np
from absl import logging

from agsfl import aligned, files
from agsfl.data.samples import Names, Samples, checked, in_order, most_classes
from agsfl.data.sources import letters, npz, shallow
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import refuse, refused
from agsfl.tasks import NEXT_TOKEN

SPLITS = ("train", "test")
_NAMES = Names(owners="user")
_CACHE = "agsfl_cache.npz"
# Increase it when the form of the cache or the checks of the files change.
_VERSION = 3
_LONGEST_NAME = 1000
_BLOCK = 1024
# Images with a smaller side are not tried as RGBA.
_RGBA_SIDE = 8


class User(NamedTuple):
  """One user's samples in one file.

  Attributes:
    name: of the user.
    features: [M, F] f32, or [M, T] i8 characters, see `letters.rows_of`.
    labels: [M] i64 classes, or i8 characters.
  """

  name: str
  features: np.ndarray
  labels: np.ndarray


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """The folder's samples, with its users as clients.

  If F is a square, as 784 in FEMNIST, rows of F numbers are square images.
  Otherwise they are features [C, F], as the 60 of Synthetic. Pixels stay as in
  LEAF: in FEMNIST ink is 0 and paper 1. They are stored as bytes where all are
  multiples of 1 / 255, as FEMNIST's are.

  Texts, as Shakespeare's of 80 characters, are tokens [C, T] i8 of LEAF's
  alphabet, with the next character as label: the task next_token. A character
  outside the alphabet is read as its last letter, "}", with a warning that
  counts them.

  Reading JSON is slow, so the arrays are also written to the folder, as
  `agsfl_cache.npz`, and read from there until a JSON file changes.

  Args:
    dataset: for messages.
    place: the folder with `train` and `test`.
    options: not read.
    seed: not read; LEAF splits the samples itself.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file and the key.
  """
  del options, seed
  setting = f"--dataset={dataset}"
  found = files_of(setting, Path(place))
  cache = Path(place) / _CACHE
  stamp = np.array(f"{_VERSION} {stamp_of(setting, found)}")
  if cache.exists():
    samples = _cached(setting, cache, stamp)
    if samples is not None:
      return samples
  samples = checked(_converted(setting, found))
  if samples.features.ndim == 4:
    _refuse_rgba(setting, samples.features)
  _write_cache(cache, samples, stamp)
  return samples


def files_of(setting: str, place: Path) -> list[tuple[Path, str]]:
  """Lists the JSON files.

  Args:
    setting: what messages begin with, such as "--dataset=leaf:DIR".
    place: the folder.

  Returns:
    The files, each with "train" or "test".

  Raises:
    ConfigError: `train` or `test` has no such file.
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
  """Names, sizes and times of files as text; it changes when the files do.

  Args:
    setting: see `files_of`.
    found: see `files_of`.

  Raises:
    ConfigError: a file cannot be found.
  """
  facts = []
  for path, split in found:
    with refused(setting, f"{path}: cannot be read"):
      state = path.stat()
    facts.append((f"{split}/{path.name}", state.st_size, state.st_mtime_ns))
  return json.dumps(facts)


def _cached(setting, cache, stamp):
  """The cache's samples, or None if it is damaged or of other files."""
  try:
    arrays = npz.read_arrays(setting, cache, ("stamp",))
    if not np.array_equal(arrays["stamp"], stamp):
      return None
    keys = ("features", "labels", "is_train", "user", "users")
    arrays = npz.read_arrays(setting, cache, keys)
    return checked(_samples(setting, *(arrays[key] for key in keys)))
  except Exception:  # damage of any kind: the JSON files are read instead
    return None


def _samples(setting, features, labels, is_train, owners, owner_names):
  """Samples of arrays; whole numbers are characters."""
  samples = Samples(
      setting, features, labels, is_train, owners, owner_names, _NAMES
  )
  if features.dtype != np.int8:
    return samples
  return samples._replace(task=NEXT_TOKEN, num_classes=len(letters.ALPHABET))


def _write_cache(cache, samples, stamp):
  try:
    with files.written_whole(cache) as path, path.open("wb") as file:
      np.savez(
          file,
          stamp=stamp,
          features=samples.features,
          labels=samples.labels,
          is_train=samples.is_train,
          user=samples.owners,
          users=samples.owner_names,
      )
  except OSError as error:
    logging.warning("%s cannot be written: %s", cache, error.strerror)


def sizes_of(setting: str, path: Path) -> dict[str, int]:
  """How many samples each user has, from the lists of a file.

  Args:
    setting: see `files_of`.
    path: a JSON file.

  Returns:
    By user the number in `num_samples`.

  Raises:
    ConfigError: the text names the file and the key.
  """
  # Read both lists, and stop after them.
  lists: dict[str, list] = {"users": [], "num_samples": []}
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

  # A count for each user, and names that can be written.
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
        f"{path}: num_samples: must be one for each of 'users', all different",
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
        f"{path}: num_samples: must sum to at most {most}, the bytes of the "
        f"file, not {sum(counts)}",
    )
  return dict(zip(users, counts, strict=True))


def users_of(
    setting: str, path: Path, sizes: dict[str, int], num_classes: int
) -> Iterator[User]:
  """Reads the users of one file, one after another.

  Only one user is in memory at a time.

  Args:
    setting: see `files_of`.
    path: a JSON file.
    sizes: see `sizes_of`.
    num_classes: labels must be below it.

  Yields:
    The users with at least one sample, each with as many as in `sizes`.

  Raises:
    ConfigError: the text names the file, the user and the key.
  """
  left = dict(sizes)
  with _readable(setting, path) as file:
    for name, content in ijson.kvitems(file, "user_data", use_float=True):
      where = f"{path}: user_data of {name[:_LONGEST_NAME]!r}"
      user = _user(setting, where, name, content, num_classes)
      if name not in left:
        refuse(setting, f"{where}: must be one of 'users', and only once")
      size, count = left.pop(name), len(user.labels)
      if size != count:
        refuse(
            setting, f"{where}: has {count} samples, num_samples says {size}"
        )
      if size:
        yield user
  for name, size in left.items():
    if size:
      refuse(
          setting,
          f"{path}: user_data lacks {name!r}, num_samples says {size}",
      )


@contextlib.contextmanager
def _readable(setting, path):
  """The open file; one that is no JSON is refused."""
  errors = (ijson.JSONError, UnicodeError, RecursionError)
  with (
      refused(setting, f"{path}: cannot be read"),
      refused(setting, f"{path}: cannot be read as JSON", errors),
      path.open("rb") as file,
  ):
    yield shallow.Shallow(file)


def _user(setting, where, name, content, num_classes):
  """A user's object as arrays."""
  # Two arrays of the right shapes.
  if not isinstance(content, dict):
    refuse(setting, f"{where}: must be an object with x and y")
  if letters.is_text(content.get("x")):
    return _user_of_text(setting, where, name, content)
  rows = _array(setting, where, content, "x", "numbers, or texts")
  labels = _array(setting, where, content, "y", "whole numbers")
  if labels.ndim != 1:
    refuse(setting, f"{where}, y: must be one whole number for each sample")
  if not labels.size and not rows.size:
    return User(name, np.zeros((0, 1), np.float32), labels)
  if rows.ndim != 2 or not rows.size:
    refuse(
        setting,
        f"{where}, x: must be rows of numbers, as the 784 of FEMNIST's square "
        f"images; not of shape {list(rows.shape)}",
    )
  _require_pairs(setting, where, rows, labels)

  # Numbers of the right values.
  for label in labels.tolist():
    if label != int(label):
      refuse(setting, f"{where}, y: must be whole numbers, not {label}")
    if not 0 <= label < num_classes:
      refuse(
          setting,
          f"{where}, y: must lie in 0 to {num_classes - 1}, not {label}",
      )
  with np.errstate(over="ignore"):
    rows = rows.astype(np.float32)
  if not np.isfinite(rows).all():
    refuse(setting, f"{where}, x: holds values that are not finite")
  return User(name, rows, labels.astype(np.int64))


def _user_of_text(setting, where, name, content):
  """A user's object of texts, each with its next character, as arrays."""
  rows = letters.rows_of(content["x"])
  if rows is None:
    refuse(setting, f"{where}, x: must be texts of one length")
  if "y" not in content:
    refuse(setting, f"{where}, y: is missing")
  is_text = letters.is_text(content["y"])
  nexts = letters.rows_of(content["y"]) if is_text else None
  if nexts is None or nexts.shape[1] != 1:
    refuse(
        setting,
        f"{where}, y: must be a character for each sample, or else x rows of "
        "numbers",
    )
  _require_pairs(setting, where, rows, nexts)
  return User(name, rows, nexts[:, 0])


def _require_pairs(setting, where, rows, labels):
  if len(rows) != len(labels):
    refuse(setting, f"{where}: x has {len(rows)} samples, y {len(labels)}")


def _array(setting, where, content, key, what):
  """The numbers under a key."""
  if key not in content:
    refuse(setting, f"{where}, {key}: is missing")
  problem = f"{where}, {key}: must be {what}"
  errors = (ValueError, TypeError, OverflowError)
  with refused(setting, f"{problem}, as many for each sample", errors):
    array = np.array(content[key])
  if array.ndim and array.size and array.dtype.kind not in "if":
    refuse(setting, problem)
  return array


def _converted(setting, found):
  """The samples of all files, in arrays that are made before reading."""
  sizes = [sizes_of(setting, path) for path, _ in found]
  counts = [sum(of_file.values()) for of_file in sizes]
  total = sum(counts)
  features, form, filled, unknown = None, "", 0, 0
  labels, owners = np.zeros(total, np.int64), np.zeros(total, np.int32)
  numbers: dict[str, int] = {}

  # User by user into the arrays.
  for (path, _), of_file in zip(found, sizes, strict=True):
    for name, rows, own in users_of(
        setting, path, of_file, most_classes(total)
    ):
      if features is None:
        form = _form(rows)
        features = aligned.empty((total, rows.shape[1]), _first_type(rows))
      if _form(rows) != form:
        refuse(
            setting,
            f"{path}: user_data of {name!r}, x: samples of {_form(rows)}, "
            f"others have {form}",
        )
      if rows.dtype == np.int8:
        unknown += letters.replace_unknown(rows) + letters.replace_unknown(own)
      # The array has bytes until a pixel is no multiple of 1 / 255.
      if features.dtype == np.uint8:
        levels = as_bytes(rows)
        if levels is None:
          features = _as_floats(features, filled)
        else:
          rows = levels
      places = slice(filled, filled + len(own))
      features[places] = rows
      labels[places] = own
      owners[places] = numbers.setdefault(name, len(numbers))
      filled = places.stop

  # Rows of pixels as images.
  if features is None:
    refuse(setting, "must hold samples, found none")
  if unknown:
    logging.warning(
        "%s: %d of %d characters are not in LEAF's alphabet; each is read as "
        "%r.",
        setting, unknown, features.size + total, letters.ALPHABET[-1],
    )
  side = _side(features)
  if side:
    features = features.reshape(-1, side, side, 1)
  is_train = np.repeat([split == "train" for _, split in found], counts)
  return _samples(
      setting, features, labels, is_train, *in_order(owners, numbers)
  )


def _form(rows):
  """What a sample is, for messages."""
  what = "characters" if rows.dtype == np.int8 else "numbers"
  return f"{rows.shape[1]} {what}"


def _side(rows):
  """Of square images, in pixels; 0 if the rows are no images."""
  side = math.isqrt(rows.shape[1])
  return side if rows.dtype != np.int8 and side**2 == rows.shape[1] else 0


def _first_type(rows):
  """Of the array of all samples; that of images is bytes, if it can be."""
  return np.uint8 if _side(rows) else rows.dtype


def _refuse_rgba(setting, images):
  """Refuses rows of RGBA: they look like grey images of twice the side.

  In RGBA a pixel is four numbers. In grey pictures the first three are equal in
  every pixel. In opaque pictures the fourth is the same in all pixels.
  """
  side = images.shape[1]
  if side % 2 or side < _RGBA_SIDE:
    return
  pixels = images.reshape(len(images), -1, 4)
  blocks = [
      pixels[start : start + _BLOCK] for start in range(0, len(images), _BLOCK)
  ]
  # A picture of one colour shows nothing.
  flat = all((block[..., :3] == pixels[0, 0, 0]).all() for block in blocks)
  grey = all((block[..., :1] == block[..., 1:3]).all() for block in blocks)
  opaque = all((block[..., 3] == pixels[0, 0, 3]).all() for block in blocks)
  if not flat and (grey or opaque):
    refuse(
        setting,
        f"x: must be grey images, a number for each pixel; rows of {side**2} "
        f"numbers look like RGBA of side {side // 2}",
    )


def as_bytes(pixels: np.ndarray) -> np.ndarray | None:
  """Floats v / 255 as bytes v, or None if one is no such multiple."""
  levels = np.rint(255 * pixels)
  fits = (levels >= 0) & (levels <= 255) & (abs(255 * pixels - levels) < 1e-3)
  return levels.astype(np.uint8) if fits.all() else None


def _as_floats(images, filled):
  """The first `filled` rows of bytes v as floats v / 255."""
  floats = aligned.empty(images.shape, np.float32)
  for start in range(0, filled, _BLOCK):
    rows = slice(start, min(start + _BLOCK, filled))
    floats[rows] = images[rows] / np.float32(255)
  return floats
