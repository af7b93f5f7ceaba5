"""Whole rounds against the NumPy oracle, on every path they can take."""

import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import devices, programs, rounds
from agsfl.config import CONTROLLERS
from agsfl.controllers import bandits
from agsfl.controllers import descent as controllers
from agsfl.data.federated import ClientData
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.sparsifiers.methods import METHODS
from agsfl.training import models
from agsfl.training.client import as_float, build_client
from agsfl.types import KController, KProposal
from tests import reference

NUM_CLIENTS, FEATURES, CLASSES = 5, 8, 3
DIM = FEATURES * CLASSES
BATCH = 4
BETA = 10.0
RATE = 0.5


def linear_model():
  """Logits are x @ w; no bias, so that the oracle is two lines."""
  return models.flatten(
      lambda key: jax.random.normal(key, (FEATURES, CLASSES)),
      lambda w, images: images.reshape(len(images), -1) @ w,
  )


def one_sample_each(seed=0, num_clients=NUM_CLIENTS):
  """Clients that hold one sample, so that every draw gives the same batch.

  `counts` still differ in the reference: see `weighted`.
  """
  rng = np.random.default_rng(seed)
  images = rng.normal(size=(num_clients, 1, FEATURES)).astype(np.float32)
  labels = rng.integers(0, CLASSES, (num_clients, 1)).astype(np.int32)
  return images, labels


def weighted(images, labels, counts):
  """Client i holds its sample counts[i] times; the last is nobody's, NaN."""
  nobody = np.full((1, *images.shape[2:]), np.nan, np.float32)
  return ClientData.of(
      np.concatenate([images[:, 0], nobody]),
      np.append(labels[:, 0], 0),
      [np.full(count, client) for client, count in enumerate(counts)],
  )


COUNTS = (3, 1, 4, 1, 5)


def example():
  return weighted(*one_sample_each(), COUNTS)


def losses_and_gradients(w, images, labels):
  """Softmax regression, by hand: gradient x (p - onehot(y))."""
  w = np.asarray(w, np.float64).reshape(FEATURES, CLASSES)
  losses, gradients = [], []
  for x, y in zip(images[:, 0].astype(np.float64), labels[:, 0], strict=True):
    logits = x @ w
    p = np.exp(logits - logits.max())
    p /= p.sum()
    losses.append(-np.log(p[y]))
    p[y] -= 1
    gradients.append(np.outer(x, p).ravel())
  return np.array(losses), np.array(gradients)


class Script(KController):
  """A controller that plays pairs (k, k') and keeps what it observed."""

  def __new__(cls, pairs):
    pairs = jnp.asarray(pairs, jnp.float32)
    propose = lambda m: KProposal(*pairs[jnp.minimum(m, len(pairs) - 1)])
    shown = lambda: jnp.zeros(7)
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


def build(controller, client_chunk=None, axes=()):
  return rounds.build_round(
      linear_model(),
      sparsifiers.fab_top_k(axes, client_chunk, window=4),
      controller,
      server=optax.sgd(RATE),
      batch_size=BATCH,
      comm_time=BETA,
      client_chunk=client_chunk,
      axes=axes,
  )


# Built once, so that tests share what is compiled.
@functools.cache
def steady():
  return build(controllers.fixed(6))


@functools.cache
def descent():
  return build(controllers.sign_descent(10, 2, DIM))


def play(simulated, data, num_rounds, seed=0):
  """States and infos of some rounds, NumPy."""
  key = jax.random.key(seed)
  state = simulated.init(key, len(data.counts))
  step = jax.jit(simulated.step)
  states, infos = [jax.device_get(state)], []
  for _ in range(num_rounds):
    state, info = step(key, data, state)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


