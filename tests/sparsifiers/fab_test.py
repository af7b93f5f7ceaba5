"""FAB-top-k against the NumPy oracle, and its laws."""

import functools
import itertools
from typing import NamedTuple

import chex
import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.sparsifiers import methods as sparsifiers
from agsfl.sparsifiers import topk
from tests import golden, reference

# Fixed shapes, so that a shape compiles once and a thousand cases reuse it.
SHAPES = ((1, 12), (2, 12), (3, 40), (8, 40))
# The first width leaves nearly all ranks to the search, the last none.
WIDTHS = (1, 5, 64)


class Result(NamedTuple):
  """A Selection and its Split, together."""

  mask: np.ndarray
  aggregate: np.ndarray
  k_down: np.ndarray
  client_mask: np.ndarray
  sent: np.ndarray
  residual: np.ndarray


def both(sparsifier, accumulated, weights, k):
  selection, _ = sparsifier.select(None, accumulated, weights, k, ())
  split = jax.vmap(sparsifier.split, (0, None, 0))(
      accumulated, selection.mask, selection.clients
  )
  return Result(
      selection.mask, selection.aggregate, selection.k_down, *split
  )


@functools.cache
def jitted(width):
  # One client after another, or all at once: both ways are used.
  client_chunk = 1 if width > 1 else None
  sparsifier = sparsifiers.fab_top_k(client_chunk=client_chunk, window=width)
  return jax.jit(functools.partial(both, sparsifier))


def select(accumulated, counts, k, width=64):
  weights = jnp.asarray(counts / np.sum(counts), jnp.float32)
  result = jitted(width)(jnp.asarray(accumulated), weights, jnp.int32(k))
  return jax.tree.map(np.asarray, result)


@st.composite
def cases(draw, shapes=SHAPES):
  """Accumulated gradients with ties, zeros, denormals and mixed scales."""
  num_clients, dim = draw(st.sampled_from(shapes))
  kind = draw(st.sampled_from(("floats", "ties", "scaled", "shared")))
  shape = (num_clients, dim)
  if kind == "floats":
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    accumulated = draw(hnp.arrays(np.float32, shape, elements=finite))
  else:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    accumulated = rng.integers(-3, 4, shape).astype(np.float32)
    if kind == "scaled":
      scales = 10.0 ** rng.integers(-42, 20, (num_clients, 1))
      accumulated = (rng.normal(size=shape) * scales).astype(np.float32)
    if kind == "shared":
      base = rng.normal(size=dim)
      accumulated = base + 0.01 * rng.normal(size=shape)
      accumulated = accumulated.astype(np.float32)
  counts = draw(hnp.arrays(np.int64, num_clients, elements=st.integers(1, 99)))
  return accumulated, counts, draw(st.integers(0, dim))


class FabTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=200, deadline=None)
  @hypothesis.given(cases(), st.sampled_from(WIDTHS))
  def test_laws(self, case, width):
    accumulated, counts, k = case
    num_clients = len(counts)
    got = select(accumulated, counts, k, width)
    want = reference.fab(accumulated, counts, k)
    # Law: equals the oracle.
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.client_mask, want.client_mask)
    # Law: exactly k elements.
    self.assertEqual(got.mask.sum(), k)
    self.assertEqual(got.k_down, k)
    # Law: every client contributes at least floor(k / N).
    self.assertGreaterEqual(got.client_mask.sum(1).min(), k // num_clients)
    # Law: sent + residual == accumulated, bit for bit. Adding 0 turns -0 to
    # 0, the one value whose bits may differ.
    np.testing.assert_array_equal(
        (got.sent + got.residual).view(np.int32),
        (accumulated + np.float32(0)).view(np.int32),
    )
    # Law: each element is on one side.
    self.assertFalse(((got.sent != 0) & (got.residual != 0)).any())

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(cases(), st.randoms(use_true_random=False))
  def test_permuting_clients_permutes_the_result(self, case, random):
    accumulated, counts, k = case
    order = list(range(len(counts)))
    random.shuffle(order)
    one = select(accumulated, counts, k)
    other = select(accumulated[order], counts[order], k)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.client_mask[order], other.client_mask)

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(cases())
  def test_one_client_is_plain_top_k(self, case):
    accumulated, _, k = case
    row = accumulated[:1]
    got = select(row, np.ones(1), k)
    top = np.argsort(-np.abs(row[0].astype(np.float64)), kind="stable")[:k]
    np.testing.assert_array_equal(np.flatnonzero(got.mask), np.sort(top))

  @parameterized.parameters(*SHAPES)
  def test_k_equal_to_dim_is_a_dense_step(self, num_clients, dim):
    rng = np.random.default_rng(dim)
    accumulated = rng.normal(size=(num_clients, dim)).astype(np.float32)
    counts = rng.integers(1, 9, num_clients)
    for k in (dim, dim + 5):
      got = select(accumulated, counts, k)
      self.assertTrue(got.client_mask.all())
      self.assertFalse(got.residual.any())
      mean = np.average(accumulated, axis=0, weights=counts)
      np.testing.assert_allclose(got.aggregate, mean, atol=1e-6)

  def test_aggregate_divides_by_all_data(self):
    """Client 1 alone sends: b = 6 * 1 / (1 + 3), not 6."""
    accumulated = np.array([[6, 0, 0], [0, 1, 5]], np.float32)
    got = select(accumulated, np.array([1, 3]), 2)
    np.testing.assert_allclose(got.aggregate, [1.5, 0.0, 3.75])

  def test_all_zero_gradients_go_by_index(self):
    got = select(np.zeros((3, 40), np.float32), np.ones(3), 7)
    np.testing.assert_array_equal(np.flatnonzero(got.mask), np.arange(7))

  def test_one_trace_for_fifty_k(self):
    """In jit, in scan, and under vmap over seeds."""
    sparsifier = sparsifiers.fab_top_k(window=4)
    accumulated = jax.random.normal(jax.random.key(0), (2, 3, 60))
    weights = jnp.full(3, 1 / 3)
    ks = jnp.arange(1, 51)

    def mask(a, k):
      return sparsifier.select(None, a, weights, k, ())[0].mask

    chex.clear_trace_counter()
    jit = jax.jit(chex.assert_max_traces(mask, 1))
    one_by_one = np.stack([jit(accumulated[0], k) for k in ks])
    chex.clear_trace_counter()
    once = chex.assert_max_traces(mask, 1)
    _, scanned = jax.lax.scan(lambda c, k: (c, once(accumulated[0], k)), 0, ks)
    chex.clear_trace_counter()
    seeds = jax.jit(
        jax.vmap(chex.assert_max_traces(mask, 1), in_axes=(0, None))
    )
    both = np.stack([seeds(accumulated, k) for k in ks])
    np.testing.assert_array_equal(one_by_one.sum(1), ks)
    np.testing.assert_array_equal(scanned, one_by_one)
    np.testing.assert_array_equal(both[:, 0], one_by_one)
    np.testing.assert_array_equal(both[:, 1].sum(1), ks)

  def test_several_k_at_once_are_each_alone(self):
    """Law: vmap over k shares work, not results; with seeds around it too."""
    sparsifier = sparsifiers.fab_top_k(window=4)
    accumulated = jax.random.normal(jax.random.key(0), (2, 3, 60))
    weights = jnp.array([0.5, 0.25, 0.25])
    ks = jnp.array([2, 30, 60, 0])
    one = lambda a, k: both(sparsifier, a, weights, k)
    of_ks = jax.vmap(one, (None, 0))
    together = jax.jit(jax.vmap(of_ks, (0, None)))(accumulated, ks)
    alone = jax.jit(one)
    for i, j in itertools.product(range(2), range(4)):
      want = alone(accumulated[i], ks[j])
      got = jax.tree.map(lambda x, i=i, j=j: x[i, j], together)
      chex.assert_trees_all_close(got, want, atol=1e-6)

  def test_state_and_types_stay_as_they_are(self):
    sparsifier = sparsifiers.fab_top_k()
    state = sparsifier.init(2, 5)
    selection, after = jax.eval_shape(
        sparsifier.select,
        jax.random.key(0),
        jnp.zeros((2, 5)),
        jnp.ones(2),
        jnp.int32(3),
        state,
    )
    chex.assert_trees_all_equal_structs(state, after)
    self.assertEqual(selection.aggregate.dtype, jnp.float32)
    self.assertEqual(selection.k_up.dtype, selection.k_down.dtype)

  def test_golden(self):
    """The authors' masks exactly, aggregates to 1e-6 of the largest."""
    cases = golden.load_or_skip(self)
    for case in range(golden.NUM_CASES):
      of = lambda name, case=case: cases[f"{case:03d}/{name}"]
      num_clients, dim = of("grads").shape
      # One shape for all: clients of weight 0 and zeros at the end, which
      # change nothing.
      padding = ((0, 16 - num_clients), (0, 1000 - dim))
      accumulated = np.pad(of("grads"), padding)
      counts = np.pad(of("counts"), padding[0])
      self.assertGreater(np.abs(of("grads")).min(), 0)
      got = select(accumulated, counts, int(of("k")))
      np.testing.assert_array_equal(
          got.mask, np.pad(of("fab_mask"), padding[1])
      )
      np.testing.assert_array_equal(
          got.client_mask, np.pad(of("fab_client_mask"), padding)
      )
      aggregate = np.pad(of("fab_aggregate"), padding[1])
      np.testing.assert_allclose(
          got.aggregate,
          aggregate,
          rtol=0,
          atol=1e-6 * max(1.0, np.abs(aggregate).max()),
      )


