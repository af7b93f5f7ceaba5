"""Plain choices against the NumPy oracle, fast ones against the plain."""

import functools
import math
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import devices
from agsfl.sparsifiers import cpu
from tests import golden
from tests.sparsifiers import cases

# With these the order of float sums may decide what is in J.
BY_SUMS = ("fub", "fub_tree")
NAMES = tuple(cases.FACTORIES)


def exact_cases(name, shapes=cases.SHAPES):
  """Cases in which two correct programs choose the same J."""
  if name in BY_SUMS:
    return cases.whole_numbers(shapes)
  return cases.gradients(shapes)


class PlainTest(parameterized.TestCase):

  @parameterized.parameters(*NAMES)
  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(data=st.data())
  def test_equals_the_oracle(self, name, data):
    accumulated, counts, k = data.draw(exact_cases(name))
    got = cases.plainly(name)(accumulated, counts, k)
    want = cases.ORACLES[name](accumulated, counts, k)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.client_mask, want.client_mask)
    np.testing.assert_array_equal(got.residual, want.residual)
    cases.assert_sums_close(got.aggregate, want.aggregate, accumulated)


class FastTest(parameterized.TestCase):

  # Of 40 ranks the width 1 leaves nearly all to the search, 64 none.
  @parameterized.product(
      [dict(wing="cpu", width=1),
       dict(wing="cpu", width=64),
       dict(wing="accelerator", width=1)],
      name=NAMES,
  )
  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(data=st.data())
  def test_equals_plain(self, name, wing, width, data):
    """Law: the same sets, bit for bit, and sums that differ by rounding."""
    case = data.draw(
        cases.with_silent_clients(exact_cases(name, shapes=((7, 40),)))
    )
    self._check(cases.quickly(name, wing, width), name, case)

  def _check(self, run, name, case):
    got, want = run(*case), cases.plainly(name)(*case)
    for field in want._fields:
      ours, theirs = getattr(got, field), getattr(want, field)
      self.assertEqual(ours.dtype, theirs.dtype, field)
      if field in ("k_down", "volume_down"):
        continue  # rounding decides whether a sum is exactly zero
      if field == "aggregate" and name not in BY_SUMS:
        cases.assert_sums_close(ours, theirs, case[0])
      else:
        np.testing.assert_array_equal(ours, theirs, field)

  @parameterized.product(
      name=NAMES, wing=tuple(cases.FAST), k=(30, 400, 1200, 2900)
  )
  def test_equals_plain_where_zeros_share_bins(self, name, wing, k):
    rng = np.random.default_rng(k)
    accumulated = np.rint(4 * rng.normal(size=(3, 3000)) ** 3)
    accumulated[rng.random((3, 3000)) < 0.7] = 0
    case = accumulated.astype(np.float32), np.array([1, 1, 2]), k
    self._check(cases.quickly(name, wing, 16), name, case)

  @parameterized.product(name=NAMES, wing=tuple(cases.FAST))
  def test_equals_plain_where_entries_are_not_finite(self, name, wing):
    """Law: they are the largest; with k = 0 nothing is sent."""
    accumulated = np.arange(280, dtype=np.float32).reshape(7, 40)
    accumulated[1, 3], accumulated[2, 7] = np.inf, -np.inf
    accumulated[4] = np.nan
    # The order of sums that are no numbers is not defined.
    for k in (0,) if name in BY_SUMS else (0, 3, 11, 39):
      case = accumulated, np.arange(1, 8), k
      got = cases.quickly(name, wing, 1)(*case)
      want = cases.plainly(name)(*case)
      np.testing.assert_allclose(got.aggregate, want.aggregate, rtol=1e-6)
      jax.tree.map(
          np.testing.assert_array_equal,
          got._replace(aggregate=0),
          want._replace(aggregate=0),
      )

  # Few clients with a large network, and many with a small one.
  @parameterized.product(
      [dict(num_clients=24, dim=444_062), dict(num_clients=10_000, dim=9610)],
      name=("fab", "fub", "unidirectional"),
  )
  def test_little_memory(self, name, num_clients, dim):
    """Law: no array of [N, D] beside the gradients, one client at a time."""
    compiled = jax.jit(getattr(cpu, name)).lower(
        jax.ShapeDtypeStruct((num_clients, dim), jnp.float32),
        jax.ShapeDtypeStruct((num_clients,), jnp.float32),
        jax.ShapeDtypeStruct((2,), jnp.int32),
    ).compile()
    temporary = compiled.memory_analysis().temp_size_in_bytes
    self.assertLess(temporary, 4 * num_clients * dim)

  @parameterized.product(name=NAMES, wing=tuple(cases.FAST))
  def test_gradients_stay_on_their_devices(self, name, wing):
    """Law: no device gathers [N, D]; a tree's messages alone must meet."""
    num_clients, dim = 8, 500
    choose = functools.partial(getattr(cases.FAST[wing], name), width=16)
    mesh = devices.client_mesh(8)
    with jax.set_mesh(mesh):
      arguments = cases.split_over(
          mesh, np.ones((num_clients, dim), np.float32), np.ones(num_clients)
      )
      text = jax.jit(choose).lower(
          *arguments, jnp.array([4, 300])
      ).compile().as_text()
    shapes = re.findall(r"\[([\d,]+)\]\S* all-gather", text)
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    gathers = max(sizes, default=0) >= num_clients * dim
    self.assertEqual(gathers, name == "fub_tree")