class OracleTest(parameterized.TestCase):

  def test_rounds_with_a_scripted_k(self):
    """Weights, residuals, times and losses of 24 rounds, each k once."""
    ks = np.random.default_rng(1).permutation(np.arange(1, DIM + 1))
    pairs = [(k, max(1, k // 2)) for k in ks]
    images, labels = one_sample_each()
    states, infos = play(build(Script(pairs)), example(), len(ks))
    counts = np.array(COUNTS)
    params = states[0].params.astype(np.float64)
    residual = np.zeros((NUM_CLIENTS, DIM), np.float32)
    elapsed = 0.0
    mean = lambda losses: np.average(losses, weights=counts)
    for before, after, info, (k, k_probe) in zip(
        states, states[1:], infos, pairs, strict=False
    ):
      losses, gradients = losses_and_gradients(params, images, labels)
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
      loss_of = lambda w: mean(losses_and_gradients(w, images, labels)[0])
      observed = after.controller[1]
      want = [
          k,
          k_probe,
          theta,
          theta_probe,
          loss_of(before.params),
          loss_of(params),
          loss_of(probed),
      ]
      np.testing.assert_allclose(observed, want, rtol=1e-4, atol=1e-5)
      np.testing.assert_allclose(info.elapsed, elapsed, rtol=1e-5)
      np.testing.assert_allclose(info.minibatch_loss, mean(losses), rtol=1e-4)
      self.assertEqual((info.k_up, info.k_down), (k, k))
      self.assertEqual(info.contributed.sum(), (after.residual == 0).sum())
      sign = reference.estimate(
          theta, theta_probe, *want[4:], float(k), float(k_probe)
      )
      if sign[3] and abs(sign[1]) > 1e-3 and k != k_probe:
        self.assertEqual(info.sign, sign[2])

  def test_sign_descent_moves_k_by_the_signs_it_reports(self):
    k_min, k_max = 2.0, float(DIM)
    for make, oracle in (
        (controllers.sign_descent, reference.SignDescent),
        (controllers.sign_interval, reference.SignInterval),
    ):
      _, infos = play(build(make(10.0, k_min, k_max)), example(), 30)
      want = oracle(10.0, k_min, k_max)
      signs = set()
      for info in infos:
        np.testing.assert_allclose(info.k, want.k, rtol=1e-5)
        np.testing.assert_allclose(info.k_probe, want.probe(), rtol=1e-4)
        self.assertIn(info.k_up, (np.floor(info.k), np.ceil(info.k)))
        valid = not np.isnan(info.sign)
        signs.add(int(info.sign) if valid else None)
        want.update(int(info.sign) if valid else 0, valid)
      self.assertGreater(len(signs), 1, "the run must not be one-sided")

  def test_without_a_probe_a_round_computes_one_unit(self):
    _, infos = play(steady(), example(), 2)
    theta = reference.round_time(6, 6, DIM, BETA)
    np.testing.assert_allclose(infos[1].elapsed, 2 * theta, rtol=1e-6)
    self.assertTrue(np.isnan(infos[0].sign))


  def test_short_rounds_late_in_a_run(self):
    """From 2^27, where floats are 16 apart, 16 rounds of 6 are 96, not 0."""
    key = jax.random.key(0)
    state = steady().init(key, NUM_CLIENTS)
    state = state.replace(elapsed=jnp.float32(2**27))
    step = jax.jit(steady().step)
    for _ in range(16):
      state, info = step(key, example(), state)
    self.assertEqual(info.elapsed, 2**27 + 96)


class PathsTest(parameterized.TestCase):
  """Law: chunks, devices and calls change the cost, not the result."""

  def assert_same(self, states, infos, others, other_infos):
    last, other = states[-1], others[-1]
    np.testing.assert_allclose(other.params, last.params, atol=1e-5)
    np.testing.assert_allclose(
        other.residual[:NUM_CLIENTS], last.residual, atol=1e-5
    )
    for info, other in zip(infos, other_infos, strict=True):
      np.testing.assert_allclose(
          other.minibatch_loss, info.minibatch_loss, rtol=1e-4
      )
      np.testing.assert_array_equal(
          other.contributed[:NUM_CLIENTS], info.contributed
      )
      np.testing.assert_allclose(other.k, info.k, rtol=1e-5)

  @functools.cached_property
  def plain(self):
    return play(descent(), example(), 6)

  @parameterized.parameters(1, 2, 99)
  def test_client_chunk(self, client_chunk):
    controller = controllers.sign_descent(10, 2, DIM)
    self.assert_same(
        *self.plain, *play(build(controller, client_chunk), example(), 6)
    )

  @parameterized.parameters((1, 6), (2, 1), (8, 3))
  def test_devices_and_rounds_per_call(self, num_devices, length):
    """Eight devices share five clients: three rows are padding, inert."""
    mesh = devices.client_mesh(num_devices)
    controller = controllers.sign_descent(10, 2, DIM)
    simulated = build(controller, axes=(devices.AXIS,))
    split = devices.split_round(simulated, length, mesh, jax.random.key(0))
    clients = devices.split_clients(example(), mesh)
    num_rows = len(clients.counts)
    self.assertEqual(num_rows, -(-NUM_CLIENTS // num_devices) * num_devices)
    key = jax.random.key(0)
    state = split.init(key, num_rows)
    placed = jax.tree.map(lambda x: len(x.sharding.device_set), state)
    self.assertEqual(placed.residual, num_devices)
    infos = []
    for _ in range(6 // length):
      state, rows, done = split.chunk(
          key, clients, state, jnp.int32(length), jnp.float32(jnp.inf)
      )
      self.assertEqual(done, length)
      rows = jax.device_get(rows)
      infos += [type(rows)(*(x[i] for x in rows)) for i in range(length)]
    self.assert_same(*self.plain, [jax.device_get(state)], infos)
    for info in infos:
      self.assertFalse(info.contributed[NUM_CLIENTS:].any())

  def test_a_call_ends_when_the_budget_is_spent(self):
    simulated = steady()
    key, data = jax.random.key(0), example()
    state = simulated.init(key, NUM_CLIENTS)
    theta = reference.round_time(6, 6, DIM, BETA)
    chunk = jax.jit(programs.build_chunk(simulated.step, 9))
    after, infos, done = chunk(
        key, data, state, jnp.int32(9), jnp.float32(2.5 * theta)
    )
    self.assertEqual(done, 3)
    self.assertEqual(after.round_index, 3)
    np.testing.assert_array_equal(infos.round_index[:4], [1, 2, 3, 0])

  def test_a_resumed_run_is_the_uninterrupted_one(self):
    states, _ = self.plain
    state = states[3]
    for _ in range(3):
      state, _ = jax.jit(descent().step)(jax.random.key(0), example(), state)
    chex.assert_trees_all_equal(jax.device_get(state), states[6])


def lane(setting, axes=(devices.AXIS,)):
  return rounds.build_round(
      linear_model(),
      sparsifiers.fab_top_k(axes, window=4),
      controllers.sign_descent(10, 2, DIM),
      server=optax.sgd(setting["learning_rate"]),
      batch_size=BATCH,
      comm_time=setting["comm_time"],
      client_chunk=None,
      axes=axes,
  )


@jax.jit
def step_alone(key, setting, data, state):
  return lane(setting, axes=()).step(key, data, state)


class SweepTest(parameterized.TestCase):

  @parameterized.parameters((None, 1), (1, 2))
  def test_a_lane_is_its_own_run(self, lane_chunk, num_devices):
    """Law: three lanes differ in seed, rate and beta, each as if alone."""
    keys = jax.vmap(jax.random.key)(jnp.array([0, 0, 5]))
    settings = {
        "learning_rate": jnp.array([0.5, 0.1, 0.5]),
        "comm_time": jnp.array([10.0, 10.0, 1.0]),
    }
    mesh = devices.client_mesh(num_devices)
    sweep = devices.split_sweep(
        programs.build_sweep(lane, lane_chunk), keys, settings, mesh
    )
    clients = devices.split_clients(example(), mesh)
    states = sweep.init(keys, settings, len(clients.counts))
    for _ in range(4):
      states, infos = sweep.step(keys, settings, clients, states)
    for i in range(3):
      setting = {name: x[i] for name, x in settings.items()}
      state = lane(setting, axes=()).init(keys[i], NUM_CLIENTS)
      for _ in range(4):
        state, info = step_alone(keys[i], setting, example(), state)
      np.testing.assert_allclose(
          states.params[i], state.params, rtol=1e-4, atol=1e-5
      )
      np.testing.assert_allclose(infos.elapsed[i], info.elapsed, rtol=1e-5)
      np.testing.assert_array_equal(
          infos.contributed[i, :NUM_CLIENTS], info.contributed
      )


class TracesTest(absltest.TestCase):
  """Law: the whole round compiles once, whatever k does."""

  def setUp(self):
    super().setUp()
    ks = np.random.default_rng(0).uniform(2, DIM, 50)
    self.simulated = build(Script(np.stack([ks, ks - 1], axis=1)))
    self.data = jax.device_put(example())
    chex.clear_trace_counter()
    self.step = chex.assert_max_traces(self.simulated.step, 1)

  def init(self, key):
    return self.simulated.init(key, NUM_CLIENTS)

  def test_in_jit_scan_and_vmap_over_seeds(self):
    keys = jax.random.split(jax.random.key(0), 2)
    step = jax.jit(self.step)
    state, ks = self.init(keys[0]), []
    for _ in range(50):
      state, info = step(keys[0], self.data, state)
      ks.append(int(info.k_up))
    self.assertGreater(len(set(ks)), 15)

    chex.clear_trace_counter()
    once = chex.assert_max_traces(self.simulated.step, 1)

    def body(state, _):
      return once(keys[0], self.data, state)

    scanned, infos = jax.jit(
        lambda state: jax.lax.scan(body, state, None, length=50)
    )(self.init(keys[0]))
    np.testing.assert_array_equal(infos.k_up, ks)
    np.testing.assert_allclose(scanned.params, state.params, atol=1e-5)

    chex.clear_trace_counter()
    once = chex.assert_max_traces(self.simulated.step, 1)
    seeds = jax.jit(jax.vmap(once, in_axes=(0, None, 0)))
    both = jax.vmap(self.init)(keys)
    for _ in range(50):
      both, info = seeds(keys, self.data, both)
    np.testing.assert_allclose(both.params[0], state.params, atol=1e-5)
    self.assertFalse(np.allclose(both.params[0], both.params[1]))


LOW, HIGH = 4.0, 20.0
MOVING = {
    "sign": controllers.sign_descent(9.0, LOW, HIGH),
    "sign_interval": controllers.sign_interval(9.0, LOW, HIGH),
    "value": controllers.value_descent(9.0, LOW, HIGH),
    "exp3": bandits.exp3(LOW, HIGH, 50, num_arms=5),
    "bandit": bandits.bandit(9.0, LOW, HIGH, 50),
    "replay": controllers.replay([9.5, 7.0, 4.25, 18.0]),
}


TAKE_K = [name for name, one in METHODS.items() if one.takes_k]


class EveryPairTest(parameterized.TestCase):
  """Every controller works with every method that takes k.

  A rule sees what rounds cost, a method sees k, and neither the other: so each
  method meets a rule that tries k' and one that does not, and each rule one
  method.
  """

  def test_no_controller_is_left_out(self):
    self.assertEqual({"fixed", *MOVING}, set(CONTROLLERS))

  @parameterized.parameters(
      *itertools.product(TAKE_K, ("sign_interval", "exp3")),
      *itertools.product(["periodic_k"], sorted(MOVING)),
  )
  def test_rounds(self, method, rule):
    controller = MOVING[rule]
    simulated = rounds.build_round(
        linear_model(),
        METHODS[method].build((), None),
        controller,
        server=optax.sgd(RATE),
        batch_size=BATCH,
        comm_time=BETA,
        client_chunk=None,
    )
    key = jax.random.key(0)
    chunk = jax.jit(programs.build_chunk(simulated.step, 12))
    start = simulated.init(key, NUM_CLIENTS)
    state, infos, _ = chunk(
        key, example(), start, jnp.int32(12), jnp.float32(jnp.inf)
    )
    self.assertTrue(infos.finite.all())
    self.assertTrue(((infos.k >= LOW) & (infos.k <= HIGH)).all())
    self.assertGreater(len(np.unique(infos.k)), 1)
    self.assertTrue((jnp.abs(infos.k_up - infos.k) < 1).all())
    each = 1 if method == "periodic_k" else 2
    compute = 1 + (1 / BATCH if controller.observes else 0)
    volumes = each * (infos.k_up + infos.k_down)
    theta = compute + BETA * volumes / (2 * DIM)
    np.testing.assert_allclose(infos.elapsed, np.cumsum(theta), rtol=1e-5)
    self.assertFalse(np.allclose(state.params, start.params))


class DrawsTest(absltest.TestCase):
  """Two clients hold the same 500 samples, so only draws tell them apart."""

  def play(self, controller, sparsifier, num_rounds):
    """Rounds in which the weights stay as they were."""
    rng = np.random.default_rng(0)
    data = ClientData.of(
        rng.normal(size=(500, FEATURES)).astype(np.float32),
        rng.integers(0, CLASSES, 500),
        [np.arange(500)] * 2,
    )
    still = rounds.build_round(
        linear_model(),
        sparsifier,
        controller,
        server=optax.sgd(0.0),
        batch_size=BATCH,
        comm_time=BETA,
        client_chunk=None,
    )
    return play(still, data, num_rounds)

  def test_clients_and_rounds_draw_anew(self):
    """Law: a draw comes from the round, and then from the client."""
    controller, sparsifier = controllers.fixed(1), sparsifiers.periodic_k()
    states, infos = self.play(controller, sparsifier, 4)
    one, two = states[1].residual
    self.assertGreater(np.count_nonzero(one != two), DIM // 2)
    self.assertLen({float(info.minibatch_loss) for info in infos}, 4)
    lefts = [state.sparsifier.left for state in states]
    sent = [np.flatnonzero(a & ~b) for a, b in itertools.pairwise(lefts)]
    self.assertLen(np.unique(sent), 4)

  def test_a_trial_of_k_leaves_the_method_alone(self):
    """Law: with a probe, the sparsifier's state is that of the k used."""
    periodic = sparsifiers.periodic_k()
    probed, _ = self.play(Script([(6.0, 2.0)]), periodic, 3)
    plain, _ = self.play(controllers.fixed(6), periodic, 3)
    for one, other in zip(probed, plain, strict=True):
      chex.assert_trees_all_equal(one.sparsifier, other.sparsifier)
      np.testing.assert_array_equal(one.residual, other.residual)
    self.assertEqual(probed[-1].sparsifier.left.sum(), DIM - 3 * 6)


class FiniteTest(absltest.TestCase):

  def test_nan_is_caught_before_selection(self):
    data = example()
    data.images[2, 3] = np.nan
    states, infos = play(descent(), data, 1)
    self.assertFalse(infos[0].finite)
    self.assertEqual(infos[0].k_down, 0)
    self.assertFalse(infos[0].contributed.any())
    np.testing.assert_array_equal(states[1].params, states[0].params)

  def test_what_is_nobodys_is_never_drawn(self):
    """`example` has a sample of NaN, and its clients differ in size."""
    _, infos = play(steady(), example(), 20)
    self.assertTrue(all(info.finite for info in infos))


class ClientTest(absltest.TestCase):

  def test_draws_are_uniform_over_the_clients_own_samples(self):
    """Samples 0..4 are the client's; each comes about every fifth time."""
    model = models.flatten(
        lambda key: jnp.zeros(1), lambda w, x: x * jnp.array([[0.0, 1.0]])
    )
    client = jax.jit(build_client(model, 500))
    # The client's five begin at the second place.
    data = ClientData.of(
        np.arange(8, dtype=np.float32)[:, None],
        np.zeros(8, int),
        [[7, 6], [4, 2, 0, 3, 1], [5]],
    )
    own = data.starts[1], data.counts[1]
    drawn = []
    for seed in range(20):
      local = client(jax.random.key(seed), jnp.zeros(1), data, *own)
      drawn.append(float(local.image[0]))
    self.assertTrue(set(drawn) <= set(range(5)))
    self.assertGreater(len(set(drawn)), 2)
    # Mean loss log(1 + e^x) over 10,000 draws of x = 0..4.
    losses = [
        client(jax.random.key(s), jnp.zeros(1), data, *own).loss
        for s in range(20)
    ]
    want = np.mean(np.log1p(np.exp(np.arange(5.0))))
    np.testing.assert_allclose(np.mean(losses), want, rtol=0.03)

  def test_a_sample_has_its_own_label(self):
    """Sample j shows j and is of class j, also the h of the estimate."""
    model = models.flatten(
        lambda key: jnp.zeros(1),
        lambda w, x: 99.0 * jnp.eye(8)[x[:, 0].astype(int)],
    )
    client = jax.jit(build_client(model, 5))
    own = np.arange(8)
    data = ClientData.of(own.astype(np.float32)[:, None], own, [own])
    for seed in range(8):
      local = client(jax.random.key(seed), jnp.zeros(1), data, 0, 8)
      self.assertEqual(local.image[0], local.label)
      np.testing.assert_allclose(local.loss, 0, atol=1e-6)

  def test_bytes_are_scaled_to_one(self):
    images = np.array([0, 51, 255], np.uint8)
    np.testing.assert_allclose(as_float(images), [0, 0.2, 1])
    np.testing.assert_array_equal(as_float(np.float32([3.5])), [3.5])


if __name__ == "__main__":
  absltest.main()
