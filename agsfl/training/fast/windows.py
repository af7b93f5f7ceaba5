"""Sums over small windows, and the gradient of maxima over them: pooling.

A window of few elements is a few strided slices of the array, combined element
by element. XLA fuses them into one loop. Its own kernels visit each window
element by element, and are up to twenty times slower on CPU.
"""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

from agsfl import platforms
from agsfl.training.fast import slow

# With more elements than this, a window is left to XLA.
_MOST = 64


def _is_small(window_dimensions, dtype):
  return math.prod(window_dimensions) <= _MOST and jnp.issubdtype(
      dtype, jnp.floating
  )


def _slices(
    x, fill, window_dimensions, window_strides, padding,
    base_dilation=None, window_dilation=None,
):
  """For each element of a window, that element of all windows.

  Yields:
    Its offset in the padded array, and an array of the result's shape.
  """
  ones = (1,) * x.ndim
  spread, gaps = base_dilation or ones, window_dilation or ones
  x = lax.pad(
      x,
      jnp.array(fill, x.dtype),
      [
          (low, high, dilation - 1)
          for (low, high), dilation in zip(padding, spread, strict=True)
      ],
  )
  reach = [
      (size - 1) * gap
      for size, gap in zip(window_dimensions, gaps, strict=True)
  ]
  for index in itertools.product(*map(range, window_dimensions)):
    offset = [i * gap for i, gap in zip(index, gaps, strict=True)]
    limits = [
        start + size - last
        for start, size, last in zip(offset, x.shape, reach, strict=True)
    ]
    yield offset, lax.slice(x, offset, limits, window_strides)


def sums(x: jax.Array, **params: Any) -> jax.Array:
  """`reduce_window_sum`, with its arguments and parameters."""
  if not _is_small(params["window_dimensions"], x.dtype):
    return primitives.reduce_window_sum_p.bind(x, **params)
  parts = [part for _, part in _slices(x, 0, **params)]
  return functools.reduce(jnp.add, parts)


def to_winners(dy: jax.Array, x: jax.Array, **params: Any) -> jax.Array:
  """`select_and_scatter_add`, the gradient of max-pooling.

  Each dy goes to the first maximum of its window, as in XLA.

  Args:
    dy: of the pooled shape.
    x: what was pooled.
    **params: of the primitive.

  Returns:
    The shape of x.
  """
  select, sizes = params["select_prim"], params["window_dimensions"]
  if select is not primitives.ge_p or not _is_small(sizes, x.dtype):
    slow.warn(
        f"min-pooling, or max-pooling over more than {_MOST} elements",
        "Maxima over a whole image are fast as jnp.max, min-pooling as "
        "max-pooling of -x.",
    )
    return primitives.select_and_scatter_add_p.bind(dy, x, **params)
  strides, padding = params["window_strides"], params["padding"]
  window = dict(
      window_dimensions=sizes, window_strides=strides, padding=padding
  )

  # The forward pass has these maxima too. XLA computes them once.
  ones = (1,) * x.ndim
  best = primitives.reduce_window_max_p.bind(
      x, **window, base_dilation=ones, window_dilation=ones
  )
  taken = jnp.zeros(dy.shape, bool)
  offsets, parts = [], []
  for offset, part in _slices(x, -jnp.inf, **window):
    # A gradient is not lost where the maximum is not a number.
    wins = ((part == best) | jnp.isnan(best)) & ~taken
    taken = taken | wins
    offsets.append(offset)
    parts.append(jnp.where(wins, dy, jnp.zeros_like(dy)))

  # Back to the places in the padded array. On accelerators XLA computes the sum
  # in one pass; on CPU it would compute each part for each of its uses.
  lows, highs = zip(*padding, strict=True)
  padded = [
      low + n + high
      for low, n, high in zip(lows, x.shape, highs, strict=True)
  ]
  if sizes == strides and platforms.keeps_to_caches():
    total = _interleaved(parts, sizes, padded)
  else:
    total = sum(
        _spread(part, offset, strides, padded)
        for offset, part in zip(offsets, parts, strict=True)
    )
  ends = [low + n for low, n in zip(lows, x.shape, strict=True)]
  return lax.slice(total, lows, ends)


def _spread(part, offset, strides, shape):
  """Zeros, except for `part`, which begins at `offset` and has the strides."""
  edges = [
      (start, size - start - (count - 1) * stride - 1, stride - 1)
      for start, size, count, stride in zip(
          offset, shape, part.shape, strides, strict=True
      )
  ]
  return lax.pad(part, jnp.zeros((), part.dtype), edges)


def _interleaved(parts, sizes, shape):
  """The array whose windows, which do not overlap, have these elements."""
  for axis in reversed(range(len(sizes))):
    parts = [
        jnp.stack(parts[first : first + sizes[axis]], axis + 1).reshape(
            *parts[0].shape[:axis], -1, *parts[0].shape[axis + 1 :]
        )
        for first in range(0, len(parts), sizes[axis])
    ]
  rest = [(0, n - have) for n, have in zip(shape, parts[0].shape, strict=True)]
  return jnp.pad(parts[0], rest)
