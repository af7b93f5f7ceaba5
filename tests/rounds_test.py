"""Whole rounds against the NumPy oracle, and the laws of their loops."""

import functools
import itertools
import json
import os
import subprocess
import sys
import traceback
import types
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import controllers, devices, rounds, sparsifiers
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import ClientData
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one
from agsfl.simulation import simulate
from agsfl.sparsifiers import METHODS, cpu
from agsfl.training import models
from agsfl.training.client import LocalTraining
from agsfl.training.optimizers import local, server_of
from agsfl.types import KController, KProposal, Observation
from tests import reference
from tests.linear import (
  BATCH,
  CLASSES,
  COUNTS,
  DIM,
  FEATURES,
  NUM_CLIENTS,
  example,
  linear_model,
  losses_and_gradients,
  one_sample_each,
  weighted,
)

BETA = 10.0
RATE = 0.5
NO_BUDGET = rounds.Budget(jnp.float32(1e30), jnp.float32(1e30))


class Script(KController):
  """A controller that plays pairs (k, k') and keeps what it observed."""

  def __new__(cls, pairs):
    pairs = jnp.asarray(pairs, jnp.float32)
    propose = lambda m: KProposal(*pairs[jnp.minimum(m, len(pairs) - 1)])
    shown = lambda: jnp.zeros(len(Observation._fields))
    return super().__new__(
        cls,
        init=lambda key: (propose(0), (jnp.int32(0), shown())),
        update=lambda key, observed, state: (
            propose(state[0] + 1),
            (state[0] + 1, jnp.stack(observed)),
        ),
        observes=True,
        probes=True,
    )


def narrow_fab():
  """FAB whose windows are so short that small examples need several."""
  return sparsifiers.fab_top_k(functools.partial(cpu.fab, width=4))


def build(controller, sparsifier=None, server=None, model=None, **parts):
  """A round whose other parts are those of the paper, of the linear model."""
  return rounds.build_round(
      model or linear_model(),
      sparsifier or narrow_fab(),
      controller,
      server=server or optax.sgd(RATE),
      batch_size=BATCH,
      comm_time=BETA,
      **parts,
  )


# Built once, so that tests share what is compiled.
@functools.cache
def steady():
  return build(controllers.fixed(6))


@functools.cache
def descent():
  return build(controllers.sign_descent(10, 2, DIM))


def play(simulated, data, num_rounds, seed=0):
  """States and infos of some rounds, NumPy; the first state is round 0's."""
  state = simulated.init(jax.random.key(seed), len(data.counts))
  step = jax.jit(simulated.step)
  states, infos = [jax.device_get(state)], []
  for _ in range(num_rounds):
    state, info = step(data, state)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


@functools.cache
def played_descent():
  return play(descent(), example(), 6)


def nth(tree, index):
  """One row of arrays with a leading axis."""
  return jax.tree.map(lambda x: x[index], tree)


