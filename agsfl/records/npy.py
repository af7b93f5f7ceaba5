"""Headers of NumPy's files, strictly read."""

from typing import BinaryIO

import numpy as np


def read_header(file: BinaryIO) -> tuple[tuple[int, ...], np.dtype]:
  """The shape and the type of the array, whose bytes follow in the file.

  Raises:
    OSError: the file cannot be read.
    ValueError: it is no file of NumPy of version 1.0 in C order.
  """
  # NumPy's parser of the header may raise anything.
  try:
    version = np.lib.format.read_magic(file)
    shape, is_fortran, dtype = np.lib.format.read_array_header_1_0(file)
  except OSError:
    raise
  except Exception as error:
    raise ValueError(f"no npy file ({error})") from error
  if version != (1, 0) or is_fortran:
    raise ValueError("no npy file of version 1.0 in C order")
  return shape, dtype
