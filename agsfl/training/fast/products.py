"""One client's convolution as one matrix product, for accelerators."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives

Params = dict[str, Any]


def has_groups(params: Params) -> bool:
  """Whether channels or samples are split into groups."""
  return params["feature_group_count"] * params["batch_group_count"] > 1


def has_small_windows(lhs: jax.Array, rhs: jax.Array, params: Params) -> bool:
  """Whether the window has no more places than the result.

  So it is in a forward pass. In the gradient of a kernel, the window is an
  image and the result a kernel.

  Args:
    lhs: [B, ..., I].
    rhs: [..., I, O].
    params: of `conv_general_dilated`.
  """
  result = _result_shape(lhs, rhs, params)
  return math.prod(rhs.shape[:-2]) <= math.prod(result)


def _result_shape(lhs, rhs, params):
  """The spatial dimensions of the result."""
  conv = functools.partial(primitives.conv_general_dilated_p.bind, **params)
  return jax.eval_shape(conv, lhs, rhs).shape[1:-1]


def as_product(lhs: jax.Array, rhs: jax.Array, params: Params) -> jax.Array:
  """A convolution without groups.

  Args:
    lhs: [B, ..., I].
    rhs: [..., I, O].
    params: of `conv_general_dilated`.

  Returns:
    [B, ..., O].
  """
  small_windows = has_small_windows(lhs, rhs, params)
  result = _result_shape(lhs, rhs, params)
  strides, gaps = params["window_strides"], params["rhs_dilation"]
  lhs = _padded(lhs, params["padding"], params["lhs_dilation"])
  batch, height, *_, channels = lhs.shape
  window, outputs = rhs.shape[:-2], rhs.shape[-1]
  dot = functools.partial(
      jnp.einsum,
      precision=params["precision"],
      preferred_element_type=params["preferred_element_type"],
  )

  # A row for each window.
  if small_windows:
    rows = jnp.concatenate(_parts(lhs, window, gaps, result, strides), axis=-1)
    return dot("...i,io->...o", rows, rhs.reshape(-1, outputs))

  # A row for each place of the result. In two dimensions, it can be cheaper to
  # copy the columns of one operand, and the rows of the other.
  if len(result) == 2 and {*strides, *gaps} == {1}:
    copied = height * window[1] * channels
    copied *= result[1] * batch + result[0] * outputs
    if copied < math.prod((*result, batch, *window, channels)):
      columns = jnp.stack(
          _parts(lhs, (1, result[1]), (1, 1), (height, window[1]), (1, 1))
      )
      rows = jnp.stack([
          jnp.pad(rhs, ((row, result[0] - 1 - row), *((0, 0),) * 3))
          for row in range(result[0])
      ])
      return dot(
          "cbi,rio->brco",
          columns.reshape(*columns.shape[:2], -1),
          rows.reshape(result[0], -1, outputs),
      )
  places = jnp.stack(_parts(lhs, result, strides, window, gaps))
  product = dot(
      "pbi,io->bpo",
      places.reshape(*places.shape[:2], -1),
      rhs.reshape(-1, outputs),
  )
  return product.reshape(batch, *result, outputs)


def _padded(lhs, padding, dilation):
  spatial = [
      (low, high, gap - 1)
      for (low, high), gap in zip(padding, dilation, strict=True)
  ]
  zero = jnp.zeros((), lhs.dtype)
  return lax.pad(lhs, zero, [(0, 0, 0), *spatial, (0, 0, 0)])


def _parts(x, places, steps, counts, strides):
  """For each place, the part of x [B, ..., I] that begins there.

  Args:
    x: the array.
    places: how many, in each spatial dimension.
    steps: from one place to the next.
    counts: the spatial shape of a part.
    strides: between the elements of a part.
  """
  parts = []
  for index in itertools.product(*map(range, places)):
    start = [i * step for i, step in zip(index, steps, strict=True)]
    stop = [
        first + (count - 1) * stride + 1
        for first, count, stride in zip(start, counts, strides, strict=True)
    ]
    parts.append(
        lax.slice(
            x,
            (0, *start, 0),
            (x.shape[0], *stop, x.shape[-1]),
            (1, *strides, 1),
        )
    )
  return parts
