"""What every method owes, whatever it sends, plain or fast."""

import functools
import itertools
from unittest import mock

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import devices, errors
from agsfl.sparsifiers import methods, per_layer, plain
from tests.sparsifiers import cases

N, DIM = 8, 40
LAYERS = (7, 1, 32)


def _halves(key, accumulated, weights, k, state):
  """Even rounds pick from the first half alone, odd from the second."""
  del key, weights
  half = (jnp.arange(DIM) // (DIM // 2) == state % 2)[None]
  sizes = jnp.where(half, jnp.abs(accumulated), -1)
  ranks = jnp.argsort(jnp.argsort(-sizes, axis=1), axis=1)
  return (ranks < k) & half, state + 1


def _contract():
  """name -> (its name in METHODS, a Sparsifier)."""
  for name, factory in cases.FACTORIES.items():
    method = factory.__name__
    # Of 40 ranks 4 leave most of the work to the search.
    for wing, choices in cases.FAST.items():
      quick = functools.partial(getattr(choices, name), width=4)
      yield f"{wing}_{name}", (method, factory(quick))
    yield f"plain_{name}", (method, factory(getattr(plain, name)))
  for method, entry in methods.METHODS.items():
    if entry.build not in cases.FACTORIES.values():
      yield method, (method, entry.build())
  layered = per_layer(methods.fab_top_k(plain.fab), LAYERS)
  yield "per_layer", ("fab_top_k", layered)
  own = methods.from_masks(_halves, lambda num_clients, dim: jnp.int32(0))
  yield "from_masks", ("fab_top_k", own)


CONTRACT = dict(_contract())
# They send the k largest entries of each client.
TOP_K = tuple(
    name for name in CONTRACT if name.startswith((*cases.FAST, "plain"))
)
# Fast ones are compared with these in full.
NOT_FAST = tuple(
    name for name in CONTRACT if not name.startswith(tuple(cases.FAST))
)
# A mesh and runs side by side take long to compile. Of the choices for
# accelerators, that of FUB differs from the unidirectional one by a sort alone.
# No plain choice knows of devices or lanes, so FAB's stands for all of them.
IN_PARALLEL = tuple(
    name
    for name in CONTRACT
    if name not in (
        "accelerator_fub", "plain_fub", "plain_fub_tree",
        "plain_unidirectional",
    )
)
# Their J has k elements.
EXACTLY_K = (
    *(name for name in TOP_K if "unidirectional" not in name),
    "periodic_k",
    "per_layer",
)


@functools.cache
def run(name):
  return cases.runner(CONTRACT[name][1])


def example(seed=0):
  return np.random.default_rng(seed).normal(size=(N, DIM)).astype(np.float32)


COUNTS = np.arange(1, N + 1)
WEIGHTS = jnp.asarray(COUNTS / COUNTS.sum(), jnp.float32)


class LawsTest(parameterized.TestCase):

  @parameterized.parameters(*CONTRACT)
  @hypothesis.settings(max_examples=40, deadline=None)
  @hypothesis.given(
      case=cases.with_silent_clients(cases.gradients(((N, DIM),)))
  )
  def test_of_any_gradients(self, name, case):
    accumulated, counts, k = case
    got = run(name)(*case)
    # Law: sent + residual == accumulated, bit for bit. Adding 0 turns -0 to
    # 0, the one value whose bits may differ.
    np.testing.assert_array_equal(
        (got.sent + got.residual).view(np.int32),
        (accumulated + np.float32(0)).view(np.int32),
    )
    # Law: an element is sent or stays.
    np.testing.assert_array_equal(got.residual[got.client_mask], 0)
    np.testing.assert_array_equal(got.sent[~got.client_mask], 0)
    # Law: nothing is used that the server does not send back.
    self.assertFalse((got.client_mask & ~got.mask).any())
    # Law: b is the mean by data size of what is sent.
    mean = np.average(got.sent.astype(np.float64), axis=0, weights=counts)
    cases.assert_sums_close(got.aggregate, mean, accumulated)
    # Law: clients without samples are silent.
    np.testing.assert_array_equal(got.contributed, got.client_mask.sum(1))
    np.testing.assert_array_equal(got.contributed[counts == 0], 0)
    # Law: with k = 0 nothing is sent, else at most D each way.
    self.assertLessEqual(got.contributed.max(), got.k_up)
    self.assertBetween(got.k_up, int(k > 0), DIM if k else 0)
    self.assertBetween(got.mask.sum(), int(k > 0), DIM if k else 0)
    if name in EXACTLY_K:
      self.assertEqual(got.mask.sum(), k)
    # Law: zeros of a sparse message are not sent; without indices they are.
    numbers = methods.METHODS[CONTRACT[name][0]].numbers_per_element
    sent_down = got.mask if numbers == 1 else got.aggregate != 0
    self.assertEqual(got.k_down, sent_down.sum())
    # Law: an element costs the numbers that the registry names.
    self.assertEqual(got.volume_up, numbers * got.k_up)
    self.assertEqual(got.volume_down, numbers * got.k_down)

  # A tree merges neighbours, so it sees their order.
  @parameterized.parameters(*(name for name in CONTRACT if "tree" not in name))
  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(
      case=cases.whole_numbers(((N, DIM),)), order=st.permutations(range(N))
  )
  def test_permuting_clients_permutes_the_result(self, name, case, order):
    accumulated, counts, k = case
    one = run(name)(accumulated, counts, k)
    other = run(name)(accumulated[order], counts[order], k)
    np.testing.assert_array_equal(one.mask, other.mask)
    np.testing.assert_array_equal(one.aggregate, other.aggregate)
    np.testing.assert_array_equal(one.client_mask[order], other.client_mask)

  @parameterized.parameters(*NOT_FAST)
  def test_silent_clients_change_nothing(self, name):
    """Law: the same as without them, however large their entries."""
    few = example()[:3]
    many = np.concatenate([few, 100 * example()[3:]])
    got = run(name)(many, np.array([5, 2, 1, 0, 0, 0, 0, 0]), 9)
    want = run(name)(few, np.array([5, 2, 1]), 9)
    np.testing.assert_array_equal(got.mask, want.mask)
    np.testing.assert_allclose(got.aggregate, want.aggregate, atol=1e-7)
    np.testing.assert_array_equal(got.client_mask[:3], want.client_mask)

  # The method from masks picks halves.
  @parameterized.product(
      name=tuple(name for name in CONTRACT if name != "from_masks"),
      k=(DIM, DIM + 5),
  )
  def test_k_equal_to_dim_is_a_dense_step(self, name, k):
    got = run(name)(example(), COUNTS, k)
    self.assertTrue(got.client_mask.all())
    self.assertFalse(got.residual.any())
    self.assertEqual(got.k_up, DIM)
    mean = np.average(example(), axis=0, weights=COUNTS)
    np.testing.assert_allclose(got.aggregate, mean, atol=1e-6)

  @parameterized.parameters(*(name for name in TOP_K if name in NOT_FAST))
  @hypothesis.settings(max_examples=20, deadline=None)
  @hypothesis.given(data=st.data())
  def test_one_client_is_plain_top_k(self, name, data):
    """Law: ties go by index; denormals lie above zeros, but for sums."""
    some = cases.whole_numbers if "fub" in name else cases.gradients
    accumulated, counts, k = data.draw(some(((1, DIM),)))
    got = run(name)(accumulated, counts, k)
    magnitudes = np.abs(accumulated[0].astype(np.float64))
    top = np.argsort(-magnitudes, kind="stable")[:k]
    np.testing.assert_array_equal(np.flatnonzero(got.mask), np.sort(top))


class TransformationsTest(parameterized.TestCase):

  # Those for accelerators are called by the same code as those of a CPU.
  @parameterized.parameters(
      *(name for name in CONTRACT if not name.startswith("accelerator"))
  )
  def test_jit_and_scan_agree_in_one_trace(self, name):
    """Law: k is a number, and the state is of the same types after."""
    sparsifier = CONTRACT[name][1]
    accumulated = jnp.asarray(example())
    ks = jnp.arange(1, DIM + 1, 3)
    key = jax.random.key(1)

    def step(state, k):
      selection, state = sparsifier.select(key, accumulated, WEIGHTS, k, state)
      return state, selection.mask

    start = sparsifier.init(N, DIM)
    chex.clear_trace_counter()
    jit = jax.jit(chex.assert_max_traces(step, 1))
    state, one_by_one = start, []
    for k in ks:
      after, mask = jit(state, k)
      chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
      state = after
      one_by_one.append(mask)
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step, 1)
    _, scanned = jax.lax.scan(once, start, ks)
    np.testing.assert_array_equal(scanned, np.stack(one_by_one))

  @parameterized.parameters(
      *(name for name in IN_PARALLEL if name != "accelerator_fub_tree")
  )
  def test_several_k_at_once_are_each_alone(self, name):
    """Law: vmap over k shares work, not results; with seeds around it too."""
    sparsifier = CONTRACT[name][1]
    accumulated = jnp.stack([example(0), example(1)])
    ks = jnp.array([2, 30, DIM, 0])
    one = lambda a, k: cases.outcome(sparsifier, a, WEIGHTS, k)
    of_ks = jax.vmap(one, (None, 0))
    together = jax.jit(jax.vmap(of_ks, (0, None)))(accumulated, ks)
    alone = jax.jit(one)
    for i, j in itertools.product(range(2), range(4)):
      want = alone(accumulated[i], ks[j])
      got = jax.tree.map(lambda x, i=i, j=j: x[i, j], together)
      chex.assert_trees_all_close(got, want, atol=1e-6)


