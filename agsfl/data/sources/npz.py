"""Arrays in NumPy's npz form, read into memory that JAX can use."""

import zipfile
from pathlib import Path
from typing import NoReturn

import numpy as np

from agsfl import aligned
from agsfl.data.samples import Names, Samples, coded, with_channels
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import refuse, refused

_FEATURES = ("features", "images")
_OWNERS = ("client", "writer")
_PIECE = 1 << 24
# Names of other arrays that a message lists.
_MOST_NAMES = 10


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """A file with features (or images), labels, is_train and perhaps client.

  Args:
    dataset: for messages.
    place: the file. Instead of client, the ids may be called writer. The keys
      features and images mean the same, but grey images [C, H, W] get an axis
      of one channel, and features stay as they are.
    options: not read.
    seed: not read; the file says which samples are for testing.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file and the key.
  """
  del options, seed
  setting, path = f"--dataset={dataset}", Path(place)
  keys = (*_FEATURES, "labels", "is_train", *_OWNERS)
  arrays = read_arrays(setting, path, keys)
  features = next((key for key in _FEATURES if key in arrays), _FEATURES[0])
  for key in (features, "labels", "is_train"):
    if key not in arrays:
      refuse_missing(setting, path, key)
  key = next((key for key in _OWNERS if key in arrays), _OWNERS[0])
  owners = owner_names = None
  if key in arrays:
    owners, owner_names = coded(setting, key, arrays[key])
  return Samples(
      setting,
      with_channels(arrays[features])
      if features == "images" else arrays[features],
      arrays["labels"],
      arrays["is_train"],
      owners,
      owner_names,
      Names(features, owners=key),
  )


def refuse_missing(setting: str, path: Path, key: str) -> NoReturn:
  """Refuses a file without an array, and says which arrays it has."""
  with zipfile.ZipFile(path) as file:
    names = [name.removesuffix(".npy") for name in file.namelist()]
  more = ["..."] if len(names) > _MOST_NAMES else []
  has = ", ".join([*names[:_MOST_NAMES], *more]) or "none"
  refuse(setting, f"lacks the key {key!r}, has {has}")


def read_arrays(
    setting: str, path: Path, keys: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Reads arrays of a file, each straight into its final memory.

  `np.load` gives arrays that are not aligned. Pickles are not read.

  Args:
    setting: what messages begin with.
    path: the npz file.
    keys: of the arrays to read; those that the file lacks are left out.

  Returns:
    The arrays by key.

  Raises:
    ConfigError: the file is damaged, or no npz file.
  """
  arrays = {}
  # Damage raises errors of zlib, struct, zipfile and the header's parser.
  with refused(setting, "must be an npz file that can be read", Exception):
    with zipfile.ZipFile(path) as file:
      names = set(file.namelist())
      for key in keys:
        if f"{key}.npy" in names:
          with (
              refused(setting, f"{key} cannot be read", Exception),
              file.open(f"{key}.npy") as member,
          ):
            arrays[key] = _array(member)
  return arrays


def _array(member):
  """One array in NumPy's npy form."""
  version = np.lib.format.read_magic(member)
  header = {
      (1, 0): np.lib.format.read_array_header_1_0,
      (2, 0): np.lib.format.read_array_header_2_0,
  }[version]
  shape, by_columns, dtype = header(member)
  if dtype.hasobject:
    raise ValueError("it holds Python objects")
  array = aligned.empty(shape, dtype)
  if by_columns and array.size:
    # The file has the first number of every sample, then the second, and so on.
    # Reading one column at a time never has the array in memory twice.
    column = np.empty(shape[0], dtype)
    for index in np.ndindex(shape[:0:-1]):
      _fill(column, member)
      array[:, *index[::-1]] = column
  else:
    _fill(array, member)
  # zipfile compares the checksum when it reads the end.
  member.read(1)
  return array


def _fill(array, member):
  """Reads as many bytes as the array has."""
  rest = memoryview(array.reshape(-1).view(np.uint8))
  while len(rest):
    piece = member.read(min(len(rest), _PIECE))
    if not piece:
      raise ValueError(f"it ends {len(rest)} bytes early")
    rest[: len(piece)] = piece
    rest = rest[len(piece) :]
