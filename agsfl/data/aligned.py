"""Host arrays that JAX's CPU devices share.

An array that begins at a multiple of 64 bytes is used where it lies, by all
CPU devices; of any other each device makes a copy.
"""

import math

import numpy as np

_BYTES = 64


def empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
  """An array to be filled; `np.empty`, aligned."""
  size = math.prod(shape) * np.dtype(dtype).itemsize
  raw = np.empty(size + _BYTES, np.uint8)
  start = -raw.ctypes.data % _BYTES
  return raw[start : start + size].view(dtype).reshape(shape)


def aligned(array: np.ndarray) -> np.ndarray:
  """The array, or an aligned copy."""
  if array.ctypes.data % _BYTES == 0 and array.flags.c_contiguous:
    return array
  copy = empty(array.shape, array.dtype)
  copy[...] = array
  return copy
