"""Convolutions, and the gradients that autodiff derives from them.

XLA's CPU backend has a fast kernel for one order of dimensions. Outside of
loops it brings all convolutions to this order. Inside loops it does not, and a
convolution then takes ten times as long or more. So here each convolution is
brought to this order.

Where every client has its own operands, vmap makes a grouped convolution with a
group for each client. Accelerators have no fast kernel for many groups. So
there it becomes a matrix product for each client.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.custom_batching import custom_vmap
from jax.extend.core import primitives

from agsfl.training.fast import products, slow
from agsfl.training.fast.rewriting import Rule

# From this many clients on, products are faster than groups.
#
# Source: PyTorch's `vmap` of convolutions, which changes its form there.
_MANY_CLIENTS = 32


def in_one_order(
    conv: Callable[[jax.Array, jax.Array, dict[str, Any]], jax.Array],
) -> Rule:
  """The rule for all orders of dimensions, from a function of one order.

  Args:
    conv: (lhs [B, ..., I], rhs [..., I, O], parameters) -> [B, ..., O].

  Returns:
    A rule for `conv_general_dilated`.
  """

  def rule(lhs, rhs, **params):
    numbers, ndim = params["dimension_numbers"], lhs.ndim
    spatial = tuple(range(1, ndim - 1))
    order = lax.ConvDimensionNumbers(
        lhs_spec=(0, ndim - 1, *spatial),
        rhs_spec=(ndim - 1, ndim - 2, *range(ndim - 2)),
        out_spec=(0, ndim - 1, *spatial),
    )
    result = conv(
        lax.transpose(lhs, _moved(numbers.lhs_spec, order.lhs_spec)),
        lax.transpose(rhs, _moved(numbers.rhs_spec, order.rhs_spec)),
        params | {"dimension_numbers": order},
    )
    return lax.transpose(result, _moved(order.out_spec, numbers.out_spec))

  return rule


def _moved(source, target):
  """The permutation that brings dimensions from one order to another."""
  return [source[target.index(i)] for i in range(len(source))]


def _of_one_order(lhs, rhs, params):
  if products.has_groups(params):
    slow.warn(
        "convolutions with groups",
        "Without groups (feature_group_count=1) they are fast.",
    )
  single = functools.partial(primitives.conv_general_dilated_p.bind, **params)
  conv = custom_vmap(single)

  @conv.def_vmap
  def of_clients(axis_size, in_batched, lhs, rhs):
    axes = tuple(0 if batched else None for batched in in_batched)
    in_groups = jax.vmap(single, axes)
    if None in axes or products.has_groups(params):
      return in_groups(lhs, rhs), True

    # Gradients of kernels are faster as products for few clients too.
    few = axis_size < _MANY_CLIENTS
    forward = products.has_small_windows(lhs[0], rhs[0], params)
    product = functools.partial(products.as_product, params=params)
    return lax.platform_dependent(
        lhs,
        rhs,
        cpu=lambda *both: lax.map(lambda one: single(*one), both),
        default=in_groups if few and forward else jax.vmap(product),
    ), True

  return conv(lhs, rhs)


convolution = in_one_order(_of_one_order)
