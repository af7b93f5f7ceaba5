"""Stores against dicts of bytes, whatever happens to the process and disk."""

import errno
import os
import resource
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import hypothesis
import jax
import numpy as np
from absl.testing import absltest, parameterized
from hypothesis import stateful
from hypothesis import strategies as st

from agsfl.errors import ConfigError
from agsfl.stores import rows as of_rows
from agsfl.stores.file import FileStore
from agsfl.stores.host import HostStore

N = 5
STATES = 1
# Fields of several ranks and types, whose bytes are no multiple of a word.
INITIAL = [
    np.float32([0.5, -0.0, np.nan, 1e-40]),
    np.array(3, np.int32),
    np.array([1, 2, 3], np.uint8),
    np.zeros((0, 2), np.float32),
]
BYTES = sum(row.nbytes for row in INITIAL)
STORES = {"host": HostStore, "file": FileStore}
BOTH = parameterized.named_parameters(*[(name, name) for name in STORES])
IDS = st.lists(st.integers(0, N + 1), max_size=N, unique=True).map(np.int32)
EVERYONE = np.arange(N, dtype=np.int32)


def opened(kind, path=None):
  return STORES[kind](INITIAL, N, path, STATES)


def drawn(seed, count):
  """Rows of any bits, NaN and -0 among them."""
  rng = np.random.default_rng(seed)
  return [
      np.frombuffer(rng.bytes(count * row.nbytes), row.dtype).reshape(
          count, *row.shape
      )
      for row in INITIAL
  ]


def bits(rows, place=0):
  return [field[place].tobytes() for field in rows]


def held(store):
  """The bits of all rows."""
  rows = store.gather(EVERYONE)
  return [bits(rows, place) for place in range(N)]


class KilledError(BaseException):
  """The process ends here."""


class Disk:
  """Stands in for the system: it can end the process, and lose the power.

  Then of all that was written since the last `fdatasync` any part may be on the
  disk, each piece whole, in part, or not at all.
  """

  def __init__(self):
    self.calls_left = None
    self.written = 0
    self._durable = bytearray()
    self._pending = []
    self._real = {"pwrite": os.pwrite, "fdatasync": os.fdatasync}

  def _count(self):
    if self.calls_left is not None:
      self.calls_left -= 1
      if self.calls_left < 0:
        raise KilledError

  def pwrite(self, file, content, place):
    self._count()
    self._pending.append((place, bytes(content)))
    self.written += len(content)
    return self._real["pwrite"](file, content, place)

  def fdatasync(self, file):
    self._count()
    self._real["fdatasync"](file)
    for place, content in self._pending:
      self._put(place, content)
    self._pending.clear()

  def _put(self, place, content):
    missing = place + len(content) - len(self._durable)
    self._durable.extend(bytes(max(0, missing)))
    self._durable[place : place + len(content)] = content

  def lose_power(self, path, seed):
    rng = np.random.default_rng(seed)
    for place, content in self._pending:
      whole = rng.choice([0, rng.integers(len(content) + 1), len(content)])
      self._put(place, content[:whole])
    self._pending.clear()
    path.write_bytes(self._durable)

  def __enter__(self):
    patched = mock.patch.multiple(os, pwrite=self.pwrite,
                                  fdatasync=self.fdatasync)
    self._undo = patched
    patched.start()
    return self

  def __exit__(self, *exception):
    self._undo.stop()


