"""A store whose rows are on the disk."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agsfl.errors import refuse
from agsfl.stores import rows as of_rows
from agsfl.stores.paging import SlotTable
from agsfl.stores.rows import Rows, Saved
from agsfl.stores.slots import SlotFile

# A state's rows are committed before the state is written, while the state
# before it may still be on its way to the disk.
_ON_THE_WAY = 2


class FileStore:
  """Rows in a file; in memory are only a few numbers for each client."""

  def __init__(
      self,
      initial: Sequence[np.ndarray],
      num_clients: int,
      path: Path | None = None,
      states: int = 1,
  ):
    """Opens the file; every client has the initial row.

    Args:
      initial: the arrays [...] with which each client begins, one for each
        field.
      num_clients: N.
      path: of the file, whose rows `restore` finds again. None for a file
        that disappears with this process.
      states: how many saved states stay on the disk. The rows of so many
        commits, and of two more that are on the way, are never overwritten.

    Raises:
      ConfigError: the file cannot be made.
    """
    self.initial = [np.asarray(row, order="C") for row in initial]
    self.num_clients = num_clients
    self._file = SlotFile(path, sum(row.nbytes for row in self.initial))
    self._table = SlotTable(num_clients, states + _ON_THE_WAY)
    self._sums = np.zeros(num_clients, np.uint32)
    self._saved = Saved(self._table.tables, self._sums.copy())

  def gather(self, ids: np.ndarray, out: Rows | None = None) -> Rows:
    """See `Store`."""
    out = of_rows.empty(self.initial, len(ids)) if out is None else out
    for place, client in enumerate(ids.tolist()):
      slot = self._table.slots[client] if client < self.num_clients else -1
      if slot < 0:
        for field, row in zip(out, self.initial, strict=True):
          field[place] = row
      elif not self._file.read(int(slot), of_rows.bytes_at(out, place)):
        self._refuse([client])
    return out

  def scatter(self, ids: np.ndarray, rows: Rows):
    """See `Store`."""
    rows = [np.ascontiguousarray(field) for field in rows]
    for place, client in enumerate(ids.tolist()):
      if client < self.num_clients:
        pieces = of_rows.bytes_at(rows, place)
        self._file.write(self._table.to_write(client), pieces)
        self._sums[client] = _checksum(pieces)

  @property
  def saved(self) -> Saved:
    """See `Store`."""
    return self._saved

  def commit(self) -> Saved:
    """See `Store`."""
    self._file.sync()
    self._saved = Saved(self._table.commit(), self._sums.copy())
    return self._saved

  def restore(self, saved: Saved):
    """See `Store`; it reads all these rows once, in the order of the file."""
    table = saved.tables[0]
    row = of_rows.empty(self.initial, 1)
    pieces = of_rows.bytes_at(row, 0)
    clients = np.argsort(table, kind="stable")
    damaged = [
        client
        for client in clients[table[clients] >= 0].tolist()
        if not self._file.read(int(table[client]), pieces)
        or _checksum(pieces) != saved.sums[client]
    ]
    if damaged:
      self._refuse(damaged)
    self._saved = saved
    self._sums = saved.sums.copy()
    self._table.restore(saved.tables)

  def _refuse(self, clients):
    refuse(
        self._file.name,
        f"has damaged rows of {len(clients)} clients, of which client "
        f"{min(clients)} is the first; remove the run's folder to start again "
        "from round 1",
    )

  def close(self):
    """See `Store`."""
    self._file.close()


def _checksum(pieces: list[np.ndarray]) -> int:
  """A u32: the wrapping sum of the 32-bit words of [bytes] u8 arrays."""
  total = 0
  for piece in pieces:
    rest = piece.size % 4
    words = piece[: piece.size - rest].view(np.uint32)
    total += int(np.add.reduce(words, dtype=np.uint32))
    total += int.from_bytes(piece[piece.size - rest :].tobytes(), "little")
  return total % 2**32
