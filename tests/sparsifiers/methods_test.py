"""All methods: their oracles, their laws and the contract they share."""

import functools
import itertools

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import devices
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.sparsifiers import per_layer as layerwise
from agsfl.sparsifiers import topk
from tests import golden, reference, reference_methods
from tests.sparsifiers.fab_test import both, cases

SIZES = (7, 1, 32)  # of layers; 40 in all
ORACLES = {
    "fub_top_k": reference_methods.fub_flat,
    "fub_top_k_tree": reference_methods.fub_tree,
    "unidirectional_top_k": reference_methods.unidirectional,
}
SPARSE = ("fab_top_k", *ORACLES)


def build(name, client_chunk=None, axes=()):
  if name == "per_layer":
    one = sparsifiers.unidirectional_top_k(axes, client_chunk)
    return layerwise.per_layer(one, SIZES)
  return sparsifiers.METHODS[name].build(axes, client_chunk)


ALL = (*sparsifiers.METHODS, "per_layer")


@functools.cache
def jitted(name, width=1024):
  # One client after another, or all at once: both ways are used.
  client_chunk = 1 if width > 1 else None
  sparsifier = sparsifiers.METHODS[name].build((), client_chunk, window=width)
  return jax.jit(functools.partial(both, sparsifier))


def select(name, accumulated, counts, k, width=1024):
  weights = jnp.asarray(counts / np.sum(counts), jnp.float32)
  got = jitted(name, width)(jnp.asarray(accumulated), weights, jnp.int32(k))
  return jax.tree.map(np.asarray, got)


@st.composite
def whole_numbers(draw):
  """A case whose sums are exact, so that no two roundings can swap entries.

  Counts are powers of two, and so is their sum: 1024 is halved here and there.
  """
  shapes = ((3, 12), (8, 40))
  accumulated, _, k = draw(cases(shapes))
  accumulated = np.rint(np.clip(accumulated, -1e3, 1e3)).astype(np.float32)
  counts = [1024]
  while len(counts) < len(accumulated):
    at = draw(st.integers(0, len(counts) - 1))
    counts[at : at + 1] = [counts[at] // 2] * 2
  return accumulated, np.array(counts), k


class OracleTest(parameterized.TestCase):

  @parameterized.product(name=tuple(ORACLES), width=(5, 64))
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(case=whole_numbers())
  def test_equals_the_oracle(self, name, width, case):
    accumulated, counts, k = case
    got = select(name, accumulated, counts, k, width)
    want = ORACLES[name](accumulated, counts, k)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.client_mask, want.client_mask)
    np.testing.assert_allclose(got.aggregate, want.aggregate, rtol=1e-6)

  @parameterized.parameters(*ORACLES)
  def test_golden(self, name):
    """The authors' masks exactly, aggregates to 1e-6 of the largest."""
    data = golden.load_or_skip(self)
    theirs = {
        "fub_top_k": "fub_flat",
        "fub_top_k_tree": "fub_tree",
        "unidirectional_top_k": "unidirectional",
    }[name]
    for case in range(golden.NUM_CASES):
      of = lambda item, case=case: data[f"{case:03d}/{item}"]
      num_clients, dim = of("grads").shape
      # One shape for all: clients of weight 0 and zeros at the end.
      padding = ((0, 16 - num_clients), (0, 1000 - dim))
      accumulated = np.pad(of("grads"), padding)
      counts = np.pad(of("counts"), padding[0])
      got = select(name, accumulated, counts, int(of("k")))
      np.testing.assert_array_equal(
          got.client_mask, np.pad(of(f"{theirs}_client_mask"), padding)
      )
      aggregate = np.pad(of(f"{theirs}_aggregate"), padding[1])
      np.testing.assert_allclose(
          got.aggregate,
          aggregate,
          rtol=0,
          atol=1e-6 * max(1.0, np.abs(aggregate).max()),
      )
      np.testing.assert_array_equal(
          got.aggregate != 0, np.pad(of(f"{theirs}_mask"), padding[1])
      )
      want = ORACLES[name](of("grads"), of("counts"), int(of("k")))
      np.testing.assert_array_equal(
          want.client_mask, of(f"{theirs}_client_mask")
      )

  def test_a_merge_drops_what_the_sum_would_keep(self):
    """k = 1, four clients: 0 and 1 merge to {0}, 2 and 3 to {2}.

    The clients send 3@0, 2@1, 2@1 and 3.5@2. The flat sum has 4@1, the largest.
    In the tree 0 and 1 keep 3@0, 2 and 3 keep 3.5@2, and of these the root
    keeps 3.5@2; all else goes back.
    """
    accumulated = np.float32([[3, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 3.5]])
    ones = np.ones(4)
    flat = select("fub_top_k", accumulated, ones, 1)
    np.testing.assert_array_equal(flat.mask, [False, True, False])
    tree = select("fub_top_k_tree", accumulated, ones, 1)
    np.testing.assert_array_equal(tree.mask, [False, False, True])
    np.testing.assert_array_equal(tree.residual[:3], accumulated[:3])
    np.testing.assert_array_equal(tree.residual[3], 0)

  @parameterized.parameters("fub_top_k", "fub_top_k_tree")
  def test_sums_go_by_data_size(self, name):
    """Client 1's 3 weighs 7/8, more than client 0's 8 that weighs 1/8."""
    accumulated = np.zeros((2, 12), np.float32)
    accumulated[0, 0], accumulated[1, 1] = 8, 3
    got = select(name, accumulated, np.array([1, 7]), 1, 64)
    np.testing.assert_array_equal(np.flatnonzero(got.mask), [1])

  def test_fub_starves_a_quiet_client(self):
    """The field's point: FUB takes nothing of client 1, FAB half."""
    accumulated = np.float32([[9, 8, 7, 6, 0, 0], [0, 0, 0, 0, 2, 1]])
    fub = select("fub_top_k", accumulated, np.ones(2), 2)
    fab = select("fab_top_k", accumulated, np.ones(2), 2)
    np.testing.assert_array_equal(fub.client_mask.sum(1), [2, 0])
    np.testing.assert_array_equal(fab.client_mask.sum(1), [1, 1])


