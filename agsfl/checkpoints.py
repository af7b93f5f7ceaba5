"""States of a run on disk, to go on from after a stop."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from agsfl.errors import ConfigError
from agsfl.types import PyTree


def open_folder(folder: Path, kept: int) -> ocp.CheckpointManager:
  """A folder of checkpoints, made if need be; to be closed.

  What was not written whole is not seen.

  Args:
    folder: absolute.
    kept: the newest so many stay.
  """
  options = ocp.CheckpointManagerOptions(
      max_to_keep=kept, cleanup_tmp_directories=True
  )
  # Told, not guessed of what lies there: one damaged step would spoil all.
  handler = ocp.StandardCheckpointHandler()
  return ocp.CheckpointManager(folder, options=options, item_handlers=handler)


def save(manager: ocp.CheckpointManager, step: int, tree: PyTree):
  """Writes a tree of arrays while the caller goes on.

  Args:
    manager: from `open_folder`.
    step: larger than those before.
    tree: copied at once, so that its buffers may be given away.
  """
  leaves = {
      str(i): np.array(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))
  }
  manager.save(step, args=ocp.args.StandardSave(leaves))


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
  leaves, structure = jax.tree.flatten(like)
  wanted = {
      str(i): np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
  }
  held = manager.restore(step, args=ocp.args.StandardRestore(wanted))
  return structure.unflatten(held[str(i)] for i in range(len(leaves)))