class DevicesTest(parameterized.TestCase):

  @parameterized.parameters(*IN_PARALLEL)
  def test_devices_change_nothing(self, name):
    """Law: on 2 devices the same as on one, and in lanes on 4."""
    one = functools.partial(cases.outcome, CONTRACT[name][1])
    alone = jax.jit(one)
    # A k among the few that a fast choice sorts, and a deeper one.
    ks = jnp.array([2, 13])
    wants = [jax.device_get(alone(example(), WEIGHTS, k)) for k in ks]
    mesh = devices.client_mesh(2)
    with jax.set_mesh(mesh):
      accumulated, weights = cases.split_over(mesh, example(), WEIGHTS)
      split = jax.jit(one)
      for k, want in zip(ks, wants, strict=True):
        self._check(split(accumulated, weights, k), want)
    # Lanes, each with its own k.
    mesh = devices.client_mesh(4)
    with jax.set_mesh(mesh):
      accumulated, weights = cases.split_over(mesh, example(), WEIGHTS)
      lanes = jax.jit(jax.vmap(one, (0, None, 0)))(
          jnp.stack([accumulated, accumulated]), weights, ks
      )
    for lane, want in enumerate(wants):
      self._check(jax.tree.map(lambda x, lane=lane: x[lane], lanes), want)

  def _check(self, got, want):
    got = jax.device_get(got)
    np.testing.assert_allclose(got.aggregate, want.aggregate, atol=1e-6)
    chex.assert_trees_all_equal(
        got._replace(aggregate=0), want._replace(aggregate=0)
    )


class RegistryTest(absltest.TestCase):

  def test_a_method_of_your_own_has_a_name(self):
    self.enter_context(mock.patch.dict(methods.METHODS._added))

    @methods.register_method("halves", takes_k=False, numbers_per_element=1)
    def halves():
      return CONTRACT["from_masks"][1]

    self.assertEqual(
        methods.METHODS["halves"],
        methods.Method(halves, takes_k=False, numbers_per_element=1),
    )
    self.assertTrue(methods.METHODS.is_added("halves"))
    with self.assertRaisesRegex(errors.ConfigError, "--method=fab_top_k: "):
      methods.register_method("fab_top_k")(halves)
    self.assertIs(methods.METHODS["fab_top_k"].build, methods.fab_top_k)


if __name__ == "__main__":
  absltest.main()
