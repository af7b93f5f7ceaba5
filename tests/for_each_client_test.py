"""Every way over clients is `jax.vmap`, on one device and on several."""

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import devices, platforms
from agsfl.for_each_client import (
    in_pieces,
    is_split,
    one_by_one,
    over_devices,
)

N, D = 4, 3
WAYS = {
    "one_by_one": one_by_one,
    "in_pieces_of_one": in_pieces(0),
    "in_pieces": in_pieces(200),
    "over_devices_vmap": over_devices(jax.vmap),
    "over_devices_one_by_one": over_devices(one_by_one),
    "of_the_platform": platforms.for_each_client(),
}


def vector(i):
  return jnp.arange(1.0 + i, 1.0 + i + D)


def flags(i):
  return jnp.arange(D) == i % D


def tree(i):
  return {"weights": vector(i), "count": jnp.int32(i), "nothing": None}


def plain(results):
  """NumPy arrays, keys as their numbers."""
  is_key = lambda x: jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
  return jax.device_get(jax.tree.map(
      lambda x: jax.random.key_data(x) if is_key(x) else x, results
  ))


# What one client's argument may be, made of a number.
ARGUMENTS = {
    "vector": vector,
    "other_vector": lambda i: vector(2 * i),
    "row": lambda i: jnp.full((2, D), i, jnp.float32),
    "number": lambda i: jnp.float32(i),
    "flags": flags,
    "key": jax.random.key,
    "tree": tree,
}


def total(arguments):
  """A whole number that depends on all of them."""
  leaves = [
      jax.random.bits(leaf, (), jnp.uint32) >> 12
      if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
      else jnp.sum(leaf.astype(jnp.float32))
      for leaf in jax.tree.leaves(arguments)
  ]
  return sum(leaf.astype(jnp.float32) for leaf in leaves)


# What a function may return of its arguments' total t.
RESULTS = {
    "vector": lambda t: vector(0) * t,
    "row": lambda t: jnp.full((2, D), t),
    "other_shape": lambda t: jnp.full((D, 2, 1), t),
    "whole_numbers": lambda t: jnp.full(D, t).astype(jnp.int32),
    "flags": lambda t: jnp.full(D, t) > 20,
    "number": lambda t: t,
    "key": lambda t: jax.random.key(t.astype(jnp.int32)),
    "nothing": lambda t: None,
}


@st.composite
def cases(draw):
  """(function of one client, in_axes, arguments of all clients)."""
  kinds = draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), min_size=1,
                        max_size=5))
  axes = draw(st.lists(st.sampled_from((0, None)), min_size=len(kinds),
                       max_size=len(kinds)))
  axes[draw(st.integers(0, len(kinds) - 1))] = 0
  results = draw(st.lists(st.sampled_from(sorted(RESULTS)), max_size=4))
  args = [
      jax.tree.map(lambda *x: jnp.stack(x), *map(ARGUMENTS[kind], range(N)))
      if axis == 0
      else ARGUMENTS[kind](7)
      for kind, axis in zip(kinds, axes, strict=True)
  ]
  returns_first = draw(st.booleans())

  def function(*args):
    t = total(args)
    made = [RESULTS[name](t + i) for i, name in enumerate(results)]
    # Several results, and an argument as it is, shape for shape.
    return {"made": made, "first": args[0] if returns_first else t}

  in_axes = 0 if set(axes) == {0} and draw(st.booleans()) else tuple(axes)
  return function, in_axes, args


