"""A store whose rows are in the memory of the host."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from agsfl.errors import refuse
from agsfl.stores import rows as of_rows
from agsfl.stores.file import FileStore
from agsfl.stores.rows import Rows, Saved


class HostStore:
  """Rows in memory, which grows with the clients that took part.

  A commit writes the rows that changed to a file. After `restore` a row comes
  from there until the client takes part again.
  """

  def __init__(
      self,
      initial: Sequence[np.ndarray],
      num_clients: int,
      path: Path | None = None,
      states: int = 1,
  ):
    """Every client has the initial row.

    Args:
      initial: the arrays [...] with which each client begins, one for each
        field.
      num_clients: N.
      path: of the file for commits; None for a run that saves no states.
      states: how many saved states stay on the disk, see `FileStore`.

    Raises:
      ConfigError: the file cannot be made.
    """
    self.initial = [np.asarray(row, order="C") for row in initial]
    self.num_clients = num_clients
    self._rows: dict[int, Rows] = {}
    self._changed: set[int] = set()
    self._file = None
    if path is not None:
      self._file = FileStore(self.initial, num_clients, path, states)

  def gather(self, ids: np.ndarray, out: Rows | None = None) -> Rows:
    """See `Store`."""
    out = of_rows.empty(self.initial, len(ids)) if out is None else out
    for place, client in enumerate(ids.tolist()):
      row = self._rows.get(client)
      if row is None and self._file is not None:
        here = slice(place, place + 1)
        self._file.gather(ids[here], [field[here] for field in out])
      else:
        for field, value in zip(out, row or self.initial, strict=True):
          field[place] = value
    return out

  def scatter(self, ids: np.ndarray, rows: Rows):
    """See `Store`."""
    for place, client in enumerate(ids.tolist()):
      if client < self.num_clients:
        if client not in self._rows:
          self._rows[client] = [np.empty_like(row) for row in self.initial]
        for value, field in zip(self._rows[client], rows, strict=True):
          value[...] = field[place]
        self._changed.add(client)

  @property
  def saved(self) -> Saved:
    """See `Store`."""
    return self._with_file().saved

  def commit(self) -> Saved:
    """See `Store`."""
    file = self._with_file()
    for client in sorted(self._changed):
      file.scatter(
          np.array([client]), [row[None] for row in self._rows[client]]
      )
    self._changed.clear()
    return file.commit()

  def restore(self, saved: Saved):
    """See `Store`."""
    self._with_file().restore(saved)
    self._rows.clear()
    self._changed.clear()

  def _with_file(self):
    if self._file is None:
      refuse("store", "must have a folder if its states are to be saved")
    return self._file

  def close(self):
    """See `Store`."""
    if self._file is not None:
      self._file.close()
