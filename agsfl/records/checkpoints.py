"""States of a run on disk, to go on from after a stop."""

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from agsfl.errors import ConfigError
from agsfl.types import PyTree


@contextlib.contextmanager
def _usable(folder):
  try:
    yield
  # Orbax tells of a full disk by a ValueError.
  except (OSError, ValueError) as error:
    raise ConfigError(
        f"{folder}: must be a folder that can be written ({error})"
    ) from error


@contextlib.contextmanager
def open_folder(folder: Path, kept: int) -> Iterator[ocp.CheckpointManager]:
  """A folder of checkpoints, made if need be.

  What was not written whole is not seen.

  Args:
    folder: absolute.
    kept: the newest so many stay.

  Raises:
    ConfigError: it cannot be made, or not all that was saved be written.
  """
  options = ocp.CheckpointManagerOptions(
      max_to_keep=kept, cleanup_tmp_directories=True
  )
  # Told, not guessed of what lies there: one damaged step would spoil all.
  handler = ocp.StandardCheckpointHandler()
  with _usable(folder):
    folder.mkdir(parents=True, exist_ok=True)
    manager = ocp.CheckpointManager(
        folder, options=options, item_handlers=handler
    )
  try:
    yield manager
  finally:
    with _usable(folder):
      manager.close()


def save(manager: ocp.CheckpointManager, step: int, tree: PyTree):
  """Writes a tree of arrays while the caller goes on.

  Args:
    manager: from `open_folder`.
    step: larger than those before.
    tree: copied at once, so that its buffers may be given away.

  Raises:
    ConfigError: it, or the one before, cannot be written.
  """
  leaves = [np.array(leaf, order="C") for leaf in jax.tree.leaves(tree)]
  held = _numbered([*leaves, _checksum(leaves)])
  with _usable(manager.directory):
    manager.save(step, args=ocp.args.StandardSave(held))


def wait(manager: ocp.CheckpointManager):
  """Waits until all that was saved is written; raises as `save`."""
  with _usable(manager.directory):
    manager.wait_until_finished()


def _numbered(leaves):
  return {str(i): leaf for i, leaf in enumerate(leaves)}


def _checksum(leaves):
  """[] u32, the CRC-32 of all bytes: the files have none of their own."""
  crc = 0
  for leaf in leaves:
    crc = zlib.crc32(leaf.reshape(-1).view(np.uint8), crc)
  return np.array(crc, np.uint32)


def restore(
    manager: ocp.CheckpointManager, like: PyTree
) -> tuple[int, Any] | None:
  """The newest checkpoint that can be read; damaged ones after it go.

  Args:
    manager: from `open_folder`.
    like: a tree of the same structure, shapes and types.

  Returns:
    Its step, and the tree with NumPy arrays, bit for bit; None if there is
    none.

  Raises:
    ConfigError: there are some, and none can be read.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  for index, step in enumerate(steps):
    try:
      tree = _read(manager, step, like)
    except (OSError, ValueError, KeyError, TypeError) as error:
      logging.warning("checkpoint %d cannot be read: %s", step, error)
      continue
    for damaged in steps[:index]:
      manager.delete(damaged)
    return step, tree
  if steps:
    raise ConfigError(
        f"{manager.directory}: must hold a checkpoint that can be read; "
        "without this folder the run begins anew"
    )
  return None


def _read(manager, step, like):
  likes, structure = jax.tree.flatten(like)
  empty = [np.empty(leaf.shape, leaf.dtype) for leaf in likes]
  wanted = _numbered([*empty, _checksum([])])
  held = manager.restore(step, args=ocp.args.StandardRestore(wanted))
  *leaves, checksum = (held[str(i)] for i in range(len(wanted)))
  if checksum != _checksum(leaves):
    raise ValueError("its numbers are not those that were saved")
  return structure.unflatten(leaves)
