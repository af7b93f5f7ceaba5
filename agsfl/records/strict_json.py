"""Writes and reads JSON, which has null in place of NaN and infinity."""

import json
import math
import reprlib
from typing import Any


def finite(value: Any) -> Any:
  """The value, or None, JSON's null, in place of NaN and infinity.

  >>> finite(2.5), finite(math.inf), finite(None)
  (2.5, None, None)
  """
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def written(content: Any, indent: int | None = None) -> str:
  """JSON text that ends with a newline.

  Args:
    content: of types that JSON has.
    indent: spaces for each level; None writes one line.

  Raises:
    ValueError: a number is not finite.
  """
  return json.dumps(content, indent=indent, allow_nan=False) + "\n"


def parsed(content: bytes) -> dict[str, Any]:
  """A JSON object from UTF-8 text. Its numbers may be NaN or infinite.

  Raises:
    ValueError: it is no JSON object.
    RecursionError: it has thousands of brackets inside each other.
  """
  try:
    value = json.loads(content.decode("utf-8"))
  except ValueError as error:
    raise ValueError(f"it is not JSON ({error})") from error
  if not isinstance(value, dict):
    raise ValueError(f"it must be a JSON object, not {reprlib.repr(value)}")
  return value
