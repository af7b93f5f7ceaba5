"""Rows travel between the store and the device while a round computes."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from agsfl.stores import rows as of_rows
from agsfl.stores.rows import Rows, Store
from agsfl.types import PyTree


class Draw(Protocol):
  """Who takes part in a round; called once for each round, in their order.

  The call comes before the previous round has been computed.
  """

  def __call__(self, round_index: int, /) -> np.ndarray:
    """Returns [n] i32, n the same in all rounds; see `Store`."""


class Play(Protocol):
  """One round of those who take part."""

  def __call__(
      self, state: PyTree, rows: list[jax.Array], ids: np.ndarray, /
  ) -> tuple[PyTree, list[jax.Array], Any]:
    """Takes the state, the cohort's rows [n, ...] and its clients [n] i32.

    It may donate the rows, so that they change in place.

    Returns:
      The state after the round, the cohort's new rows, and what a reader wants
      to know of the round.
    """


class Pipeline:
  """Plays rounds one after another, bit for bit as without overlap.

  While the device computes round m, the host writes the rows of round m-1 and
  reads those of round m+1. A client of both m and m+1 gets its row from the
  result of m, on the device. There are two sets of rows on the device, of which
  one is in use by round m, and two on the host.
  """

  def __init__(
      self,
      store: Store,
      draw: Draw,
      play: Play,
      round_index: int,
      put: Callable[[Rows], list[jax.Array]] = jax.device_put,
  ):
    """Reads nothing yet.

    Args:
      store: of the clients' rows; nobody else writes to it meanwhile.
      draw: who takes part.
      play: one round. It should return before the device has computed it, as a
        compiled function does.
      round_index: of the first round that `step` plays.
      put: places rows on the device.
    """
    self._store = store
    self._draw = draw
    self._play = play
    self._put = put
    self._round_index = round_index

    self._next: tuple[np.ndarray, list[jax.Array]] | None = None
    self._rows: list[jax.Array] = []
    self._unused: list[jax.Array] = []
    self._written = True

  def step(self, state: PyTree) -> tuple[PyTree, Any]:
    """Plays the next round.

    Args:
      state: as the round before returned it; `play` may donate it.

    Returns:
      The state after the round and what a reader wants to know of it. They may
      still be on their way.

    Raises:
      ConfigError: a row cannot be read or written.
    """
    ids, rows = self._next or self._first()
    state, rows, info = self._play(state, rows, ids)
    self._round_index += 1

    # From here on the device computes. The memory of the round before is free
    # as soon as its rows are in the store.
    self.flush()
    self._unused, self._rows = self._rows, rows
    self._ids, self._written = ids, False
    self._next = self._fetch(self._draw(self._round_index))
    return state, info

  def flush(self):
    """Waits for the last round and writes its rows, as before a commit.

    Raises:
      ConfigError: a row cannot be written.
    """
    if not self._written:
      rows = [np.asarray(field) for field in self._rows]
      self._store.scatter(self._ids, rows)
      self._written = True

  def _first(self):
    """As `_fetch`, as if a round of nobody had just ended."""
    ids = self._draw(self._round_index)
    self._ids = np.full_like(ids, self._store.num_clients)
    self._buffers = [
        of_rows.empty(self._store.initial, len(ids)) for _ in range(2)
    ]
    like = self._put(self._buffers[0])
    self._rows = [jnp.zeros_like(field) for field in like]
    self._unused = [jnp.zeros_like(field) for field in like]
    return self._fetch(ids)

  def _fetch(self, ids):
    """The clients of a round, and their rows on the way to the device."""
    nobody, count = self._store.num_clients, len(ids)
    # Where the last round has these clients; an empty place is no client.
    places = {client: i for i, client in enumerate(self._ids.tolist())}
    there = np.array([
        places.get(client, count) if client < nobody else count
        for client in ids.tolist()
    ], np.int32)
    others = np.where(there < count, nobody, ids)
    # The other buffer may still be in use: its rows go to the device when the
    # last round has ended. Those of this buffer did so one round earlier.
    read = self._store.gather(others, self._buffers[0])
    self._buffers.reverse()
    return ids, _merged(self._unused, self._put(read), self._rows, there)


@functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
def _merged(unused, read, result, there):
  """Row there[i] of the last result, or row i that was read if there is none.

  They take the memory of `unused`: new memory costs more time than the copy.
  """
  del unused
  merge = lambda read, result: jnp.where(
      (there < len(there)).reshape(-1, *[1] * (read.ndim - 1)),
      result.at[there].get(mode="clip"),
      read,
  )
  return jax.tree.map(merge, read, result)
