"""Texts as windows of characters, whose labels are the next characters."""

from collections.abc import Mapping

import numpy as np
from absl import logging
from numpy.lib.stride_tricks import sliding_window_view

from agsfl import aligned
from agsfl.data.samples import TEST_SHARE, Names, Samples
from agsfl.errors import refuse, require
from agsfl.tasks import NEXT_TOKEN

# Unicode's characters have numbers below this one.
_CODE_POINTS = 0x110000


def code_points(text: str) -> np.ndarray:
  """[characters] u32, the number of each character in Unicode."""
  return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def places_in(alphabet: np.ndarray) -> np.ndarray:
  """A table that gives each character its place in an alphabet.

  Args:
    alphabet: [L] code points, all different.

  Returns:
    By code point its place, and -1 if it is not in the alphabet; of the
    smallest signed type that holds L.
  """
  places = np.full(_CODE_POINTS, -1, np.min_scalar_type(-len(alphabet)))
  places[alphabet] = np.arange(len(alphabet))
  return places


def samples_of(
    setting: str, documents: Mapping[str, str], length: int
) -> Samples:
  """Cuts documents into windows of T characters.

  The labels of a window are the characters of the same window moved by one.
  Windows do not overlap, except for the last one of a document, which ends with
  the document. The labels that it shares with the window before are -1, "no
  label". So each character but the first is a label once, and there is no
  padding.

  The last fifth of a document's windows is for testing, at least one window if
  there are two. Training ends where testing begins: no character is a label in
  both.

  Tokens are the different characters of all documents, sorted.

  Args:
    setting: what messages begin with, such as "--dataset=topics".
    documents: by the client's name its text. Texts of less than T + 1
      characters are left out, with one warning.
    length: T.

  Returns:
    Samples of next_token: features and labels [C, T], with a client for each
    document.

  Raises:
    ConfigError: no document has two windows.
  """
  # One document must be long enough for training and testing.
  longest = max(map(len, documents.values()), default=0)
  if longest < 3:
    refuse(setting, "must hold a text of at least 3 characters")
  require(
      length <= longest - 2,
      "sequence_length",
      length,
      f"at most {longest - 2}, so that the longest text of {setting} has a "
      "window for training and one for testing",
  )
  names = sorted(name for name, text in documents.items() if len(text) > length)
  if len(names) < len(documents):
    logging.warning(
        "%s: %d of %d texts are left out, for they have less than %d "
        "characters, one more than --sequence_length.",
        setting, len(documents) - len(names), len(documents), length + 1,
    )

  # The vocabulary does not depend on the length of windows.
  seen = np.zeros(_CODE_POINTS, bool)
  for text in documents.values():
    seen[code_points(text)] = True
  vocabulary = np.flatnonzero(seen)
  places = places_in(vocabulary)

  # One document after another into arrays that are made before.
  counts = [-(-(len(documents[name]) - 1) // length) for name in names]
  shape = sum(counts), length
  features = aligned.empty(shape, places.dtype)
  labels, is_train = np.empty(shape, np.int32), np.ones(shape[0], bool)
  end = 0
  for name, count in zip(names, counts, strict=True):
    begin, end = end, end + count
    text = places[code_points(documents[name])]
    starts = length * np.arange(count)
    starts[-1] = len(text) - 1 - length
    windows = sliding_window_view(text, length + 1)[starts]
    features[begin:end], labels[begin:end] = windows[:, :-1], windows[:, 1:]
    labels[end - 1, : length * count - (len(text) - 1)] = -1
    if count > 1:
      is_train[end - max(1, int(TEST_SHARE * count)) : end] = False
  return Samples(
      setting,
      features,
      labels,
      is_train,
      np.repeat(np.arange(len(names), dtype=np.int32), counts),
      np.array(names),
      Names("text", "next characters"),
      NEXT_TOKEN,
      len(vocabulary),
  )
