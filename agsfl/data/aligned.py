"""Arrays that all CPU devices of JAX use without a copy.

For this an array must begin at a multiple of 64 bytes. Of any other array each
device makes its own copy.
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
