"""The columns of metrics.jsonl, and the values that each may have.

A new column of all or of some rows is one more entry of `ROWS`. All other
columns are the user's own metrics.
"""

import math
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

from agsfl.clocks import CAUSES
from agsfl.records.fairness import SPREAD


class Columns(NamedTuple):
  """Columns that a row has together: all of them or none.

  Attributes:
    fits: by name, whether a column may have this value.
    always: whether every row has them, but perhaps that of round 0.
  """

  fits: dict[str, Callable[[Any], bool]]
  always: bool = False


def is_count(value: Any) -> bool:
  """Whether it is a whole number from 0."""
  return type(value) is int and 0 <= value < 2**53


def is_number(value: Any) -> bool:
  """Whether it is a number in the range of float32; NaN and infinity count."""
  if type(value) is float and not math.isfinite(value):
    return True
  return type(value) in (int, float) and abs(value) < 2**128


def is_real(value: Any) -> bool:
  """Whether it is a finite number in the range of float32."""
  return is_number(value) and math.isfinite(value)


def is_share(value: Any) -> bool:
  """Whether it is from 0 to 1, or unknown (None or NaN)."""
  return _is_known_or_null(value) and (
      value is None or math.isnan(value) or 0 <= value <= 1
  )


def _is_known_or_null(value):
  """A number, which may be infinite or NaN, or null in place of these."""
  return value is None or is_number(value)


def _is_float32(value):
  """A finite number. A smaller one than 2^-149 is no float32."""
  return is_real(value) and (value == 0 or abs(value) >= 2**-149)


def _is_size(value):
  return is_real(value) and value >= 0


def _is_sign(value):
  return value is None or (is_number(value) and value in (-1, 0, 1))


# Of some tasks, and what figures call them.
OF_TASKS = {"test_perplexity": "test perplexity", "test_rmse": "test RMSE"}

# Round 0 is the evaluation of the first weights. Its row has these columns and
# those of an evaluation.
_OF_ROUND_0 = Columns({"round": is_count, "time": _is_float32}, always=True)
_OF_EVALUATIONS = Columns({
    **dict.fromkeys(("train_loss", "test_loss"), _is_known_or_null),
    "test_accuracy": is_share,
})

ROWS = (
    _OF_ROUND_0,
    Columns(
        {
            **dict.fromkeys(("k_up", "k_down"), is_count),
            **dict.fromkeys(("k", "k_probe"), _is_float32),
            "minibatch_loss": _is_known_or_null,
            "sign": _is_sign,
        },
        always=True,
    ),
    # Runs of version 0.1 have neither bytes nor the spread over clients.
    Columns(dict.fromkeys(("bytes_up", "bytes_down"), _is_size)),
    # Rounds in which some of the clients take part, or drop out.
    Columns(dict.fromkeys(("participants", "dropped"), is_count)),
    # Rounds in which clients' messages may differ in size.
    Columns(dict.fromkeys(("all_bytes_up", "all_bytes_down"), _is_size)),
    # Simulated seconds, also of round 0; `slowest` is a row of clients.csv,
    # from 0.
    Columns({"seconds": _is_size}),
    Columns({
        "late": is_count,
        "slowest": lambda value: value is None or is_count(value),
        "slow_because": lambda value: value in CAUSES,
    }),
    _OF_EVALUATIONS,
    Columns(dict.fromkeys(SPREAD, is_share)),
    # Of tasks that predict tokens, or real numbers.
    *(Columns({name: _is_known_or_null}) for name in OF_TASKS),
)
COLUMNS = frozenset(name for columns in ROWS for name in columns.fits)
# Those of evaluations alone; figures draw lines between their values.
EVALUATED = (*_OF_EVALUATIONS.fits, *SPREAD, *OF_TASKS)


def require(fits: Any, name: str, value: Any):
  """Raises a ValueError about a value that does not fit."""
  if not fits:
    raise ValueError(f"{name} is {reprlib.repr(value)}")


def check(row: dict[str, Any]):
  """Refuses anything that is not a row; a summary is a row too.

  Args:
    row: from JSON.

  Raises:
    ValueError: a column is missing or has a value that cannot be.
  """
  of_start = row.get("round") == 0
  for columns in ROWS:
    present = [name for name in columns.fits if name in row]
    needed = columns.always
    if of_start:
      needed = columns in (_OF_ROUND_0, _OF_EVALUATIONS)
    if present and len(present) < len(columns.fits) and not needed:
      raise ValueError(f"must have all or none of {', '.join(columns.fits)}")
    for name, fits in columns.fits.items():
      if needed or present:
        require(name in row and fits(row[name]), name, row.get(name))

  # The user's own metrics may not be finite.
  for name, value in row.items():
    if name not in COLUMNS:
      check_text("a name", name)
      require(_is_known_or_null(value), name, value)


def check_text(name: str, text: str):
  """Refuses text that cannot be printed: half a character of UTF-16."""
  require(not any("\ud800" <= c <= "\udfff" for c in text), name, text)