class Life(stateful.RuleBasedStateMachine):
  """A run that saves states, goes back, and is killed at any point.

  Law: rows are those of a dict; each state that may be on the disk is there,
  bit for bit; the file has no more slots than its states can need.
  """

  @stateful.initialize(kind=st.sampled_from(sorted(STORES)))
  def begin(self, kind):
    self.kind = kind
    self.folder = tempfile.TemporaryDirectory()
    self.path = Path(self.folder.name) / "run" / "rows"
    self.disk = Disk().__enter__()
    self.store = opened(kind, self.path)
    self.initial = bits([row[None] for row in INITIAL])
    self.rows = [self.initial] * N
    # Those that may be on the disk: (commit, its rows), the newest first.
    self.states = []

  def teardown(self):
    if hasattr(self, "disk"):
      self.disk.__exit__()
      self.store.close()
      self.folder.cleanup()

  @stateful.rule(ids=IDS, seed=st.integers(0, 99))
  def scatter(self, ids, seed):
    rows = drawn(seed, len(ids))
    self.store.scatter(ids, rows)
    for place, client in enumerate(ids):
      if client < N:
        self.rows[client] = bits(rows, place)

  @stateful.rule(ids=IDS)
  def gather(self, ids):
    rows = self.store.gather(ids)
    for place, client in enumerate(ids):
      expected = self.rows[client] if client < N else self.initial
      assert bits(rows, place) == expected

  @stateful.rule(ids=IDS, seed=st.integers(0, 99))
  def commit(self, ids, seed):
    self.scatter(ids, seed)
    saved = self.store.commit()
    assert saved is self.store.saved
    self.states = [(saved, [*self.rows]), *self.states[: STATES + 1]]

  @stateful.precondition(lambda self: self.states)
  @stateful.rule(index=st.integers(0, STATES + 1))
  def go_back(self, index):
    # Newer states than this one are removed.
    self.states = self.states[min(index, len(self.states) - 1) :]
    saved, rows = self.states[0]
    self.store.restore(saved)
    self.rows = [*rows]
    assert held(self.store) == self.rows

  @stateful.rule(
      ids=IDS,
      seed=st.integers(0, 99),
      calls=st.integers(0, 2 * N),
      power=st.booleans(),
      index=st.integers(0, STATES + 1),
  )
  def die(self, ids, seed, calls, power, index):
    # Between the pieces of a row, in a commit, or after it.
    self.disk.calls_left = calls
    try:
      self.commit(ids, seed)
    except KilledError:
      pass
    self.disk.calls_left = None
    self.store.close()
    if power:
      self.disk.lose_power(self.path, seed)
    self.store = opened(self.kind, self.path)
    self.rows = [self.initial] * N
    for saved, rows in self.states:
      self.store.restore(saved)
      assert held(self.store) == rows
    if self.states:
      self.go_back(index)

  @stateful.invariant()
  def is_bounded(self):
    if hasattr(self, "path"):
      slot = -(-BYTES // 8) * 8
      assert self.path.stat().st_size <= (STATES + 3) * N * slot


LifeTest = Life.TestCase
LifeTest.settings = hypothesis.settings(stateful_step_count=20)


class StoreTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = Path(folder) / "rows"

  @BOTH
  def test_out(self, kind):
    """Law: given arrays are filled, and JAX takes them without a copy."""
    store = opened(kind)
    out = of_rows.empty(INITIAL, N)
    self.assertIs(store.gather(EVERYONE, out), out)
    for given, field in zip(out, store.gather(EVERYONE), strict=True):
      self.assertEqual(given.tobytes(), field.tobytes())
    on_device = jax.device_put(out[0])
    self.assertEqual(on_device.unsafe_buffer_pointer(), out[0].ctypes.data)

  @BOTH
  def test_only_changes_are_written(self, kind):
    """Law: bytes written = bytes of changed rows, for each commit."""
    store = opened(kind, self.path)
    with Disk() as disk:
      for ids in ([0, 1, 2, 3, 4], [2], [], [1, 4, N]):
        disk.written = 0
        store.scatter(np.int32(ids), drawn(0, len(ids)))
        store.commit()
        self.assertEqual(disk.written, BYTES * len({*ids} - {N}))

  @parameterized.named_parameters(
      ("bit", lambda c: c[:9] + b"\7" + c[10:], 1),
      ("zeros", lambda c: bytes(len(c)), 3),
      ("exchanged", lambda c: c[24:48] + c[:24] + c[48:], 2),
      ("short", lambda c: c[:-5], 1),
      ("empty", lambda c: b"", 3),
      ("gone", None, 3),
  )
  def test_damage(self, damage, clients):
    """Law: one line, which counts the clients."""
    store = opened("file", self.path)
    store.scatter(np.int32([1, 2, 3]), drawn(0, 3))
    saved = store.commit()
    store.close()
    if damage is None:
      self.path.unlink()
    else:
      self.path.write_bytes(damage(self.path.read_bytes()))
    for kind in STORES:
      store = opened(kind, self.path)
      with self.assertRaises(ConfigError) as caught:
        store.restore(saved)
      self.assertIn(f"rows of {clients} clients", str(caught.exception))
      self.assertNotIn("\n", str(caught.exception))

  def test_other_slots_may_be_damaged(self):
    """Law: a row counts only for its states; a refusal changes nothing."""
    store = opened("file", self.path)
    store.scatter(np.int32([0]), drawn(0, 1))
    saved, rows = store.commit(), held(store)
    store.scatter(np.int32([0]), drawn(1, 1))
    newer = store.commit()
    content = self.path.read_bytes()
    self.path.write_bytes(content[:24] + bytes(len(content) - 24))
    store.restore(saved)
    self.assertEqual(held(store), rows)
    with self.assertRaises(ConfigError):
      store.restore(newer)
    self.assertEqual(held(store), rows)

  @BOTH
  def test_full_disk(self, kind):
    """Law: one line that names the file; rows of states stay."""
    store = opened(kind, self.path)
    store.scatter(EVERYONE, drawn(0, N))
    saved, rows = store.commit(), held(store)
    # The system writes a part of a row, then refuses.
    size = self.path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, limits[1]))
    try:
      with self.assertRaises(ConfigError) as caught:
        store.scatter(EVERYONE, drawn(1, N))
        store.commit()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    self.assertIn(str(self.path), str(caught.exception))
    self.assertIn(os.strerror(errno.EFBIG), str(caught.exception))
    store.restore(saved)
    self.assertEqual(held(store), rows)

  def test_no_folder(self):
    """Law: without a path no file stays, and rows in memory need none."""
    with mock.patch.dict(os.environ, TMPDIR=str(self.path.parent)):
      with mock.patch.object(tempfile, "tempdir", None):
        for kind in STORES:
          store = opened(kind)
          store.scatter(EVERYONE, drawn(0, N))
          self.assertEmpty(list(self.path.parent.iterdir()))
    with self.assertRaisesRegex(ConfigError, "folder"):
      opened("host").commit()

  @parameterized.parameters(("host", 16), ("file", 8))
  def test_memory(self, kind, megabytes):
    """Law: of 100,000 clients only those that took part need memory.

    All rows would need 400 MB, those of the clients who take part 8 MB.
    """
    initial = [np.zeros(1000, np.float32)]
    rows = [np.ones((100, 1000), np.float32)]
    tracemalloc.start()
    try:
      store = STORES[kind](initial, 100_000, self.path)
      for ids in np.arange(0, 100_000, 50, np.int32).reshape(-1, 100):
        store.scatter(ids, rows)
        store.gather(ids + 1)
      store.commit()
      self.assertLess(tracemalloc.get_traced_memory()[1], megabytes * 1e6)
    finally:
      tracemalloc.stop()
    # Nor do the others need space in the file.
    self.assertLess(self.path.stat().st_size, 2000 * 4097)


if __name__ == "__main__":
  absltest.main()
