"""States of a run on disk, to go on from after a stop."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

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
  return ocp.CheckpointManager(folder, options=options)


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
  """The newest checkpoint.

  Args:
    manager: from `open_folder`.
    like: a tree of the same structure, shapes and types.

  Returns:
    Its step, and the tree with NumPy arrays, bit for bit; None if there is
    none.
  """
  step = manager.latest_step()
  if step is None:
    return None
  leaves, structure = jax.tree.flatten(like)
  wanted = {
      str(i): np.empty(leaf.shape, leaf.dtype) for i, leaf in enumerate(leaves)
  }
  held = manager.restore(step, args=ocp.args.StandardRestore(wanted))
  return step, structure.unflatten(held[str(i)] for i in range(len(leaves)))
