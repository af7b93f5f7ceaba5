"""Says which operation of a network has no fast form."""

import functools

from absl import logging


@functools.cache
def warn(operation: str, remedy: str):
  """Warns once of each operation.

  Args:
    operation: what is slow.
    remedy: what would be fast in its place.
  """
  logging.warning(
      "The network has %s, which XLA computes slowly for each client. %s",
      operation, remedy,
  )
