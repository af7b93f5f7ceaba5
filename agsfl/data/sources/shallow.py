"""A guard for the JSON parser: files with few levels of brackets."""

import ijson
import numpy as np

_MOST_LEVELS = 16
_STEPS = bytes.maketrans(b"[{]}", b"\1\1\xff\xff")
_OTHERS = bytes(set(range(256)) - set(b"[{]}"))


class Shallow:
  """A binary file of JSON that refuses deeply nested brackets.

  For each open bracket the parser stores all keys above it. So its memory grows
  with the square of the number of levels.
  """

  def __init__(self, file):
    self._file = file
    self._levels = 0
    self._in_text = False
    self._begun = b""  # a backslash whose letter is in the next piece

  def read(self, size: int) -> bytes:
    """As `file.read`.

    Raises:
      ijson.JSONError: there are too many levels.
    """
    piece = self._file.read(size)
    self._count(self._begun + piece)
    return piece

  def _count(self, piece):
    # An escape may be cut by the end of the piece.
    escapes = len(piece) - len(piece.rstrip(b"\\"))
    whole = len(piece) - escapes % 2
    piece, self._begun = piece[:whole], piece[whole:]
    if b"\\" in piece:
      piece = piece.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Most bytes are digits, which NumPy removes fast.
    codes = np.frombuffer(piece, np.uint8)
    piece = codes[(codes > ord("Z")) | (codes == ord('"'))].tobytes()
    # Between quotes is text, whose brackets do not count.
    parts = piece.split(b'"')
    brackets = b"".join(parts[self._in_text :: 2]).translate(_STEPS, _OTHERS)
    self._in_text ^= len(parts) % 2 == 0
    if brackets:
      levels = self._levels + np.frombuffer(brackets, np.int8).cumsum(dtype=int)
      if levels.max() > _MOST_LEVELS:
        raise ijson.JSONError(f"more than {_MOST_LEVELS} levels of brackets")
      self._levels = int(levels[-1])
