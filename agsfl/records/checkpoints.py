"""Saved states of a run, from which it goes on after a stop."""

import contextlib
import os
import re
import shutil
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from agsfl.errors import refuse, refused
from agsfl.types import PyTree

# Orbax numbers its writes by process, so two runs in threads would mix them.
_ONE_AT_A_TIME = threading.Lock()

_NAME = "state"  # of the array with all that one process has whole
_CHECKSUM_BYTES = 4


class States:
  """The saved states of one run in a folder, open inside a `with` statement.

  A state that was not written whole is ignored.
  """

  def __init__(self, folder: Path, most: int):
    """Writes nothing yet.

    Args:
      folder: absolute.
      most: how many states stay, the newest ones.
    """
    self._folder = folder
    self._options = ocp.CheckpointManagerOptions(
        max_to_keep=most, cleanup_tmp_directories=True
    )

  def __enter__(self) -> Self:
    """Opens the folder, and makes it if need be.

    Raises:
      ConfigError: the folder cannot be made.
    """
    with self._usable(), _ONE_AT_A_TIME:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=self._options,
          # Without this Orbax guesses it from the folder, and one damaged
          # state makes all of them unreadable.
          item_handlers=ocp.StandardCheckpointHandler(),
      )
    return self

  def __exit__(self, *exception):
    # `wait` has already raised the errors of writes that matter.
    with contextlib.suppress(OSError, ValueError), _ONE_AT_A_TIME:
      self._manager.close()

  @contextlib.contextmanager
  def _usable(self) -> Iterator[None]:
    """A context that turns errors of the disk into one line."""
    with refused(str(self._folder), "must be a folder that can be written"):
      try:
        yield
      except ValueError as error:
        raise _disk_error(error) from error

  def save(self, step: int, tree: PyTree):
    """Writes a tree of arrays while the caller goes on.

    Args:
      step: larger than all steps before.
      tree: copied at once, so its buffers may be reused.

    Raises:
      ConfigError: this tree or the previous one cannot be written.
    """
    whole, split = _apart(jax.tree.leaves(tree))
    content = {_NAME: _packed([np.asarray(leaf) for leaf in whole]), **split}
    with self._usable(), _ONE_AT_A_TIME:
      self._manager.save(step, args=ocp.args.StandardSave(content))

  def wait(self):
    """Waits until all saved states are written; raises as `save` does."""
    with self._usable(), _ONE_AT_A_TIME:
      self._manager.wait_until_finished()

  def keep_only(self, step: int):
    """Waits until all states are written, then removes all but one."""
    self.wait()
    with self._usable(), _ONE_AT_A_TIME:
      for other in self._manager.all_steps():
        if other != step:
          self._manager.delete(other)

  def remove(self):
    """Removes all states and the folder; nothing can be saved afterwards."""
    self.__exit__()
    shutil.rmtree(self._folder, ignore_errors=True)

  def newest(self, like: PyTree) -> tuple[int, Any] | None:
    """The newest state that can be read; removes damaged ones after it.

    Args:
      like: a tree of the same structure, shapes and types.

    Returns:
      Its step, and the tree with NumPy arrays, bit for bit; None if there is
      none.

    Raises:
      ConfigError: there are states, but none can be read.
    """
    steps = sorted(self._manager.all_steps(), reverse=True)
    for index, step in enumerate(steps):
      try:
        tree = self._read(step, like)
      except (OSError, ValueError, KeyError, TypeError) as error:
        logging.warning("checkpoint %d cannot be read: %s", step, error)
        continue
      for damaged in steps[:index]:
        self._manager.delete(damaged)
      return step, tree
    if steps:
      refuse(
          str(self._folder),
          "no checkpoint in it can be read; if you remove it, a run that is "
          "not finished starts again from round 1",
      )
    return None

  def _read(self, step, like):
    likes, structure = jax.tree.flatten(like)
    whole, split = _apart(likes)
    leaves = [np.empty(leaf.shape, leaf.dtype) for leaf in whole]
    size = sum(leaf.nbytes for leaf in leaves) + _CHECKSUM_BYTES
    wanted = {_NAME: np.empty(size, np.uint8), **split}
    # Other numbers of devices have other numbers of rows as padding.
    args = ocp.args.StandardRestore(wanted, strict=not split)
    with _ONE_AT_A_TIME:
      read = self._manager.restore(step, args=args)
    _unpack(read[_NAME], leaves)
    rest = iter(leaves)
    return jax.tree.unflatten(structure, [
        read[_name(index)] if _name(index) in split else next(rest)
        for index in range(len(likes))
    ])


def _apart(leaves: list[Any]) -> tuple[list[Any], dict[str, Any]]:
  """Separates arrays that this process has whole from those that it shares.

  Each process writes and reads only its part of the latter.
  """
  split = {
      _name(index): leaf
      for index, leaf in enumerate(leaves)
      if (sharding := getattr(leaf, "sharding", None)) is not None
      and not sharding.is_fully_addressable
      and not sharding.is_fully_replicated
  }
  whole = [
      leaf for index, leaf in enumerate(leaves) if _name(index) not in split
  ]
  return whole, split


def _name(index: int) -> str:
  """Of an array that several processes share."""
  return f"array_{index}"


def _disk_error(error: ValueError) -> OSError:
  """What TensorStore says of the disk, such as that it is full, in short."""
  found = re.search(r"os_error_code='(\d+)'", str(error))
  if not found:
    return OSError(str(error))
  code = int(found[1])
  return OSError(code, os.strerror(code))


def _packed(leaves: list[np.ndarray]) -> np.ndarray:
  """[bytes] u8: the bytes of all arrays in a row, then those of a checksum.

  It is one array, because TensorStore reads and writes arrays at the same time:
  when one of several fails, it prints a traceback for each of the others.
  """
  content = np.concatenate(
      [*map(_bytes_of, leaves), np.zeros(_CHECKSUM_BYTES, np.uint8)]
  )
  numbers, checksum = np.split(content, [-_CHECKSUM_BYTES])
  checksum[:] = _bytes_of(_checksum(leaves, numbers))
  return content


def _unpack(content: np.ndarray, leaves: list[np.ndarray]):
  """Fills the arrays with what `_packed` made of such arrays.

  Raises:
    ValueError: it was made of arrays of other shapes or types, or is damaged.
  """
  ends = np.cumsum([leaf.nbytes for leaf in leaves])
  *pieces, checksum = np.split(content, ends)
  expected = _bytes_of(_checksum(leaves, content[: ends[-1]]))
  if checksum.tobytes() != expected.tobytes():
    raise ValueError("its numbers or shapes are not those that were saved")
  for leaf, piece in zip(leaves, pieces, strict=True):
    _bytes_of(leaf)[:] = piece


def _bytes_of(array: np.ndarray) -> np.ndarray:
  """[bytes] u8, of one array; a view of it where it is contiguous."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _checksum(leaves: list[np.ndarray], content: np.ndarray) -> np.ndarray:
  """[] u32, the CRC-32 of shapes, types and bytes; the files have none."""
  form = repr([(leaf.shape, leaf.dtype.str) for leaf in leaves])
  return np.array(zlib.crc32(content.data, zlib.crc32(form.encode())), "<u4")
