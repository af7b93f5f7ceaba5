"""Arrays in NumPy's npz form, read where JAX can use them."""

import zipfile
from pathlib import Path

import numpy as np

from agsfl.data import aligned
from agsfl.data.samples import Samples, checked, coded, fail

_KEYS = ("images", "labels", "is_train", "client", "writer")
_PIECE = 1 << 24


def read(dataset: str, place: str, seed: int) -> Samples:
  """A file of the keys images, labels, is_train and client (or writer)."""
  del seed
  arrays = read_arrays(dataset, Path(place), _KEYS)
  for key in _KEYS[:3]:
    if key not in arrays:
      fail(dataset, f"lacks the key {key!r}")
  images, labels, is_train = (arrays[key] for key in _KEYS[:3])
  key = next((key for key in _KEYS[3:] if key in arrays), "client")
  owners = names = None
  if key in arrays:
    ids = arrays[key]
    if ids.ndim != 1 or ids.dtype.kind not in "iuU":
      fail(
          dataset,
          f"{key} must be one integer or string for each image, not "
          f"{ids.dtype}{list(ids.shape)}",
      )
    owners, names = coded(ids)
  return checked(
      Samples(dataset, images, labels, is_train, owners, names, key)
  )


def read_arrays(
    dataset: str, path: Path, keys: tuple[str, ...]
) -> dict[str, np.ndarray]:
  """Arrays of a file, each read straight to where it stays.

  `np.load` gives arrays that are not aligned. Pickles are not read.

  Args:
    dataset: for messages.
    path: the npz file.
    keys: those to read, where they are.

  Returns:
    The arrays by key.

  Raises:
    ConfigError: the text says what ails the file.
  """
  arrays = {}
  key = None
  # Damage shows in many ways: zlib's, struct's, zipfile's, the parser's errors.
  try:
    with zipfile.ZipFile(path) as file:
      held = set(file.namelist())
      for key in keys:
        if f"{key}.npy" in held:
          with file.open(f"{key}.npy") as member:
            arrays[key] = _array(member)
  except OSError as error:
    fail(dataset, f"cannot be read: {error.strerror or error}")
  except Exception as error:
    where = f"{key} cannot be read" if key else "is not an npz file"
    fail(dataset, f"{where} ({type(error).__name__}: {error})")
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
    # One number of every sample, and so on: never the whole array twice.
    column = np.empty(shape[0], dtype)
    for index in np.ndindex(shape[:0:-1]):
      _fill(column, member)
      array[:, *index[::-1]] = column
  else:
    _fill(array, member)
  # zipfile compares the checksum at the end.
  member.read(1)
  return array


def _fill(array, member):
  """Reads as many bytes as the array has."""
  place = memoryview(array.reshape(-1).view(np.uint8))
  while len(place):
    piece = member.read(min(len(place), _PIECE))
    if not piece:
      raise ValueError(f"it ends {len(place)} bytes early")
    place[: len(piece)] = piece
    place = place[len(piece) :]