class NthLargestTest(absltest.TestCase):

  @hypothesis.settings(max_examples=100, deadline=None)
  @hypothesis.given(
      hnp.arrays(
          np.float32,
          40,
          elements=st.floats(width=32, allow_nan=False)
          | st.sampled_from((0.0, -0.0, 1.0, -1.0)),
      ),
      st.integers(1, 40),
  )
  def test_is_the_entry_of_a_stable_sort(self, x, q):
    order = np.argsort(-np.abs(x.astype(np.float64)), kind="stable")
    keys = topk.magnitude_key(jnp.asarray(x))
    entry = _nth_largest(keys, q)
    self.assertEqual(entry.index, order[q - 1])
    inside = np.asarray(topk.at_or_above(keys, entry))
    np.testing.assert_array_equal(np.flatnonzero(inside), np.sort(order[:q]))

  def test_rank_zero_is_above_all(self):
    keys = topk.magnitude_key(jnp.array([jnp.inf, 1.0, 0.0]))
    entry = _nth_largest(keys, 0)
    self.assertFalse(np.any(topk.at_or_above(keys, entry)))


@jax.jit
def _nth_largest(keys, q):
  return topk.nth_largest(keys, topk.count(keys), q)


class StochasticRoundTest(absltest.TestCase):

  def test_is_unbiased_and_exact_at_large_k(self):
    uniform = jnp.linspace(0, 1, 1000, endpoint=False)
    rounded = topk.stochastic_round(jnp.float32(7.25), uniform)
    self.assertEqual(set(np.unique(rounded)), {7, 8})
    self.assertEqual(int(jnp.sum(rounded)), 7250)
    top = topk.stochastic_round(jnp.float32(444062), jnp.float32(0.9999999))
    self.assertEqual(int(top), 444062)

  def test_a_probe_below_k_stays_below(self):
    for uniform in np.linspace(0, 1, 50, endpoint=False, dtype=np.float32):
      k = topk.stochastic_round(jnp.float32(20.3), uniform)
      probe = topk.stochastic_round(jnp.float32(20.3) - 1, uniform)
      self.assertEqual(int(k) - int(probe), 1)


if __name__ == "__main__":
  absltest.main()