class PeriodicTest(absltest.TestCase):

  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
      st.lists(st.integers(1, 40), min_size=8, max_size=8),
      st.integers(0, 2**32 - 1),
  )
  def test_every_index_once_per_period(self, ks, seed):
    sparsifier = sparsifiers.periodic_k()
    accumulated, weights = jnp.ones((2, 40)), jnp.full(2, 0.5)
    state, seen = sparsifier.init(2, 40), np.zeros(40, int)
    for m, k in enumerate(ks):
      key = jax.random.fold_in(jax.random.key(seed), m)
      selection, state = _periodic(key, accumulated, weights, k, state)
      # Law: exactly k different ones, past the period's end too.
      self.assertEqual(selection.k_up, k)
      self.assertEqual(selection.k_down, k)
      self.assertEqual(selection.volume_up, k)
      seen += np.asarray(selection.mask)
      # Law: within a period no index twice; at its end each once more.
      self.assertLessEqual(seen.max() - seen.min(), 1)
      np.testing.assert_array_equal(state.left, seen == seen.min())

  def test_every_index_is_as_likely(self):
    """Law: k / D in every round; over 2,000 runs of four, to 6 deviations."""
    ks = jnp.array([3, 6, 3, 2])  # of 10: the second period is begun by two

    def run(key):
      def one(state, key_and_k):
        key, k = key_and_k
        selection, state = sparsifiers.periodic_k().select(
            key, jnp.ones((1, 10)), jnp.ones(1), k, state
        )
        return state, selection.mask

      state = sparsifiers.periodic_k().init(1, 10)
      return jax.lax.scan(one, state, (jax.random.split(key, 4), ks))[1]

    keys = jax.random.split(jax.random.key(0), 2000)
    masks = jax.jit(lambda keys: jax.lax.map(run, keys))(keys)
    share = np.mean(masks, 0)  # [4, 10]
    np.testing.assert_allclose(
        share, np.repeat(ks[:, None] / 10, 10, axis=1), atol=6 * 0.5 / 2000**0.5
    )

  def test_periods_differ_and_trials_share_one(self):
    sparsifier = sparsifiers.periodic_k()
    accumulated, weights = jnp.ones((2, 40)), jnp.full(2, 0.5)
    state = sparsifier.init(2, 40)
    ks = jnp.array([20, 7])
    of_ks = jax.vmap(sparsifier.select, (None, None, None, 0, None))
    tried, _ = jax.jit(of_ks)(
        jax.random.key(0), accumulated, weights, ks, state
    )
    # Law: the smaller k's coordinates are among the larger one's.
    self.assertFalse(np.any(tried.mask[1] & ~tried.mask[0]))
    other, _ = _periodic(jax.random.key(1), accumulated, weights, 20, state)
    self.assertTrue(np.any(other.mask != tried.mask[0]))


