"""Saved states of a run, from which it goes on after a stop."""

import contextlib
import shutil
import threading
import zlib
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

  def _usable(self):
    """A context that turns errors of the disk into one line."""
    # Orbax reports a full disk by a ValueError.
    return refused(
        str(self._folder),
        "must be a folder that can be written",
        (OSError, ValueError),
    )

  def save(self, step: int, tree: PyTree):
    """Writes a tree of arrays while the caller goes on.

    Args:
      step: larger than all steps before.
      tree: copied at once, so its buffers may be reused.

    Raises:
      ConfigError: this tree or the previous one cannot be written.
    """
    leaves = [np.array(leaf, order="C") for leaf in jax.tree.leaves(tree)]
    numbered = _numbered(leaves, _checksum(leaves))
    with self._usable(), _ONE_AT_A_TIME:
      self._manager.save(step, args=ocp.args.StandardSave(numbered))

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
          "must hold a checkpoint that can be read; without this folder the "
          "run begins anew",
      )
    return None

  def _read(self, step, like):
    likes, structure = jax.tree.flatten(like)
    empty = [np.empty(leaf.shape, leaf.dtype) for leaf in likes]
    wanted = _numbered(empty, _checksum([]))
    with _ONE_AT_A_TIME:
      read = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
    leaves = [read.get(str(i), leaf) for i, leaf in enumerate(empty)]
    form = lambda arrays: [(x.shape, x.dtype) for x in arrays]
    if form(leaves) != form(empty):
      raise ValueError("its arrays have other shapes or types")
    if read["checksum"] != _checksum(leaves):
      raise ValueError("its numbers are not those that were saved")
    return jax.tree.unflatten(structure, leaves)


def _numbered(leaves, checksum):
  """What Orbax writes; it refuses arrays without elements."""
  full = {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}
  return {**full, "checksum": checksum}


def _checksum(leaves):
  """[] u32, the CRC-32 of all bytes, because the files have no checksum."""
  crc = 0
  for leaf in leaves:
    crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return np.array(crc, np.uint32)
