"""Whole rounds, as users compile them, against the NumPy oracle."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import controllers, rounds, sparsifiers
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import ClientData
from agsfl.sparsifiers import METHODS
from agsfl.training import models
from tests import reference
from tests.linear import (
  BATCH,
  CLASSES,
  COUNTS,
  DIM,
  FEATURES,
  NUM_CLIENTS,
  example,
  losses_and_gradients,
  one_sample_each,
  weighted,
)
from tests.small_rounds import (
  BETA,
  RATE,
  RUN,
  Script,
  assert_close,
  build,
  descent,
  play,
  steady,
)


class OracleTest(parameterized.TestCase):

  def test_rounds_with_a_scripted_k(self):
    """Weights, residuals, times and losses of 24 rounds, each k once."""
    ks = np.random.default_rng(1).permutation(np.arange(1, DIM + 1))
    pairs = [(k, max(1, k // 2)) for k in ks]
    features, labels = one_sample_each()
    states, infos = play(build(Script(pairs)), example(), len(ks))
    counts = np.array(COUNTS)
    params = states[0].params.astype(np.float64)
    residual = np.zeros((NUM_CLIENTS, DIM), np.float32)
    elapsed = 0.0
    mean = lambda losses: np.average(losses, weights=counts)
    signs = set()
    for before, after, info, (k, k_probe) in zip(
        states, states[1:], infos, pairs, strict=False
    ):
      losses, gradients = losses_and_gradients(params, features, labels)
      # The oracle's sums are float64; round them as the package does.
      gradients = gradients.astype(np.float32)
      probed, _ = reference.gs_round(
          gradients, residual, counts, params, k_probe, RATE
      )
      params, residual = reference.gs_round(
          gradients, residual, counts, params, k, RATE
      )
      np.testing.assert_allclose(after.params, params, atol=1e-5)
      np.testing.assert_allclose(after.residual, residual, atol=1e-5)
      # Follow the package's rounding, lest two nearly equal magnitudes swap.
      params, residual = after.params.astype(np.float64), after.residual
      theta = reference.round_time(k, k, DIM, BETA, 1 + 1 / BATCH)
      theta_probe = reference.round_time(
          k_probe, k_probe, DIM, BETA, 1 + 1 / BATCH
      )
      elapsed += theta
      loss_of = lambda w: mean(losses_and_gradients(w, features, labels)[0])
      seen = [loss_of(w) for w in (before.params, params, probed)]
      falls = [seen[0] - loss for loss in seen[1:]]
      silent = 1 + 1 / BATCH
      want = [
          k, k_probe, theta, theta_probe, seen[0], *falls, silent, elapsed,
          np.nan,
      ]
      observed = after.controller[1]
      np.testing.assert_allclose(observed, want, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(info.elapsed, elapsed, rtol=1e-5)
      np.testing.assert_allclose(info.minibatch_loss, mean(losses), rtol=1e-4)
      self.assertEqual((info.k_up, info.k_down), (k, k))
      self.assertEqual((info.volume_up, info.volume_down), (2 * k, 2 * k))
      self.assertEqual(info.contributed.sum(), (after.residual == 0).sum())
      _, slope, sign, valid = reference.estimate(
          theta, theta_probe, *seen, float(k), float(k_probe)
      )
      if not valid or abs(slope) > 1e-3:
        self.assertEqual((info.has_sign, info.sign), (valid, sign))
        signs.add((valid, sign))
    self.assertGreater(len(signs), 2, "the script must not be one-sided")

  def test_sign_descent_moves_k_by_the_signs_it_reports(self):
    k_min, k_max = 2.0, float(DIM)
    for make, oracle in (
        (controllers.sign_descent, reference.SignDescent),
        (controllers.sign_interval, reference.SignInterval),
    ):
      periodic = build(make(10.0, k_min, k_max), sparsifiers.periodic_k())
      _, infos = play(periodic, example(), 30)
      want = oracle(10.0, k_min, k_max)
      signs = set()
      for info in infos:
        np.testing.assert_allclose(info.k, want.k, rtol=1e-5)
        np.testing.assert_allclose(info.k_probe, want.probe(), rtol=1e-4)
        self.assertIn(info.k_up, (np.floor(info.k), np.ceil(info.k)))
        signs.add((bool(info.has_sign), int(info.sign)))
        want.update(int(info.sign), bool(info.has_sign))
      self.assertGreater(len(signs), 1, "the run must not be one-sided")

  def test_without_a_probe_a_round_computes_one_unit(self):
    _, infos = play(steady(), example(), 2)
    theta = reference.round_time(6, 6, DIM, BETA)
    np.testing.assert_allclose(infos[1].elapsed, 2 * theta, rtol=1e-6)
    self.assertFalse(infos[1].has_sign)

  def test_short_rounds_late_in_a_run(self):
    """From 2^27, where floats are 16 apart, 16 rounds of 6 are 96, not 0."""
    state = steady().init(jax.random.key(0), NUM_CLIENTS)
    state = state.replace(elapsed=jnp.float32(2**27))
    step = jax.jit(steady().step)
    for _ in range(16):
      state, info = step(example(), state)
    self.assertEqual(info.elapsed, 2**27 + 96)

  def test_clients_without_samples_take_no_part(self):
    """Law: a round without them gives the others the same."""
    features, labels = one_sample_each()
    some = [0, 2, 3]
    counts = [3, 0, 4, 7, 0]
    states, infos = play(descent(), weighted(features, labels, counts), 4)
    others = weighted(features[some], labels[some], [3, 4, 7])
    want, want_infos = play(descent(), others, 4)
    for state, info, w, i in zip(
        states, [None, *infos], want, [None, *want_infos], strict=True
    ):
      assert_close(state.replace(residual=state.residual[some]), w)
      self.assertFalse(state.residual[[1, 4]].any())
      if info is not None:
        self.assertFalse(info.contributed[[1, 4]].any())
        assert_close(info._replace(contributed=info.contributed[some]), i)


class StochasticRoundTest(absltest.TestCase):

  def test_is_unbiased_and_exact_at_large_k(self):
    uniform = jnp.linspace(0, 1, 1000, endpoint=False)
    rounded = rounds.stochastic_round(jnp.float32(7.25), uniform)
    self.assertEqual(set(np.unique(rounded)), {7, 8})
    self.assertEqual(int(jnp.sum(rounded)), 7250)
    top = rounds.stochastic_round(jnp.float32(444062), jnp.float32(0.9999999))
    self.assertEqual(int(top), 444062)

  def test_a_probe_below_k_stays_below(self):
    for uniform in np.linspace(0, 1, 50, endpoint=False, dtype=np.float32):
      k = rounds.stochastic_round(jnp.float32(20.3), uniform)
      probe = rounds.stochastic_round(jnp.float32(20.3) - 1, uniform)
      self.assertEqual(int(k) - int(probe), 1)


class FiniteTest(absltest.TestCase):

  def test_nan_is_caught_before_selection(self):
    data = example()
    data.features[2, 3] = np.nan
    states, infos = play(descent(), data, 1)
    self.assertFalse(infos[0].finite)
    self.assertEqual((infos[0].k_up, infos[0].k_down), (0, 0))
    self.assertFalse(infos[0].contributed.any())
    np.testing.assert_array_equal(states[1].params, states[0].params)

  def test_samples_of_no_client_are_never_drawn(self):
    """`example` has a sample of NaN, and its clients differ in size."""
    _, infos = play(steady(), example(), 20)
    self.assertTrue(all(info.finite for info in infos))


@functools.cache
def played_still(pairs, num_clients=2):
  """Three rounds of periodic-k in which the weights stay as they were.

  All clients hold the same 500 samples, so only draws tell them apart.
  """
  rng = np.random.default_rng(0)
  data = ClientData.of(
      rng.normal(size=(500, FEATURES)).astype(np.float32),
      rng.integers(0, CLASSES, 500).astype(np.int32),
      [np.arange(500)] * num_clients,
  )
  still = build(Script(pairs), sparsifiers.periodic_k(), optax.sgd(0.0))
  return play(still, data, 3)


class DrawsTest(absltest.TestCase):

  def test_clients_and_rounds_draw_anew(self):
    """Law: a draw comes from the round, and then from the client."""
    states, infos = played_still(((6.0, 6.0),))
    one, two = states[1].residual
    self.assertGreater(np.count_nonzero(one != two), DIM // 2)
    self.assertLen({float(info.minibatch_loss) for info in infos}, 3)
    lefts = [state.sparsifier.left for state in states]
    sent = [np.flatnonzero(a & ~b) for a, b in itertools.pairwise(lefts)]
    self.assertLen(np.unique(sent), 3 * 6)

  def test_other_clients_change_no_draw(self):
    """Law: the first two clients of five draw what they draw alone."""
    few, _ = played_still(((6.0, 6.0),))
    more, _ = played_still(((6.0, 6.0),), num_clients=5)
    for one, other in zip(few, more, strict=True):
      np.testing.assert_array_equal(one.residual, other.residual[:2])

  def test_a_trial_of_k_leaves_the_method_alone(self):
    """Law: with a probe, the sparsifier's state is that of the k used."""
    probed, _ = played_still(((6.0, 2.0),))
    plain, _ = played_still(((6.0, 6.0),))
    for one, other in zip(probed, plain, strict=True):
      chex.assert_trees_all_equal(one.sparsifier, other.sparsifier)
      np.testing.assert_array_equal(one.residual, other.residual)


