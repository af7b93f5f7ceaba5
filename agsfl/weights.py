"""Weights of finished runs, to begin with or to freeze."""

from pathlib import Path

import numpy as np

from agsfl.errors import refused, require
from agsfl.files import expanded
from agsfl.records.read import read_run

# What is wrong with a place that has no weights, for messages.
PROBLEM = "must be the folder of a finished run, or a file of NumPy"


def file_of(place: str) -> Path:
  """The file of weights that a setting names by its folder or by itself."""
  path = expanded(place)
  return path / "params.npy" if path.is_dir() else path


def weights_of(setting: str, place: str, dim: int) -> np.ndarray:
  """The weights that a setting names.

  Args:
    setting: its name, for messages.
    place: its value, the folder of a finished run, or a NumPy file.
    dim: D.

  Returns:
    [D] f32.

  Raises:
    ConfigError: there are no weights, or they do not fit the model.
  """
  path = expanded(place)
  errors = OSError, ValueError, EOFError
  with refused(f"--{setting}={place}", PROBLEM, errors):
    if path.is_dir():
      weights = read_run(path).params
    else:
      weights = np.load(path, allow_pickle=False)
    weights = np.asarray(weights, np.float32)
  require(
      weights.shape == (dim,) and np.isfinite(weights).all(),
      setting,
      place,
      f"{dim:,} finite weights, as this model has; it holds "
      f"{list(weights.shape)}",
  )
  return weights
