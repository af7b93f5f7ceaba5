"""Arrays that all CPU devices of JAX use without a copy.

Such an array begins at a multiple of 64 bytes. Any other array is copied by
each device.
"""

import math

import numpy as np
import numpy.typing as npt

_BYTES = 64


def empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
  """As `np.empty`, but aligned."""
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
