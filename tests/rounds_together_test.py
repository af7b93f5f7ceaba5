"""How rounds are run changes nothing of them, and any parts go together."""

import functools
import json
import os
import subprocess
import sys
import traceback
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
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one
from agsfl.simulation import simulate
from agsfl.sparsifiers import METHODS
from agsfl.training import models
from agsfl.training.client import LocalTraining
from agsfl.training.optimizers import local, server_of
from tests import reference
from tests.linear import (
  BATCH,
  CLASSES,
  DIM,
  FEATURES,
  NUM_CLIENTS,
  example,
  linear_model,
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

NO_BUDGET = rounds.Budget(jnp.float32(1e30), jnp.float32(1e30))


@functools.cache
def played_descent():
  return play(descent(), example(), 6)


def nth(tree, index):
  """One row of arrays with a leading axis."""
  return jax.tree.map(lambda x: x[index], tree)


LOW, HIGH = 4.0, 20.0
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
      sparsifiers.periodic_k(),
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
# Each method, and each kind of rule: each rule alone is tested in the modes by
# tests/controllers/contract_test.py. Periodic-k is in `per_layer`.
IN_MODES = (
    ("fab_top_k", "sign_interval"),
    ("fub_top_k", "fixed"),
    ("fub_top_k_tree", "replay"),
    ("unidirectional_top_k", "exp3"),
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
      # As FedAvg; with the other methods it would only compile for longer.
      training=LocalTraining(2, local("momentum"))
      if method == "send_all" else None,
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
  for run in PLAYED:
    try:
      played.append(run())
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
    for run, got in zip(PLAYED, played, strict=True):
      with self.subTest(str(run)):
        self.assertNotIsInstance(got, str, got)
        sent, came = run()
        self.assertEqual(got[0], sent)
        np.testing.assert_allclose(got[1], came, rtol=2e-6, atol=1e-6)


if __name__ == "__main__":
  absltest.main()