class MemoryTest(parameterized.TestCase):

  @parameterized.parameters(
      ("fab_top_k", "sign"),
      ("fab_top_k", "balance"),
      ("periodic_k", "sign"),
      ("send_all", "fixed"),
  )
  def test_residuals_change_in_place(self, method, rule):
    """Law: beside its state a round needs less than another [N, D]."""
    num_clients, dim = 200, 40_000
    data = ClientData.of(
        np.ones((num_clients, dim // 4), np.float32),
        np.zeros(num_clients, np.int32),
        np.arange(num_clients)[:, None],
    )
    simulated = build(
        CONTROLLERS[rule].build(1000.0, 500.0, float(dim), RUN),
        METHODS[method].build(),
        model=models.flatten(
            lambda key: jnp.zeros((dim // 4, 4)), lambda w, x: x @ w
        ),
    )
    state = jax.eval_shape(
        lambda: simulated.init(jax.random.key(0), num_clients)
    )
    step = jax.jit(simulated.step, donate_argnums=1)
    memory = step.lower(data, state).compile().memory_analysis()
    self.assertLess(memory.temp_size_in_bytes, 4 * num_clients * dim)


class FallTest(absltest.TestCase):

  def test_small_falls_of_large_losses(self):
    """Law: the mean fall is right to 1%, though the losses are near 1000.

    A float32 there has steps of 6e-5, and a sum over five clients a few.
    """
    features, labels = one_sample_each()

    def loss(logits, labels):
      # Whole numbers by sample, so that each difference is exact.
      return 1000.0 + 1024.0 * labels + jnp.round(logits[:, 0] * 2**14) / 2**14

    simulated = build(
        Script(((DIM, DIM - 1),)), server=optax.sgd(1e-3), loss=loss
    )
    states, _ = play(simulated, example(), 1)
    logits = [
        features.astype(np.float64) @ state.params.reshape(FEATURES, CLASSES)
        for state in states
    ]
    fall = np.average(
        (logits[0] - logits[1])[:, 0], weights=np.array(COUNTS)
    )
    del labels
    np.testing.assert_allclose(states[1].controller[1][5], fall, rtol=0.01)


if __name__ == "__main__":
  absltest.main()
