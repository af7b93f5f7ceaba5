"""States of a run on disk, to go on from after a stop."""

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

# Orbax numbers its writes by process: two runs in threads would mix them.
_ONE_AT_A_TIME = threading.Lock()


class States:
  """The saved states of one run in a folder; a context that is entered first.

  What was not written whole is not seen.
  """

  def __init__(self, folder: Path, num_kept: int):
    """Names the folder; nothing is written yet.

    Args:
      folder: absolute.
      num_kept: the newest so many stay.
    """
    self._folder = folder
    self._options = ocp.CheckpointManagerOptions(
        max_to_keep=num_kept, cleanup_tmp_directories=True
    )

  def __enter__(self) -> Self:
    """Opens the folder, made if need be.

    Raises:
      ConfigError: it cannot be made.
    """
    with self._usable(), _ONE_AT_A_TIME:
      self._folder.mkdir(parents=True, exist_ok=True)
      self._manager = ocp.CheckpointManager(
          self._folder,
          options=self._options,
          # Named here: guessed from the folder, one damaged step spoils all.
          item_handlers=ocp.StandardCheckpointHandler(),
      )
    return self

  def __exit__(self, *exception):
    # What counts has been waited for, and was an error then.
    with contextlib.suppress(OSError, ValueError), _ONE_AT_A_TIME:
      self._manager.close()

  def _usable(self):
    # Orbax reports a full disk by a ValueError.
    return refused(
        str(self._folder),
        "must be a folder that can be written",
        (OSError, ValueError),
    )

  def save(self, step: int, tree: PyTree):
    """Writes a tree of arrays while the caller goes on.

    Args:
      step: larger than those before.
      tree: copied at once, so that its buffers may be given away.

    Raises:
      ConfigError: it, or the one before, cannot be written.
    """
    leaves = [np.array(leaf, order="C") for leaf in jax.tree.leaves(tree)]
    numbered = _numbered(leaves, _checksum(leaves))
    with self._usable(), _ONE_AT_A_TIME:
      self._manager.save(step, args=ocp.args.StandardSave(numbered))

  def wait(self):
    """Waits until all that was saved is written; raises as `save`."""
    with self._usable(), _ONE_AT_A_TIME:
      self._manager.wait_until_finished()

  def keep_only(self, step: int):
    """Removes all states but one, once that is written."""
    self.wait()
    with self._usable(), _ONE_AT_A_TIME:
      for other in self._manager.all_steps():
        if other != step:
          self._manager.delete(other)

  def remove(self):
    """Removes all states and the folder; nothing may be saved from then on."""
    self.__exit__()
    shutil.rmtree(self._folder, ignore_errors=True)

  def newest(self, like: PyTree) -> tuple[int, Any] | None:
    """The newest state that can be read; damaged ones after it are removed.

    Args:
      like: a tree of the same structure, shapes and types.

    Returns:
      Its step, and the tree with NumPy arrays, bit for bit; None if there is
      none.

    Raises:
      ConfigError: there are some, and none can be read.
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
  """What Orbax writes; it takes no array without elements."""
  full = {str(i): leaf for i, leaf in enumerate(leaves) if leaf.size}
  return {**full, "checksum": checksum}


def _checksum(leaves):
  """[] u32, the CRC-32 of all bytes: the files have none of their own."""
  crc = 0
  for leaf in leaves:
    crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return np.array(crc, np.uint32)