def assert_close(got, want):
  """Law: two ways to one result differ in the last bits of sums alone."""
  chex.assert_trees_all_equal_structs(got, want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


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


LOW, HIGH = 4.0, 20.0
RUN = types.SimpleNamespace(
    num_rounds=50,
    budget=None,
    stuck_rounds=None,
    exp3_arms=5,
    bandit_radius=None,
    bandit_step=None,
    recorded_ks=[9.5, 7.0, 4.25, 18.0],
)
TAKE_K = [name for name, one in METHODS.items() if one.takes_k]
MOVING = [name for name in CONTROLLERS if name != "fixed"]


class EveryPairTest(parameterized.TestCase):
  """Every controller works with every method that takes k.

  A rule sees what rounds cost, a method sees k, and neither the other: so each
  method meets one rule, and each rule one method.
  """

  @parameterized.parameters(
      *((method, "sign_interval") for method in TAKE_K),
      *(("periodic_k", rule) for rule in MOVING if rule != "sign_interval"),
  )
  def test_rounds(self, method, rule):
    controller = CONTROLLERS[rule].build(9.0, LOW, HIGH, RUN)
    simulated = build(controller, METHODS[method].build())
    run = jax.jit(rounds.rounds_in_a_row(simulated.step, 12))
    start = simulated.init(jax.random.key(0), NUM_CLIENTS)
    state, infos, _ = run(example(), start, jnp.int32(12), NO_BUDGET)
    self.assertTrue(infos.finite.all())
    self.assertTrue(((infos.k >= LOW) & (infos.k <= HIGH)).all())
    self.assertGreater(len(np.unique(infos.k)), 1)
    self.assertTrue((jnp.abs(infos.k_up - infos.k) < 1).all())
    each = METHODS[method].numbers_per_element
    compute = 1 + (1 / BATCH if controller.observes else 0)
    volumes = each * (infos.k_up + infos.k_down)
    theta = compute + BETA * volumes / (2 * DIM)
    np.testing.assert_allclose(infos.elapsed, np.cumsum(theta), rtol=1e-5)
    self.assertFalse(np.allclose(state.params, start.params))


@functools.cache
def in_a_row(simulated, length):
  return jax.jit(rounds.rounds_in_a_row(simulated.step, length))


class RoundsInARowTest(parameterized.TestCase):

  def run_in_a_row(self, simulated, data, length, num_rounds, budget=1e30):
    """The state, the infos as a list of the rounds done, and all rows."""
    state, infos, done = in_a_row(simulated, length)(
        data,
        simulated.init(jax.random.key(0), NUM_CLIENTS),
        jnp.int32(num_rounds),
        rounds.Budget(jnp.float32(budget), jnp.float32(1e30)),
    )
    return state, [nth(infos, i) for i in range(int(done))], infos

  @parameterized.parameters(6, 3)
  def test_are_the_steps_one_by_one(self, num_rounds):
    """Law: as many rounds as asked for; the rows after them are zeros."""
    states, want = played_descent()
    state, infos, rows = self.run_in_a_row(descent(), example(), 6, num_rounds)
    assert_close(state, states[num_rounds])
    self.assertLen(infos, num_rounds)
    for one, other in zip(infos, want, strict=False):
      assert_close(one, other)
    rest = jax.tree.map(lambda x: x[num_rounds:], rows)
    self.assertFalse(any(np.any(x) for x in jax.tree.leaves(rest)))

  def test_end_when_the_budget_is_spent(self):
    theta = reference.round_time(6, 6, DIM, BETA)
    state, infos, _ = self.run_in_a_row(
        steady(), example(), 9, 9, budget=2.5 * theta
    )
    self.assertLen(infos, 3)
    self.assertEqual(state.round_index, 3)

  def test_end_with_the_first_round_that_is_not_finite(self):
    """Client 2 holds a sample of NaN among four, and soon draws it."""
    data = example()
    data.order[data.starts[2]] = NUM_CLIENTS
    _, want = play(steady(), data, 9)
    finite = [bool(info.finite) for info in want]
    first = finite.index(False)
    state, infos, _ = self.run_in_a_row(steady(), data, 9, 9)
    self.assertLen(infos, first + 1)
    self.assertEqual([bool(i.finite) for i in infos], finite[: first + 1])
    self.assertTrue(np.isfinite(state.params).all())

  def test_a_resumed_run_is_the_uninterrupted_one(self):
    """Law: bit for bit; all that a round needs lies in its state."""
    states, _ = played_descent()
    state = states[3]
    for _ in range(3):
      state, _ = jax.jit(descent().step)(example(), state)
    chex.assert_trees_all_equal(jax.device_get(state), states[6])


@functools.cache
def numbered(rate=RATE, comm_time=BETA, k=10.0):
  """Two local steps and momentum at the server, so that every number counts."""
  return rounds.build_round(
      linear_model(),
      narrow_fab(),
      controllers.sign_descent(k, 2, DIM),
      server=server_of("momentum", rate),
      training=LocalTraining(2, local("sgd")),
      learning_rate=rate,
      batch_size=BATCH,
      comm_time=comm_time,
  )


# Seed, and what else differs between runs.
RUNS = (
    (0, {}),
    (5, {}),
    (0, {"rate": 0.1}),
    (0, {"comm_time": 1.0}),
    (0, {"k": 17.0}),
)


def starts():
  """The states of `RUNS` before round 1."""
  return [
      numbered(**numbers).init(jax.random.key(seed), NUM_CLIENTS)
      for seed, numbers in RUNS
  ]


class OneProgramTest(parameterized.TestCase):
  """Law: a round compiles once, whatever the numbers in its state are."""

  def test_a_change_of_k_compiles_nothing(self):
    ks = np.random.default_rng(0).uniform(2, DIM, 50)
    simulated = build(Script(np.stack([ks, ks - 1], axis=1)))
    chex.clear_trace_counter()
    step = jax.jit(chex.assert_max_traces(simulated.step, 1))
    state, played = simulated.init(jax.random.key(0), NUM_CLIENTS), set()
    for _ in range(50):
      state, info = step(example(), state)
      played.add(int(info.k_up))
    self.assertGreater(len(played), 15)

  def test_other_numbers_run_through_the_same_step(self):
    """Law: the step of one run gives another run's state its own round."""
    shared = jax.jit(numbered().step)
    ends = []
    for (_, numbers), state in zip(RUNS, starts(), strict=True):
      own, want = jax.jit(numbered(**numbers).step), state
      for _ in range(3):
        state, info = shared(example(), state)
        want, want_info = own(example(), want)
        chex.assert_trees_all_equal((state, info), (want, want_info))
      ends.append(jax.device_get(state))
    self.assertEqual(shared._cache_size(), 1)
    # No number is without effect: each run ends with its own weights or time.
    ends = {(*end.params.tolist(), float(end.elapsed)) for end in ends}
    self.assertLen(ends, len(RUNS))

  @parameterized.parameters((one_by_one, 1), (jax.vmap, 2))
  def test_a_lane_is_the_run_alone(self, way, num_devices):
    """Law: runs side by side are each as if alone, also on two devices."""
    mesh = devices.client_mesh(num_devices)
    data = devices.place_clients(example(), mesh)
    padded = len(data.counts)
    states = [
        numbered(**numbers).init(jax.random.key(seed), padded)
        for seed, numbers in RUNS
    ]
    lanes = jax.tree.map(lambda *x: jnp.stack(x), *states)
    step = jax.jit(way(numbered().step, (None, 0)))
    alone = jax.jit(numbered().step)
    with jax.set_mesh(mesh):
      for _ in range(3):
        lanes, infos = step(data, lanes)
    for lane, state in enumerate(starts()):
      for _ in range(3):
        state, info = alone(example(), state)
      mine, its = nth(jax.device_get((lanes, infos)), lane)
      assert_close(mine.replace(residual=mine.residual[:NUM_CLIENTS]), state)
      self.assertFalse(its.contributed[NUM_CLIENTS:].any())
      its = its._replace(contributed=its.contributed[:NUM_CLIENTS])
      assert_close(its, info)


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


class OptimizerTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("masked", optax.masked(optax.sgd(0.1), {"w": True, "b": False})),
      ("labels", optax.multi_transform({"a": optax.sgd(0.1)}, {"w": "a"})),
      ("line_search", optax.lbfgs()),
      ("function", lambda updates: updates),
  )
  def test_that_needs_more_than_a_vector(self, optimizer):
    """Law: one line says so, before anything runs; for clients too."""
    for name, parts in (
        ("server", {"server": optimizer}),
        ("training", {"training": LocalTraining(2, optimizer)}),
    ):
      with self.assertRaisesRegex(ConfigError, f"^{name}: .*model.sizes") as e:
        build(controllers.fixed(6), **parts)
      self.assertNotIn("\n", str(e.exception))

  def test_masks_as_vectors(self):
    """Law: what the message advises works: the array that is masked stays."""
    model = models.flatten(
        lambda key: {
            "b": jnp.ones(CLASSES), "w": jnp.ones((FEATURES, CLASSES))
        },
        lambda params, x: x @ params["w"] + params["b"][None],
    )
    moves = np.repeat(np.float32([0, 1]), model.sizes)
    server = optax.chain(
        optax.sgd(RATE),
        optax.stateless(lambda updates, params: updates * moves),
    )
    simulated = build(controllers.fixed(DIM), server=server, model=model)
    states, _ = play(simulated, example(), 2)
    changed = states[-1].params != 1
    np.testing.assert_array_equal(changed[:CLASSES], False)
    self.assertTrue(changed[CLASSES:].any())


