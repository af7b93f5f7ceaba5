"""Rounds of a run whose clients' rows are not on the device.

The state on the device has no rows of clients. Each round gets those of its
cohort from a store, and its results go back there.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from agsfl import cohorts, devices, hosts
from agsfl.data.federated import ClientData
from agsfl.errors import refuse
from agsfl.for_each_client import EVERYWHERE, PER_CLIENT
from agsfl.rounds import Budget, Round
from agsfl.stores.file import FileStore
from agsfl.stores.host import HostStore
from agsfl.stores.pipeline import Pipeline
from agsfl.stores.rows import Saved, Store
from agsfl.types import PyTree, RoundInfo, RoundState


class RowsPlace(NamedTuple):
  """Where the rows of saved states are.

  Attributes:
    path: a file; None if no states are saved.
    states: how many saved states stay.
  """

  path: Path | None = None
  states: int = 1


class StoredRounds:
  """Rounds one by one, with the rows of their cohorts.

  Attributes:
    state: on the device, without rows.
    like: shapes and types of what `pack` returns.
  """

  def __init__(
      self,
      played: Round,
      data: ClientData,
      state: RoundState,
      mesh: Mesh,
      num_clients: int,
      kind: str,
      rows: RowsPlace,
      known_ahead: bool,
  ):
    """Opens no file yet.

    Args:
      played: the round.
      data: of all clients, on the devices.
      state: before round 1, with the rows of a cohort.
      mesh: the devices.
      num_clients: N.
      kind: "host" or "file".
      rows: where they are saved.
      known_ahead: whether a cohort depends on the key and the round only.

    Raises:
      ConfigError: this kind of run cannot be on several processes, or clients
        begin with different rows.
    """
    if hosts.several():
      refuse(f"--store={kind}", "must be device with several processes")
    self._data, self._mesh, self._num_clients = data, mesh, num_clients
    self._kind, self._place, self._known_ahead = kind, rows, known_ahead
    self._pipeline: Pipeline | None = None
    self._cohort: Any = None
    self._key = jnp.copy(state.key)  # the state's own is given away

    # Which arrays are rows of clients; all others stay on the device.
    leaves, structure = jax.tree.flatten(state)
    axes = cohorts.axes_of(state, played.specs)
    is_row = [axis is not None for axis in axes]
    self._initial = [
        _row_of_all(x, axis)
        for x, axis in zip(leaves, axes, strict=True)
        if axis is not None
    ]

    def split(state):
      leaves = jax.tree.leaves(state)
      rest = [
          x[:0] if row else x for x, row in zip(leaves, is_row, strict=True)
      ]
      rows = [x for x, row in zip(leaves, is_row, strict=True) if row]
      return jax.tree.unflatten(structure, rest), rows

    def join(rest, rows):
      rows = iter(rows)
      return jax.tree.unflatten(structure, [
          next(rows) if row else x
          for x, row in zip(jax.tree.leaves(rest), is_row, strict=True)
      ])

    def play(data, rest, rows, cohort):
      own = data.only(cohort.clients)
      state, info = played.play(own, join(rest, rows), cohort)
      rest, rows = split(state)
      return played.close(data, rest, info), rows, info

    self._draw_next = jax.jit(played.draw)
    self._play_next = jax.jit(play, donate_argnums=(1, 2))
    self.state = split(state)[0]
    self._specs = jax.tree.map(lambda x: EVERYWHERE, self.state)
    self.like = (
        jax.eval_shape(self._without_rows, self.state),
        jax.ShapeDtypeStruct((num_clients,), np.int32),
        jax.ShapeDtypeStruct((num_clients,), np.uint32),
    )

  def _without_rows(self, state):
    return devices.without_padding(state, self._specs, self._num_clients)

  def _open(self) -> Pipeline:
    """The pipeline from the next round on."""
    if self._pipeline is None:
      build = HostStore if self._kind == "host" else FileStore
      self._store: Store = build(
          self._initial, self._num_clients, *self._place
      )
      self._begin()
    assert self._pipeline is not None
    return self._pipeline

  def _begin(self):
    per_client = NamedSharding(self._mesh, PER_CLIENT)
    with jax.set_mesh(self._mesh):
      self._pipeline = Pipeline(
          self._store,
          self._draw,
          self._play,
          int(self.state.round_index) + 1,
          lambda rows: jax.device_put(rows, per_client),
      )

  def _draw(self, round_index: int) -> np.ndarray:
    """Who takes part; the cohort is noted for `_play`."""
    if self._known_ahead:
      # The state of the round before may not have been computed yet.
      fields: dict[str, Any] = dict.fromkeys(RoundState.__dataclass_fields__)
      fields["key"] = self._key
      fields["round_index"] = jnp.int32(round_index - 1)
      self._cohort, _ = self._draw_next(self._data, RoundState(**fields))
    else:
      self._cohort, self.state = self._draw_next(self._data, self.state)
    return np.asarray(self._cohort.clients)

  def _play(self, nothing, rows, ids):
    del ids
    self.state, rows, info = self._play_next(
        self._data, self.state, rows, self._cohort
    )
    return nothing, rows, info

  def advance(
      self, state: RoundState, num_rounds: int, budget: Budget
  ) -> tuple[RoundState, list[RoundInfo]]:
    """See `Simulation`; it ends early as `rounds_in_a_row` does."""
    self.state = state
    pipeline = self._open()
    infos: list[RoundInfo] = []
    with jax.set_mesh(self._mesh):
      while len(infos) < num_rounds:
        _, info = pipeline.step(None)
        infos.append(jax.device_get(info))
        if not (infos[-1].finite and budget.is_left(self.state)):
          break
    return self.state, infos

  def pack(self, state: RoundState) -> PyTree:
    """See `Simulation`; all rows are then in the file."""
    self._open().flush()
    saved = self._store.commit()
    # The rows of older states need no table: `States` removes these states when
    # a run goes on.
    return self._without_rows(state), saved.tables[0], saved.sums

  def unpack(self, saved: PyTree) -> RoundState:
    """See `Simulation`."""
    rest, table, sums = saved
    self._open()
    retained = len(self._store.saved.tables)
    self._store.restore(Saved(np.repeat(table[None], retained, 0), sums))
    self.state = devices.with_padding(rest, self.state, self._specs)
    self._begin()
    return self.state


def _row_of_all(x, axis):
  """The row with which every client begins."""
  rows = np.asarray(x)
  if axis != 0 or (rows != rows[:1]).any():
    refuse(
        "--store",
        "must be device with this method, because its state does not begin "
        "with the same row for each client",
    )
  return rows[0]
