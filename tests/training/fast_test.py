"""The fast forms of operations against XLA's plain ones."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from absl.testing import absltest, parameterized
from jax import lax
from jax.extend.core import primitives

from agsfl import platforms
from agsfl.training.fast import faster, products, slow
from agsfl.training.fast.convolution import in_one_order
from agsfl.training.fast.rewriting import rewritten
from agsfl.training.fast.rules import _RULES

_CHANNELS_LAST = ("NHWC", "HWIO", "NHWC")


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def value_and_gradients(function):
  """(arguments) -> the value, and the gradients along one direction."""

  def both(*arguments):
    value, pull = jax.vjp(function, *arguments)
    direction = jnp.cos(jnp.arange(1.0, value.size + 1)).reshape(value.shape)
    return value, pull(direction.astype(value.dtype))

  return both


def assert_near(got, want):
  for one, other in zip(
      jax.tree.leaves(got), jax.tree.leaves(want), strict=True
  ):
    assert one.shape == other.shape
    scale = max(float(np.max(np.abs(other))), 1e-6)
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-5 * scale)


def conv(x, kernel, strides=(1, 1), padding="SAME", **settings):
  settings = {"dimension_numbers": _CHANNELS_LAST} | settings
  return lax.conv_general_dilated(x, kernel, strides, padding, **settings)


def pool(reduce, fill, size, strides, padding, x, **dilations):
  return lax.reduce_window(
      x, fill, reduce, (1, *size, 1), (1, *strides, 1), padding, **dilations
  )


max_pool = functools.partial(pool, lax.max, -jnp.inf)
sum_pool = functools.partial(pool, lax.add, 0.0)

# Name -> (function, shapes of its arguments).
OPERATIONS = {
    "same": (conv, ((3, 8, 8, 2), (5, 5, 2, 4))),
    "valid": (
        functools.partial(conv, padding="VALID"), ((3, 7, 9, 2), (2, 3, 2, 4))
    ),
    "one place": (
        functools.partial(conv, padding="VALID"), ((3, 5, 4, 2), (5, 4, 2, 4))
    ),
    "strided": (
        functools.partial(conv, strides=(2, 3)), ((3, 9, 11, 2), (3, 4, 2, 4))
    ),
    "dilated": (
        functools.partial(conv, rhs_dilation=(2, 3)),
        ((2, 11, 12, 2), (3, 2, 2, 4)),
    ),
    "transposed": (
        functools.partial(
            conv, padding=((2, 1), (1, 2)), lhs_dilation=(2, 3)
        ),
        ((2, 5, 4, 2), (3, 3, 2, 4)),
    ),
    "grouped": (
        functools.partial(conv, feature_group_count=2),
        ((2, 6, 6, 4), (3, 3, 2, 6)),
    ),
    "depthwise": (
        functools.partial(conv, feature_group_count=4),
        ((2, 6, 6, 4), (3, 3, 1, 4)),
    ),
    "channels first": (
        functools.partial(conv, dimension_numbers=("NCHW", "OIHW", "NCHW")),
        ((3, 2, 8, 7), (4, 2, 3, 3)),
    ),
    "one dimension": (
        functools.partial(
            conv, strides=(2,), dimension_numbers=("NWC", "WIO", "NWC")
        ),
        ((3, 12, 2), (4, 2, 5)),
    ),
    "three dimensions": (
        functools.partial(
            conv,
            strides=(1, 2, 1),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        ),
        ((2, 4, 5, 6, 2), (2, 3, 3, 2, 3)),
    ),
    "max pool": (
        functools.partial(max_pool, (2, 2), (2, 2), "SAME"), ((2, 7, 8, 3),)
    ),
    "max pool of windows that overlap": (
        functools.partial(max_pool, (3, 2), (2, 1), "SAME"), ((2, 7, 8, 3),)
    ),
    "max pool of bfloat16": (
        lambda x: max_pool((2, 2), (2, 2), "SAME", x.astype(jnp.bfloat16))
        .astype(jnp.float32),
        ((2, 8, 8, 3),),
    ),
    "max pool of a large window": (
        functools.partial(max_pool, (9, 9), (1, 1), "VALID"),
        ((2, 10, 12, 3),),
    ),
    "sum pool": (
        functools.partial(sum_pool, (3, 3), (2, 2), "SAME"), ((2, 7, 8, 3),)
    ),
    "sum pool with dilations": (
        functools.partial(
            sum_pool, (2, 3), (1, 2), ((0, 0), (1, 0), (2, 1), (0, 0)),
            base_dilation=(1, 2, 1, 1), window_dilation=(1, 1, 2, 1),
        ),
        ((2, 7, 8, 3),),
    ),
    "sum of a large window": (
        functools.partial(sum_pool, (9, 9), (1, 1), "VALID"),
        ((2, 10, 12, 3),),
    ),
}


class OperationsTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (name, *case) for name, case in OPERATIONS.items()
  )
  def test_values_and_gradients_are_the_plain_ones(self, function, shapes):
    plain = value_and_gradients(function)
    arguments = [normal(i, *shape) for i, shape in enumerate(shapes)]
    want = jax.jit(plain)(*arguments)
    assert_near(jax.jit(faster(plain))(*arguments), want)

    # The same for several clients, one by one and side by side.
    stacked = [jnp.stack([x, 2 * x, -x]) for x in arguments]
    want = jax.jit(jax.vmap(plain))(*stacked)
    assert_near(jax.jit(jax.vmap(faster(plain)))(*stacked), want)
    one_by_one = jax.jit(
        lambda *all: lax.map(lambda one: faster(plain)(*one), all)
    )
    assert_near(one_by_one(*stacked), want)

  @parameterized.named_parameters(
      (name, *OPERATIONS[name])
      for name in OPERATIONS
      if ("pool" not in name and name not in ("grouped", "depthwise"))
      or name == "max pool"
  )
  def test_forms_of_accelerators_are_the_plain_ones(self, function, shapes):
    """CPUs do not run these forms unless they are chosen by hand."""
    plain = value_and_gradients(function)
    arguments = [normal(i, *shape) for i, shape in enumerate(shapes)]
    conv = in_one_order(products.as_product)
    rules = _RULES | {primitives.conv_general_dilated_p: conv}
    with mock.patch.object(platforms, "keeps_to_caches", lambda: False):
      got = jax.jit(rewritten(plain, rules))(*arguments)
    assert_near(got, jax.jit(plain)(*arguments))

  @parameterized.parameters("images", "kernel")
  def test_operands_that_all_clients_share(self, shared):
    x, kernel = normal(0, 5, 3, 8, 8, 2), normal(1, 5, 3, 3, 2, 4)
    if shared == "images":
      x, axes = x[0], (None, 0)
    else:
      kernel, axes = kernel[0], (0, None)
    plain = value_and_gradients(conv)
    got = jax.jit(jax.vmap(faster(plain), axes))(x, kernel)
    assert_near(got, jax.jit(jax.vmap(plain, axes))(x, kernel))

  def test_of_equal_maxima_the_first_gets_the_gradient(self):
    x = jnp.array([[1.0, 2.0], [2.0, 2.0]]).reshape(1, 2, 2, 1)
    pooled = functools.partial(max_pool, (2, 2), (2, 2), "SAME")
    gradient = faster(jax.grad(lambda x: jnp.sum(pooled(x))))
    np.testing.assert_array_equal(gradient(x).ravel(), [0, 1, 0, 0])
    plain = value_and_gradients(pooled)
    tied = jnp.round(normal(3, 2, 8, 8, 3))
    assert_near(faster(plain)(tied), plain(tied))

  def test_no_gradient_is_lost_where_a_maximum_is_not_a_number(self):
    pooled = functools.partial(max_pool, (2, 2), (2, 2), "SAME")
    x = jnp.arange(16.0).reshape(1, 4, 4, 1).at[0, 1, 1, 0].set(jnp.nan)
    gradient = faster(jax.grad(lambda x: jnp.sum(pooled(x))))(x)
    self.assertEqual(float(jnp.sum(gradient)), 4.0)


  @parameterized.parameters(
      ("grouped", "convolutions with groups"),
      ("max pool of a large window", "max-pooling over more than 64"),
      ("strided", None),
      ("max pool", None),
  )
  def test_what_stays_slow_is_said_once(self, name, words):
    function, shapes = OPERATIONS[name]
    arguments = [normal(i, *shape) for i, shape in enumerate(shapes)]
    slow.warn.cache_clear()
    with mock.patch.object(logging, "warning") as warning:
      for _ in range(2):
        jax.eval_shape(faster(value_and_gradients(function)), *arguments)
    said = [call.args[0] % call.args[1:] for call in warning.call_args_list]
    self.assertEqual([words in line for line in said], [True] if words else [])


class RewritingTest(parameterized.TestCase):
  """Operations are exchanged wherever they stand in a trace."""

  def loss(self, kernel, x):
    """Convolutions in a scan, a branch, a jitted call and a checkpoint."""
    call = jax.jit(lambda x: jnp.tanh(conv(x, kernel)))
    saved = jax.checkpoint(lambda x: jnp.sin(conv(x, kernel)))
    x, _ = lax.scan(lambda x, _: (call(x), None), x, length=2)
    x = lax.cond(jnp.sum(x) > 0, call, lambda x: saved(x) + call(x), x)
    return jnp.sum(jnp.square(saved(x)))

  def test_inside_of_everything(self):
    arguments = normal(0, 3, 3, 2, 2), normal(1, 2, 6, 6, 2)
    plain = jax.value_and_grad(self.loss, (0, 1))
    assert_near(faster(plain)(*arguments), plain(*arguments))

    # Law: no convolution is left in an order that CPUs have no kernel for.
    def orders(function):
      found = set()

      def visit(jaxpr):
        for equation in jaxpr.eqns:
          if equation.primitive is primitives.conv_general_dilated_p:
            found.add(equation.params["dimension_numbers"])
          for value in jax.tree.leaves(
              list(equation.params.values()),
              is_leaf=lambda value: hasattr(value, "eqns"),
          ):
            if hasattr(value, "eqns"):
              visit(value)

      visit(jax.make_jaxpr(function)(*arguments).jaxpr)
      return found

    self.assertGreater(len(orders(plain)), 1)
    self.assertLen(orders(faster(plain)), 1)

  def test_a_function_that_is_used_twice_is_compiled_once(self):
    """Law: equal traces stay one object, so XLA sees one function."""
    call = jax.jit(lambda x: conv(x, jnp.ones((3, 3, 2, 2))))
    text = jax.jit(faster(lambda x: call(call(x)))).lower(
        normal(0, 1, 4, 4, 2)
    ).as_text()
    self.assertEqual(text.count("stablehlo.convolution"), 1)


if __name__ == "__main__":
  absltest.main()