class MetricsTest(absltest.TestCase):

  def test_reach_the_infos_on_every_path(self):
    """Law: a metric is a function of the state after the round and its info."""
    simulated = build(
        controllers.fixed(6),
        sparsifiers.periodic_k(),
        metrics={
            "norm": lambda state, info: jnp.linalg.norm(state.params),
            "doubled": lambda state, info: 2 * info.k_down,
        },
    )
    data = jax.device_put(example())
    states, infos = play(simulated, data, 4)
    norms = [np.linalg.norm(state.params) for state in states[1:]]
    start = simulated.init(jax.random.key(0), NUM_CLIENTS)
    lanes = jax.tree.map(lambda x: jnp.stack([x, x]), start)

    def lane(start):
      run = rounds.rounds_in_a_row(simulated.step, 4)
      return run(data, start, jnp.int32(4), NO_BUDGET)[1]

    for got in (
        jax.tree.map(lambda *x: np.stack(x), *infos),
        nth(jax.jit(jax.vmap(lane))(lanes), 1),
        nth(jax.jit(one_by_one(lane))(lanes), 1),
    ):
      self.assertEqual(set(got.metrics), {"norm", "doubled"})
      np.testing.assert_allclose(got.metrics["norm"], norms, rtol=1e-5)
      np.testing.assert_array_equal(got.metrics["doubled"], [12] * 4)