_periodic = jax.jit(sparsifiers.periodic_k().select)


class PerLayerTest(absltest.TestCase):

  @hypothesis.settings(max_examples=60, deadline=None)
  @hypothesis.given(st.integers(0, 40), st.integers(0, 2**32 - 1))
  def test_is_the_method_on_each_layer(self, k, seed):
    """Its share of one u for all layers: floor(k c / D + u), u = v / D."""
    rng = np.random.default_rng(seed)
    accumulated = rng.normal(size=(3, 40)).astype(np.float32)
    counts = np.array([2, 1, 5])
    weights = jnp.asarray(counts / 8, jnp.float32)
    split, mask = jax.device_get(
        _by_layer(
            jax.random.key(seed),
            jnp.asarray(accumulated),
            weights,
            jnp.int32(k),
        )
    )
    ends = np.cumsum((0, *SIZES))
    got = [mask[start:end].sum() for start, end in itertools.pairwise(ends)]
    allowed = [np.diff((k * ends + v) // 40).tolist() for v in range(40)]
    self.assertIn(got, allowed)
    for share, (start, end) in zip(got, itertools.pairwise(ends), strict=True):
      want = reference.fab(accumulated[:, start:end], counts, share)
      np.testing.assert_array_equal(mask[start:end], want.mask)
      np.testing.assert_array_equal(
          split.residual[:, start:end], want.residual
      )

  def test_every_layer_has_its_turns(self):
    """Law: k D_l / D elements on average, k in all, 0 to D_l; at fixed k."""
    sizes = 20, 1, 0, 300, 7, 72  # 400
    keys = jax.random.split(jax.random.key(0), 2000)
    for k in (0, 1, 50, 399, 400):
      got = np.asarray(_shares(keys, jnp.int32(k), sizes))  # [4000, 6]
      np.testing.assert_array_equal(got.sum(1), k)
      self.assertTrue(np.all((got >= 0) & (got <= sizes)))
      exact = k * np.array(sizes) / 400
      # Law: a whole number next to the mean.
      np.testing.assert_array_less(np.abs(got - exact), 1)
      np.testing.assert_allclose(got.mean(0), exact, atol=6 * 0.5 / 2000**0.5)

  def test_shares_are_exact_for_large_models(self):
    """Where k D needs 48 bits: all of D, and shares that Python agrees with."""
    rng = np.random.default_rng(0)
    for whole in (5, 444_062, 10**8, 2**30 - 1):
      for part in (*rng.integers(0, whole, 2).tolist(), whole):
        share = lambda k, v, part=part, whole=whole: layerwise.share(
            k, part, whole, v
        )
        k, v = rng.integers(0, whole, (2, 50))
        # The ends too: all of it, with the least and the largest offset.
        k, v = np.append(k, [whole, whole]), np.append(v, [0, whole - 1])
        got = jax.jit(jax.vmap(share))(np.int32(k), np.uint32(v))
        want = (k.astype(object) * part + v) // whole
        np.testing.assert_array_equal(got, want)


@functools.partial(jax.jit, static_argnums=2)
def _shares(keys, k, sizes):
  of_key = lambda key: jnp.stack(layerwise.shares(key, k, sizes))
  return jax.vmap(of_key)(keys)


@jax.jit
def _by_layer(key, accumulated, weights, k):
  sparsifier = layerwise.per_layer(sparsifiers.fab_top_k(), SIZES)
  state = sparsifier.init(3, 40)
  selection, _ = sparsifier.select(key, accumulated, weights, k, state)
  return jax.vmap(sparsifier.split, (0, None, 0))(
      accumulated, selection.mask, selection.clients
  ), selection.mask


class ContractTest(parameterized.TestCase):
  """What every method owes, whatever it sends."""

  @parameterized.parameters(*ALL)
  def test_nothing_is_lost(self, name):
    """Law: sent + residual == accumulated; b is the mean of what is sent."""
    sparsifier = build(name)
    weights = jnp.array([0.5, 0.25, 0.25])
    accumulated = jax.random.normal(jax.random.key(0), (3, 40))
    for k in (0, 1, 13, 40):
      state = sparsifier.init(3, 40)
      selection, _ = jax.jit(sparsifier.select)(
          jax.random.key(1), accumulated, weights, jnp.int32(k), state
      )
      split = jax.vmap(sparsifier.split, (0, None, 0))(
          accumulated, selection.mask, selection.clients
      )
      selection, split = jax.device_get((selection, split))
      np.testing.assert_array_equal(split.sent + split.residual, accumulated)
      np.testing.assert_allclose(
          selection.aggregate, weights @ split.sent, atol=1e-6
      )
      np.testing.assert_array_equal(selection.contributed, split.mask.sum(1))
      np.testing.assert_array_equal(selection.mask.sum(), selection.k_down)
      self.assertFalse((split.mask & ~selection.mask).any())
      if k == 0:
        self.assertFalse(np.any(selection.mask))
        self.assertEqual(selection.volume_up + selection.volume_down, 0)

  @parameterized.parameters(*ALL)
  def test_clients_without_weight_send_nothing(self, name):
    sparsifier = build(name)
    accumulated = jax.random.normal(jax.random.key(0), (3, 40))

    @jax.jit
    def select(accumulated, weights):
      state = sparsifier.init(len(weights), 40)
      k = jnp.int32(9)
      key = jax.random.key(1)
      return sparsifier.select(key, accumulated, weights, k, state)[0]

    got = select(accumulated, jnp.array([0.75, 0.25, 0.0]))
    want = select(accumulated[:2], jnp.array([0.75, 0.25]))
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_allclose(got.aggregate, want.aggregate, atol=1e-7)
    np.testing.assert_array_equal(
        got.contributed, np.append(want.contributed, 0)
    )

  @parameterized.parameters(*SPARSE)
  def test_a_sparse_element_is_two_numbers(self, name):
    accumulated = jax.random.normal(jax.random.key(0), (2, 40))
    selection, _ = jax.jit(build(name).select)(
        jax.random.key(0), accumulated, jnp.full(2, 0.5), jnp.int32(5), ()
    )
    self.assertEqual(selection.k_up, 5)
    self.assertEqual(selection.volume_up, 10)
    self.assertEqual(selection.volume_down, 2 * selection.mask.sum())

  @parameterized.parameters("periodic_k", "send_all")
  def test_known_indices_cost_nothing(self, name):
    """Law: at k = D a round costs beta once, not twice."""
    sparsifier = build(name)
    selection, _ = sparsifier.select(
        jax.random.key(0),
        jnp.ones((2, 40)),
        jnp.full(2, 0.5),
        jnp.int32(40),
        sparsifier.init(2, 40),
    )
    self.assertEqual(selection.volume_up + selection.volume_down, 80)
    np.testing.assert_allclose(selection.aggregate, 1)

  @parameterized.parameters(*ALL)
  def test_jit_scan_and_vmap_agree_in_one_trace(self, name):
    sparsifier = build(name, 1)
    accumulated = jax.random.normal(jax.random.key(0), (2, 3, 40))
    weights = jnp.full(3, 1 / 3)
    ks = jnp.arange(1, 41, 3)
    key = jax.random.key(1)

    def step(accumulated, state, k):
      selection, state = sparsifier.select(key, accumulated, weights, k, state)
      return state, selection.mask

    start = sparsifier.init(3, 40)
    chex.clear_trace_counter()
    jit = jax.jit(chex.assert_max_traces(step, 1))
    state, one_by_one = start, []
    for k in ks:
      after, mask = jit(accumulated[0], state, k)
      chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
      state = after
      one_by_one.append(mask)
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step, 1)
    _, scanned = jax.lax.scan(
        lambda state, k: once(accumulated[0], state, k), start, ks
    )
    np.testing.assert_array_equal(scanned, np.stack(one_by_one))
    _, seeds = jax.jit(jax.vmap(step, (0, None, None)))(
        accumulated, start, ks[2]
    )
    for lane in range(2):
      want = jit(accumulated[lane], start, ks[2])[1]
      np.testing.assert_array_equal(seeds[lane], want)


class DevicesTest(parameterized.TestCase):

  @parameterized.parameters(*ALL)
  def test_devices_change_nothing(self, name):
    """Law: split over devices, the same J, sums and contributions."""
    accumulated = jax.random.normal(jax.random.key(0), (8, 40))
    weights = jnp.arange(1.0, 9.0) / 36

    def select(sparsifier, accumulated, weights):
      chosen, _ = sparsifier.select(
          jax.random.key(1),
          accumulated,
          weights,
          jnp.int32(13),
          sparsifier.init(8, 40),
      )
      one = jax.vmap(sparsifier.split, (0, None, 0))
      residual = one(accumulated, chosen.mask, chosen.clients).residual
      return chosen.mask, chosen.aggregate, chosen.contributed, residual

    plain = jax.jit(functools.partial(select, build(name)))
    want = plain(accumulated, weights)
    whole, split = devices.REPLICATED, devices.PER_CLIENT
    over_devices = jax.shard_map(
        functools.partial(select, build(name, 1, (devices.AXIS,))),
        mesh=devices.client_mesh(4),
        in_specs=(split, split),
        out_specs=(whole, whole, split, split),
        check_vma=False,
    )
    got = jax.jit(over_devices)(accumulated, weights)
    np.testing.assert_array_equal(got[0], want[0])
    np.testing.assert_allclose(got[1], want[1], atol=1e-7)
    np.testing.assert_array_equal(got[2], want[2])
    np.testing.assert_array_equal(got[3], want[3])


class TopTest(parameterized.TestCase):

  @parameterized.product(dim=(64, 1000, 3001), width=(1, 7, 30))
  def test_is_top_k(self, dim, width):
    """Law: as lax.top_k, ties and all, where blocks are cut off too."""
    rng = np.random.default_rng(dim + width)
    for values in (
        rng.normal(size=dim),
        rng.integers(0, 3, dim),
        np.zeros(dim),
        np.where(rng.random(dim) < 0.01, rng.normal(size=dim), -1),
    ):
      values = jnp.asarray(values, jnp.float32)
      np.testing.assert_array_equal(
          topk.top(values, width), jax.lax.top_k(values, width)[1]
      )


  def test_denormals_among_zeros(self):
    """Law: order is by bits, though floats on CPU flush denormals to 0."""
    values = np.zeros(8192, np.float32)
    values[5000], values[7000] = 1e-41, 3e-41
    got = jax.jit(topk.top, static_argnums=1)(values, 64)
    np.testing.assert_array_equal(got[:3], [7000, 5000, 0])


class ManyZerosTest(parameterized.TestCase):
  """Vectors so long that zeros share bins."""

  @parameterized.parameters(1, 900, 1100, 2500, 5000)
  def test_nth_largest(self, q):
    rng = np.random.default_rng(q)
    x = np.where(rng.random(5000) < 0.2, rng.normal(size=5000), 0)
    x[::7] *= 1e-42  # denormals lie above zeros
    x = x.astype(np.float32)
    keys = topk.magnitude_key(jnp.asarray(x))
    order = np.argsort(-np.abs(x.astype(np.float64)), kind="stable")
    entry = topk.nth_largest(keys, topk.count(keys), jnp.int32(q))
    self.assertEqual(entry.index, order[q - 1])

  @parameterized.parameters(30, 400, 1200, 2900)
  def test_fab(self, k):
    rng = np.random.default_rng(k)
    accumulated = rng.normal(size=(3, 3000)) ** 3
    accumulated[rng.random((3, 3000)) < 0.7] = 0
    accumulated = accumulated.astype(np.float32)
    counts = np.array([1, 2, 3])
    got = select("fab_top_k", accumulated, counts, k, 16)
    want = reference.fab(accumulated, counts, k)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_array_equal(got.client_mask, want.client_mask)


if __name__ == "__main__":
  absltest.main()