class GoldenTest(parameterized.TestCase):

  @parameterized.product(
      name=NAMES,
      way=(
          cases.plainly,
          *(functools.partial(cases.quickly, wing=wing) for wing in cases.FAST),
      ),
  )
  def test_equals_the_authors(self, name, way):
    """The authors' masks exactly, aggregates to 1e-6 of the largest."""
    data = golden.load_or_skip(self)
    theirs = {"fub": "fub_flat"}.get(name, name)
    for case in range(golden.NUM_CASES):
      of = lambda item, case=case: data[f"{case:03d}/{item}"]
      num_clients, dim = of("grads").shape
      self.assertGreater(np.abs(of("grads")).min(), 0)
      # One shape for all: clients of weight 0 and zeros at the end, which
      # change nothing.
      padding = ((0, 16 - num_clients), (0, 1000 - dim))
      got = way(name)(
          np.pad(of("grads"), padding),
          np.pad(of("counts"), padding[0]),
          int(of("k")),
      )
      np.testing.assert_array_equal(
          got.client_mask, np.pad(of(f"{theirs}_client_mask"), padding)
      )
      aggregate = np.pad(of(f"{theirs}_aggregate"), padding[1])
      np.testing.assert_allclose(
          got.aggregate, aggregate, 0, 1e-6 * max(1, np.abs(aggregate).max())
      )
      # Their masks of the other methods leave out sums of 0.
      mask = got.mask if name == "fab" else got.aggregate != 0
      np.testing.assert_array_equal(
          mask, np.pad(of(f"{theirs}_mask"), padding[1])
      )


class PaperTest(parameterized.TestCase):
  """What the papers say of single methods, in numbers worked by hand."""

  def test_a_merge_drops_what_the_sum_would_keep(self):
    """k = 1, four clients: 0 and 1 merge to {0}, 2 and 3 to {2}.

    The clients send 3@0, 2@1, 2@1 and 3.5@2. The flat sum has 4@1, the largest.
    In the tree 0 and 1 send on 3@0, 2 and 3 send on 3.5@2, and of these the
    root sends back 3.5@2; all else goes back.
    """
    accumulated = np.float32([[3, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 3.5]])
    flat = cases.plainly("fub")(accumulated, np.ones(4), 1)
    np.testing.assert_array_equal(flat.mask, [False, True, False])
    tree = cases.plainly("fub_tree")(accumulated, np.ones(4), 1)
    np.testing.assert_array_equal(tree.mask, [False, False, True])
    np.testing.assert_array_equal(tree.residual[:3], accumulated[:3])
    np.testing.assert_array_equal(tree.residual[3], 0)

  @parameterized.parameters(*BY_SUMS)
  def test_sums_go_by_data_size(self, name):
    """Client 1's 3 weighs 7/8, more than client 0's 8 that weighs 1/8."""
    accumulated = np.zeros((2, 12), np.float32)
    accumulated[0, 0], accumulated[1, 1] = 8, 3
    got = cases.plainly(name)(accumulated, np.array([1, 7]), 1)
    np.testing.assert_array_equal(np.flatnonzero(got.mask), [1])

  def test_fub_starves_a_quiet_client(self):
    """The field's point: FUB takes nothing of client 1, FAB half."""
    accumulated = np.float32([[9, 8, 7, 6, 0, 0], [0, 0, 0, 0, 2, 1]])
    fub = cases.plainly("fub")(accumulated, np.ones(2), 2)
    fab = cases.plainly("fab")(accumulated, np.ones(2), 2)
    np.testing.assert_array_equal(fub.contributed, [2, 0])
    np.testing.assert_array_equal(fab.contributed, [1, 1])

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(cases.gradients())
  def test_fab_is_fair(self, case):
    """Law: every client contributes at least floor(k / N)."""
    accumulated, counts, k = case
    got = cases.plainly("fab")(accumulated, counts, k)
    self.assertGreaterEqual(got.contributed.min(), k // len(counts))


if __name__ == "__main__":
  absltest.main()
