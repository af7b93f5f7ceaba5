"""The characters of LEAF's Shakespeare as numbers.

Source: TalwalkarLab/leaf, models/utils/language_utils.py, ALL_LETTERS.
"""

import string
from typing import Any

import numpy as np

from agsfl.data.sources.characters import code_points, places_in

ALPHABET = (
    "\n !\"&'(),-.0123456789:;>?"
    + string.ascii_uppercase + "[]" + string.ascii_lowercase + "}"
)
_PLACES = places_in(code_points(ALPHABET))


def is_text(values: Any) -> bool:
  """Whether a list holds texts alone, and at least one."""
  return (
      isinstance(values, list)
      and bool(values)
      and all(isinstance(value, str) for value in values)
  )


def rows_of(texts: list[str]) -> np.ndarray | None:
  """The places of characters in the alphabet.

  Args:
    texts: M of the same length T.

  Returns:
    [M, T] i8, -1 for characters that are not in the alphabet. None if the
    texts differ in length, or are empty.
  """
  lengths = set(map(len, texts))
  if len(lengths) != 1 or 0 in lengths:
    return None
  return _PLACES[code_points("".join(texts))].reshape(len(texts), -1)


def replace_unknown(places: np.ndarray) -> int:
  """Puts the last letter, "}", in place of characters that are unknown.

  LEAF does the same with its labels: the place -1 is the last one in Python.

  Args:
    places: i8, changed in place.

  Returns:
    The number of unknown characters.
  """
  unknown = places < 0
  places[unknown] = len(ALPHABET) - 1
  return int(unknown.sum())