MODES = {
    "JAX_ENABLE_X64": "1",
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_DEBUG_NANS": "1",
    "JAX_DEBUG_INFS": "1",
    # Only compiles faster.
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}
IN_MODES = (
    ("fab_top_k", "sign_interval"),
    ("fub_top_k", "value"),
    ("fub_top_k_tree", "replay"),
    ("unidirectional_top_k", "exp3"),
    ("periodic_k", "sign"),
    ("per_layer", "bandit"),
    ("send_all", "fixed"),
)


def in_modes(method, rule):
  """Three rounds of a method and a rule: what was sent, and what came of it."""
  if method == "per_layer":
    sparsifier = sparsifiers.per_layer(sparsifiers.periodic_k(), (16, 8))
  else:
    sparsifier = METHODS[method].build()
  simulated = build(
      CONTROLLERS[rule].build(9.0, LOW, HIGH, RUN),
      sparsifier,
      server_of("momentum", RATE),
      # Its weights are float32 in every mode.
      models.flatten(
          lambda key: jax.random.normal(key, (FEATURES, CLASSES), jnp.float32),
          lambda w, x: x @ w,
      ),
      training=LocalTraining(2, local("momentum")),
      learning_rate=RATE,
  )
  data = jax.device_put(example())
  state = simulated.init(jax.random.key(0), NUM_CLIENTS)
  step, sent, came = jax.jit(simulated.step), [], []
  for _ in range(3):
    with jax.transfer_guard("disallow"):
      state, info = step(data, state)
    sent += [*info.contributed.tolist(), int(info.k_up), int(info.k_down)]
    sent += (state.residual != 0).ravel().tolist()
    came += [*state.params.tolist(), float(info.k), float(info.elapsed)]
  sent += [str(x.dtype) for x in jax.tree.leaves((state, info))]
  return sent, came


def whole_run():
  """The same of a run with Adam, and of its evaluations."""
  config = Config(
      model="mlp", dataset="digits", method="periodic_k", controller="fixed",
      k=50, server_optimizer="adam", num_rounds=2, eval_every=1, num_devices=1,
  )
  with jax.transfer_guard("disallow"):
    run = simulate(config)
  sent = [[row["k_up"], row["k_down"]] for row in run.rows]
  came = [row["train_loss"] for row in run.rows]
  return sent, [*came, float(np.sum(np.abs(run.params)))]


PLAYED = [
    *(functools.partial(in_modes, *names) for names in IN_MODES), whole_run
]


def in_all_modes():
  """Prints what each of `PLAYED` gives, or its error, as JSON."""
  played = []
  for play in PLAYED:
    try:
      played.append(play())
    except Exception as error:
      calls = traceback.extract_tb(error.__traceback__)
      own = [call for call in calls if "agsfl" in Path(call.filename).parts]
      played.append(f"{own[-1].filename}:{own[-1].lineno}: {error}")
  print(json.dumps(played))


class ModesTest(absltest.TestCase):

  def test_strict_types_wide_types_and_debugging(self):
    """Law: JAX's strict modes refuse nothing of a run, and change nothing.

    A round that has its arrays on the devices moves none from or to the host.
    """
    result = subprocess.run(
        [sys.executable, "-c", f"from {__name__} import *; in_all_modes()"],
        capture_output=True,
        check=True,
        text=True,
        env=os.environ | MODES,
    )
    played = json.loads(result.stdout.splitlines()[-1])
    for play, got in zip(PLAYED, played, strict=True):
      with self.subTest(str(play)):
        self.assertNotIsInstance(got, str, got)
        sent, came = play()
        self.assertEqual(got[0], sent)
        np.testing.assert_allclose(got[1], came, rtol=2e-6, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
