"""A file of slots of equal size; each has the row of one client."""

import os
import tempfile
from pathlib import Path

import numpy as np

from agsfl.errors import refused

_PAGE = 4096


class SlotFile:
  """Reads and writes slots by number; it does not know what they hold.

  It reads and writes through the system's cache and maps nothing into memory.
  So rows on the disk do not count as memory of this process.

  Attributes:
    name: of the file in messages; of its folder if it has no name.
  """

  def __init__(self, path: Path | None, size: int):
    """Opens the file, and makes it if there is none.

    Args:
      path: None for a file without a name in the system's temporary folder. It
        disappears with this process.
      size: bytes of a row.

    Raises:
      ConfigError: the file cannot be made.
    """
    self.name = str(path or tempfile.gettempdir())
    # Rows of pages begin at a page, so the system never reads before it writes.
    unit = _PAGE if size >= _PAGE else 8
    self._step = -(-size // unit) * unit
    with self._usable():
      self._file = _opened(path)

  def _usable(self):
    """A context that turns errors of the disk into one line."""
    return refused(self.name, "must be a place that can be written")

  def write(self, slot: int, pieces: list[np.ndarray]):
    """Writes a row.

    Args:
      slot: from 0.
      pieces: [bytes] u8 arrays, which follow each other in the slot.

    Raises:
      ConfigError: the disk refuses, for instance because it is full.
    """
    place = slot * self._step
    with self._usable():
      for piece in pieces:
        # The system may write less than it is asked to.
        while piece.size:
          count = os.pwrite(self._file.fileno(), piece.data, place)
          piece, place = piece[count:], place + count

  def read(self, slot: int, pieces: list[np.ndarray]) -> bool:
    """Reads a row.

    Args:
      slot: from 0.
      pieces: [bytes] u8 arrays to fill, of the sizes that were written.

    Returns:
      Whether the file has the whole row.

    Raises:
      ConfigError: the disk refuses.
    """
    place = slot * self._step
    with self._usable():
      for piece in pieces:
        while piece.size:
          count = os.preadv(self._file.fileno(), [piece.data], place)
          if not count:
            return False
          piece, place = piece[count:], place + count
    return True

  def sync(self):
    """Waits until all that was written is on the disk; raises as `write`."""
    with self._usable():
      os.fdatasync(self._file.fileno())

  def close(self):
    """Closes the file."""
    self._file.close()


def _opened(path):
  if path is None:
    return tempfile.TemporaryFile(buffering=0)
  path.parent.mkdir(parents=True, exist_ok=True)
  if path.exists():
    return path.open("r+b", buffering=0)
  file = path.open("x+b", buffering=0)
  # The file's name must be on the disk too, before a checkpoint refers to it.
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)
  return file
