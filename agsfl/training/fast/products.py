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

  This holds in a forward pass. In the gradient of a kernel, the window is an
  image and the result is a kernel.

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
  result = _result_shape(lhs, rhs, params)
  if has_small_windows(lhs, rhs, params):
    form = by_windows
  elif _copies_less_split(lhs, rhs, result, params):
    form = by_columns_and_rows
  else:
    form = by_places
  dot = functools.partial(
      jnp.einsum,
      precision=params["precision"],
      preferred_element_type=params["preferred_element_type"],
  )
  lhs = _padded(lhs, params["padding"], params["lhs_dilation"])
  return form(dot, lhs, rhs, result, params)


def _copies_less_split(lhs, rhs, result, params):
  """Whether `by_columns_and_rows` can be used, and copies less."""
  steps = {*params["window_strides"], *params["rhs_dilation"]}
  if len(result) != 2 or steps != {1}:
    return False
  # Without the factors that both have: the window's width and the channels.
  batch, height, outputs = lhs.shape[0], rhs.shape[0], rhs.shape[-1]
  split = (result[0] + height - 1) * (result[1] * batch + result[0] * outputs)
  return split < math.prod(result) * batch * height


def by_windows(dot, lhs, rhs, result, params):
  """A row of the product for each window, as long as the window."""
  rows = jnp.concatenate(
      _parts(
          lhs, rhs.shape[:-2], params["rhs_dilation"],
          result, params["window_strides"],
      ),
      axis=-1,
  )
  return dot("...i,io->...o", rows, rhs.reshape(-1, rhs.shape[-1]))


def by_places(dot, lhs, rhs, result, params):
  """A row for each place of the result, as long as the window."""
  places = jnp.stack(
      _parts(
          lhs, result, params["window_strides"],
          rhs.shape[:-2], params["rhs_dilation"],
      )
  )
  product = dot(
      "pbi,io->bpo",
      places.reshape(*places.shape[:2], -1),
      rhs.reshape(-1, rhs.shape[-1]),
  )
  return product.reshape(lhs.shape[0], *result, -1)


def by_columns_and_rows(dot, lhs, rhs, result, params):
  """Shifted columns of one operand times shifted rows of the other.

  In two dimensions, without strides, this copies less than `by_places` if the
  result has many places.
  """
  del params
  columns = jnp.stack(
      _parts(lhs, (1, result[1]), (1, 1), (lhs.shape[1], rhs.shape[1]), (1, 1))
  )
  rows = jnp.stack([
      jnp.pad(rhs, ((row, result[0] - 1 - row), *((0, 0),) * 3))
      for row in range(result[0])
  ])
  return dot(
      "cbi,rio->brco",
      columns.reshape(*columns.shape[:2], -1),
      rows.reshape(result[0], -1, rhs.shape[-1]),
  )


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
