"""Numbers as readers write them: 300, not 300.0."""

from typing import Any


def whole(value: Any) -> Any:
  """A float that is a whole number below 2^53 as int; else the same value.

  >>> whole(300.0), whole(0.5), whole("1%"), whole(None)
  (300, 0.5, '1%', None)
  """
  is_whole = isinstance(value, float) and value.is_integer()
  return int(value) if is_whole and abs(value) < 2**53 else value
