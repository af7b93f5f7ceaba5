"""What a store is: rows of clients, read and written by client."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from agsfl import aligned

# One array [n, ...] for each field; its place i has the field's row of the
# i-th client.
Rows = list[np.ndarray]


class Saved(NamedTuple):
  """Where the rows of a saved state are; part of its checkpoint.

  Attributes:
    tables: [T, N] i32, the slot of each client in the file of rows, -1 for a
      client without a row. The first table is that of this state. The others
      belong to the states before it, whose slots must not change either.
    sums: [N] u32, a checksum of each client's row in the first table.
  """

  tables: np.ndarray
  sums: np.ndarray


class Store(Protocol):
  """The rows of N clients, of which each round needs those of n clients.

  Each client begins with the same initial row. Memory or disk is used only for
  clients that took part. In all methods `ids` is an [n] i32 array of different
  clients; a number from N on is an empty place.

  Attributes:
    initial: the initial row: an array [...] for each field.
    num_clients: N.
  """

  initial: Rows
  num_clients: int

  def gather(self, ids: np.ndarray, out: Rows | None = None) -> Rows:
    """Reads rows.

    Args:
      ids: [n] i32; an empty place gives the initial row.
      out: C-contiguous arrays [n, ...] to fill; None for new ones.

    Returns:
      The rows in `out`.

    Raises:
      ConfigError: a row cannot be read.
    """

  def scatter(self, ids: np.ndarray, rows: Rows):
    """Writes rows.

    Args:
      ids: [n] i32; an empty place is skipped.
      rows: arrays [n, ...]. They are copied, so they may change afterwards.

    Raises:
      ConfigError: a row cannot be written.
    """

  @property
  def saved(self) -> Saved:
    """The newest commit; before the first one, a state without rows."""

  def commit(self) -> Saved:
    """Makes all rows durable, so that a checkpoint can refer to them.

    Only rows that changed since the last commit are written.

    Returns:
      What `restore` needs. Save it with the checkpoint.

    Raises:
      ConfigError: the rows cannot be written.
    """

  def restore(self, saved: Saved):
    """Goes back to the rows of a commit, bit for bit.

    Args:
      saved: from a store of the same file, number of clients and fields.

    Raises:
      ConfigError: some of these rows are damaged or lost. The store is then as
        it was before.
    """

  def close(self):
    """Closes the file, if there is one."""


def empty(initial: Sequence[np.ndarray], count: int) -> Rows:
  """Room for rows, which JAX uses on CPU without a copy.

  Args:
    initial: the arrays of one client.
    count: n.

  Returns:
    An array [n, ...] for each field.
  """
  return [aligned.empty((count, *row.shape), row.dtype) for row in initial]


def bytes_at(rows: Rows, place: int) -> list[np.ndarray]:
  """The bytes of each field's row at one place, as views.

  Args:
    rows: C-contiguous arrays [n, ...].
    place: from 0 to n - 1.

  Returns:
    A [bytes] u8 array for each field.
  """
  return [
      field[place : place + 1].reshape(-1).view(np.uint8) for field in rows
  ]
