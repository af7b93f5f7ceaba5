"""Shadow paging: a row that a saved state needs is never overwritten."""

from collections import deque

import numpy as np


class SlotTable:
  """Which slot of a file has the row of which client.

  A client's first write after a commit goes to a slot that no retained table
  refers to; its next writes go there again. So whatever happens between two
  commits, the rows of all retained tables stay as they are.

  Attributes:
    slots: [N] i32, -1 for a client without a row.
  """

  def __init__(self, num_clients: int, retained: int):
    """No client has a row.

    Args:
      num_clients: N.
      retained: T, the number of committed tables whose rows must stay.
    """
    self.restore(np.full((retained, num_clients), -1, np.int32))

  def restore(self, tables: np.ndarray):
    """Goes back to a commit.

    Args:
      tables: [T, N] i32, as `commit` returned them.
    """
    self._retained = deque(tables.copy(), maxlen=len(tables))
    self.slots = tables[0].copy()
    self._begin()

  def commit(self) -> np.ndarray:
    """Retains the table; the oldest retained one is dropped.

    Returns:
      [T, N] i32, all retained tables, the newest first.
    """
    self._retained.appendleft(self.slots.copy())
    self._begin()
    return self.tables

  @property
  def tables(self) -> np.ndarray:
    """[T, N] i32, all retained tables, the newest first."""
    return np.stack(self._retained)

  def _begin(self):
    """Finds the slots that are free now; all rows belong to a commit."""
    self._is_new = np.zeros(len(self.slots), bool)
    self._end = int(max(table.max() for table in self._retained)) + 1
    is_used = np.zeros(self._end, bool)
    for table in self._retained:
      is_used[table[table >= 0]] = True
    # The lowest is last, where a list loses an item fastest.
    self._free = np.flatnonzero(~is_used)[::-1].tolist()

  def to_write(self, client: int) -> int:
    """A slot for a client's new row.

    Args:
      client: from 0 to N - 1.

    Returns:
      The slot, from 0.
    """
    if not self._is_new[client]:
      if self._free:
        slot = self._free.pop()
      else:
        slot, self._end = self._end, self._end + 1
      self.slots[client] = slot
      self._is_new[client] = True
    return int(self.slots[client])
