"""Numbers and names as readers write and order them."""

import re
from typing import Any

# A number within a name: whole, decimal, or with an exponent.
_NUMBER = re.compile(r"([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")


def whole(value: Any) -> Any:
  """A float that is a whole number below 2^53 as int; else the same value.

  >>> whole(300.0), whole(0.5), whole("1%"), whole(None)
  (300, 0.5, '1%', None)
  """
  is_whole = isinstance(value, float) and value.is_integer()
  return int(value) if is_whole and abs(value) < 2**53 else value


def natural_order(name: Any) -> tuple[list[str | float], str]:
  """A sort key that compares numbers within names by their values.

  >>> sorted(["rate=0.1", "rate=1e-3", "rate=0.02"], key=natural_order)
  ['rate=1e-3', 'rate=0.02', 'rate=0.1']
  >>> sorted(["seed10", "seed2"], key=natural_order)
  ['seed2', 'seed10']
  """
  pieces = _NUMBER.split(str(name))  # text and numbers take turns
  # Names of equal numbers, such as 100 and 1e2, need an order too.
  return [float(p) if i % 2 else p for i, p in enumerate(pieces)], str(name)
