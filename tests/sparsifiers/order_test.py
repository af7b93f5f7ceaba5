"""One client's order by counting, against stable sorts by NumPy."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import platforms
from agsfl.sparsifiers import accelerator, methods, topk
from agsfl.sparsifiers.accelerator import order
from tests.sparsifiers.topk_test import order_of

DIM, WIDTH = 3000, 16
RANKS = (0, 1, 15, 40, 1500, 2999, 3000)


def gradients():
  """By name, also such that the sample says nothing of the other entries."""
  rng = np.random.default_rng(0)
  normal = rng.normal(size=DIM)
  in_sample = np.arange(DIM) % order.STRIDE == 0
  yield "normal", normal
  yield "ties", rng.integers(-2, 3, DIM)
  yield "equal", np.ones(DIM)
  yield "denormal", np.where(rng.random(DIM) < 0.5, 1e-42 * normal, 0)
  yield "outside_of_a_small_sample", np.where(in_sample, 0, 1 + normal * 1e-6)
  yield "ties_below_a_large_sample", np.where(in_sample, 9, 1)


GRADIENTS = dict(gradients())


@jax.jit
def stretches(accumulated):
  sample = order.sample(accumulated)
  found = order.stretches(accumulated, sample, jnp.array(RANKS), WIDTH)
  return found, order.sort(accumulated, found, WIDTH)


class StretchesTest(parameterized.TestCase):

  @parameterized.named_parameters(GRADIENTS.items())
  def test_hold_their_ranks_in_order(self, accumulated):
    """Law: short stretches of a stable sort, around any rank."""
    accumulated = accumulated.astype(np.float32)
    (above, last), got = jax.device_get(stretches(jnp.asarray(accumulated)))
    want = order_of(accumulated)
    for r, rank in enumerate(RANKS):
      start, end = above.rank[r], last.rank[r]
      self.assertLessEqual(end - start, WIDTH)
      np.testing.assert_array_equal(got[r, : end - start], want[start:end])
      np.testing.assert_array_equal(got[r, end - start :], DIM)
      if 0 < rank < DIM:
        self.assertBetween(rank, start + 1, end)

  def test_few_passes(self):
    """Law: where the sample is like the rest, three passes are enough."""
    passes = []

    def counted(flags):
      jax.debug.callback(lambda: passes.append(1))
      return _count(flags)

    _count = order.count
    rng = np.random.default_rng(0)
    accumulated = jnp.asarray(rng.standard_t(2, 200_000), jnp.float32)
    ranks = jnp.array([10, 300, 3000, 40_000, 150_000])
    with mock.patch.object(order, "count", counted):
      sample = order.sample(accumulated)
      jax.block_until_ready(
          order.stretches(accumulated, sample, ranks, accelerator.WIDTH // 4)
      )
    jax.effects_barrier()
    self.assertBetween(len(passes), 1, 3)


class CountTest(absltest.TestCase):

  def test_words_do_not_overflow(self):
    """Law: four counts share a word, even where all of them are full."""
    for dim in (1, 31, 32, 5000):
      full, none = jnp.ones(dim, bool), jnp.zeros(dim, bool)
      got = order.count([full, none, full, full, full])
      np.testing.assert_array_equal(got, [dim, 0, dim, dim, dim])


class LargestTest(absltest.TestCase):

  def test_is_a_stable_sort(self):
    x = np.float32([0, 2, -2, 1, 0, 2])
    keys = topk.magnitude_key(jnp.asarray(x))
    for k in range(7):
      got = np.flatnonzero(order.largest(keys, jnp.int32(k)))
      np.testing.assert_array_equal(got, np.sort(order_of(x)[:k]))


def equations(jaxpr):
  """All operations, also those of inner functions."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jax.tree.leaves(
        list(equation.params.values()),
        is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr"),
    ):
      inner = getattr(inner, "jaxpr", inner)
      if hasattr(inner, "eqns"):
        yield from equations(inner)


class ProgramTest(parameterized.TestCase):

  @parameterized.parameters("fab", "fub", "fub_tree", "unidirectional")
  def test_all_clients_at_once(self, name):
    """Law: no loop over clients, no float is added by a scatter, and no
    scatter or sort has as many elements as all gradients."""
    num_clients, dim, width, num_ks = 5, 10_000, 64, 2
    choose = functools.partial(getattr(accelerator, name), width=width)
    program = jax.make_jaxpr(choose)(
        jax.ShapeDtypeStruct((num_clients, dim), jnp.float32),
        jax.ShapeDtypeStruct((num_clients,), jnp.float32),
        jax.ShapeDtypeStruct((num_ks,), jnp.int32),
    )
    names = set()
    for equation in equations(program.jaxpr):
      operation = equation.primitive.name
      names.add(operation)
      self.assertNotEqual(equation.params.get("length"), num_clients)
      self.assertNotEqual(operation, "scatter-add")
      if operation.startswith("scatter"):
        updates = equation.invars[2].aval.size
        self.assertLessEqual(updates, num_clients * width * num_ks)
      if operation == "sort":
        self.assertLessEqual(equation.invars[0].aval.size, num_ks * dim)
    # The walk has seen the inner functions.
    self.assertLessEqual({"sort", "while", "population_count"}, names)

  @parameterized.parameters(True, False)
  def test_the_platform_decides(self, is_cpu):
    """Law: on a CPU clients go one by one, elsewhere all at once."""
    with mock.patch.object(platforms, "keeps_to_caches", lambda: is_cpu):
      program = jax.make_jaxpr(methods.fab_top_k().select)(
          jax.random.key(0),
          jax.ShapeDtypeStruct((5, 10_000), jnp.float32),
          jax.ShapeDtypeStruct((5,), jnp.float32),
          jnp.int32(9),
          (),
      )
    loops = {
        equation.params["length"]
        for equation in equations(program.jaxpr)
        if equation.primitive.name == "scan"
    }
    self.assertEqual(5 in loops, is_cpu)


if __name__ == "__main__":
  absltest.main()