class PiecesTest(parameterized.TestCase):

  @parameterized.parameters(
      (0, 1), (84, 1), (168, 2), (335, 3), (1e9, 7)
  )
  def test_as_many_as_fit(self, memory, most):
    """A client makes twice 10 numbers and a sum of 4 bytes: 84 bytes."""
    seen = []

    @jax.custom_batching.custom_vmap
    def spy(x):
      return x

    @spy.def_vmap
    def spied(axis_size, in_batched, x):
      seen.append(axis_size)
      return x, in_batched[0]

    function = lambda x, y: jnp.sum(spy(x) + y)
    got = in_pieces(memory)(function, (0, None))(
        jnp.ones((7, 10)), jnp.full(10, 2.0, jnp.float32)
    )
    np.testing.assert_array_equal(got, np.full(7, 30.0))
    self.assertEqual(max(seen), most)


class VmapTest(parameterized.TestCase):

  @parameterized.parameters(*WAYS)
  @hypothesis.settings(max_examples=25, deadline=None)
  @hypothesis.given(case=cases())
  def test_is_vmap(self, name, case):
    """Law: the same results, bit for bit."""
    function, in_axes, args = case
    want = jax.vmap(function, in_axes)(*args)
    got = WAYS[name](function, in_axes)(*args)
    chex.assert_trees_all_equal(plain(got), plain(want))

  @parameterized.parameters(*[name for name in WAYS if name != "one_by_one"])
  @hypothesis.settings(max_examples=10, deadline=None)
  @hypothesis.given(case=cases())
  def test_is_vmap_on_two_devices(self, name, case):
    """Law: each device runs its own clients; nothing needs a closure."""
    function, in_axes, args = case
    want = jax.vmap(function, in_axes)(*args)
    with jax.set_mesh(devices.client_mesh(2)):
      got = jax.jit(WAYS[name](function, in_axes))(*args)
    chex.assert_trees_all_equal(plain(got), plain(want))

  @parameterized.parameters(*WAYS)
  def test_refuses_what_vmap_refuses(self, name):
    """Law: other numbers of clients or of axes are an error."""
    both = lambda a, b: (a, b)
    rows = np.ones((N, D), np.float32)
    for in_axes, args in (
        (0, (rows, rows[1:])),
        ((0, 0), (rows,)),
        ((None, None), (rows, rows)),
    ):
      with self.assertRaises((ValueError, TypeError)):
        jax.vmap(both, in_axes)(*args)
      with self.assertRaises((ValueError, TypeError)):
        WAYS[name](both, in_axes)(*args)


class InPlaceTest(absltest.TestCase):

  def test_residuals_take_no_memory_of_their_own(self):
    """Law: with N D floats given away, N D floats and little more are used."""
    num_clients, dim = 64, 4096
    size = 4 * num_clients * dim

    def add_gradient(residual, sample):
      gradient = jnp.sin(sample * jnp.arange(dim, dtype=jnp.float32))
      return residual + gradient, jnp.sum(gradient)

    def used(way):
      compiled = jax.jit(way(add_gradient), donate_argnums=0).lower(
          jnp.ones((num_clients, dim)), jnp.ones(num_clients)
      ).compile()
      memory = compiled.memory_analysis()
      return (
          memory.argument_size_in_bytes
          + memory.output_size_in_bytes
          + memory.temp_size_in_bytes
          - memory.alias_size_in_bytes
      )

    self.assertLess(used(one_by_one), 1.2 * size)
    # Stacked into fresh memory it takes more, so the figure can show it.
    fresh = lambda function: lambda *args: jax.lax.map(
        lambda client: function(*client), args
    )
    self.assertGreater(used(fresh), 1.5 * size)


class SplitTest(absltest.TestCase):

  def test_is_split_outside_of_a_device(self):
    """Law: clients are split on two devices, but not within one of them."""
    seen = []

    def look(x):
      seen.append(is_split())
      return x

    for num_devices, want in ((1, [False]), (2, [True, False])):
      seen.clear()
      with jax.set_mesh(devices.client_mesh(num_devices)):
        jax.jit(lambda x: over_devices(jax.vmap)(look)(look(x)))(jnp.ones(2))
      self.assertEqual(seen[: len(want)], want)
    self.assertFalse(is_split())


if __name__ == "__main__":
  absltest.main()
