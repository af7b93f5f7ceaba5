"""What every controller promises, over the registry."""

import doctest
import inspect
import types
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import controllers
from agsfl.controllers import CONTROLLERS, by_name
from agsfl.errors import ConfigError
from tests.controllers.playing import (
    BROKEN,
    STAYED,
    crafted,
    observe,
    rollout,
)

RUN = dict(
    num_rounds=100,
    budget=300.0,
    stuck_rounds=2,
    exp3_arms=7,
    bandit_radius=None,
    bandit_step=None,
    recorded_ks=[40.0, 12.5, 90.0],
)
SIGNS = (0, 1, STAYED, -1, BROKEN, 1, 1, -1, 0, 1, STAYED, STAYED, -1)


def built(name, k=60.0, k_min=10.0, k_max=110.0, **changes):
  """A rule of the registry for a run with these settings."""
  settings = types.SimpleNamespace(**(RUN | changes))
  return CONTROLLERS[name].build(k, k_min, k_max, settings)


# Rules by name; and one with a single arm, whose gamma is 0.
NAMES = tuple(CONTROLLERS)
ALL = (
    *((name, built(name)) for name in NAMES),
    ("exp3_one_arm", controllers.exp3(40, 40, 100)),
)


def path(controller, seed=2):
  """(KProposal, state) for round 1, and after each round of `SIGNS`."""
  run = lambda key: rollout(controller, crafted, jnp.int32(SIGNS), key)
  return jax.jit(run)(jax.random.key(seed))


def same(a, b):
  """Whether two trees are equal, bit for bit."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(
      x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs
  )


class ContractTest(parameterized.TestCase):

  @parameterized.named_parameters(*ALL)
  def test_form(self, controller):
    names = lambda f: list(inspect.signature(f).parameters)
    self.assertEqual(names(controller.init), ["key"])
    self.assertEqual(names(controller.update), ["key", "observed", "state"])
    self.assertIsInstance(controller.observes, bool)
    self.assertIsInstance(controller.probes, bool)
    self.assertIsInstance(controller.measures_lag, bool)
    # Law: whatever tries k' looks at what it gave.
    self.assertGreaterEqual(controller.observes, controller.probes)
    proposal, _ = controller.init(jax.random.key(0))
    for k in proposal:
      self.assertEqual((k.shape, k.dtype), ((), jnp.float32))
    # Law: k' < k where the round needs it, else k' = k.
    self.assertEqual(proposal.k_probe < proposal.k, controller.probes)
    self.assertLessEqual(proposal.k_probe, proposal.k)

  @parameterized.named_parameters(*ALL)
  def test_jit_scan_and_vmap_agree(self, controller):
    """Law: a seed's rounds are the same alone, in a scan and in a batch."""
    play = lambda key: rollout(controller, crafted, jnp.int32(SIGNS), key)
    keys = jax.random.split(jax.random.key(2), 3)
    both = jax.jit(jax.vmap(play))(keys)
    for seed, key in enumerate(keys):
      alone = jax.jit(play)(key)
      mine = jax.tree.map(lambda x, seed=seed: x[seed], both)
      chex.assert_trees_all_equal_shapes_and_dtypes(alone, mine)
      chex.assert_trees_all_close(alone, mine, rtol=1e-6, atol=1e-7)

  @parameterized.named_parameters(*ALL)
  def test_one_trace_for_fifty_k(self, controller):
    """In jit, and under vmap over seeds; types stay as they are."""

    def fifty(wrap, keys, lift):
      chex.clear_trace_counter()
      update = jax.jit(wrap(chex.assert_max_traces(controller.update, 1)))
      first = jax.jit(wrap(controller.init))(keys)
      after = first
      for k in range(10, 60):
        observed = None
        if controller.needs_observation:
          observed = observe(jnp.float32(k), jnp.float32(k - 1), k % 5 - 1)
        after = update(keys, jax.tree.map(lift, observed), after[1])
      chex.assert_trees_all_equal_shapes_and_dtypes(first, after)

    key = jax.random.key(3)
    fifty(lambda f: f, key, jnp.asarray)
    fifty(jax.vmap, jax.random.split(key, 4), lambda x: jnp.full(4, x))

  @parameterized.parameters(*NAMES)
  def test_one_update_for_all_k(self, name):
    """Law: runs that differ in k share a compiled update."""
    mine = built(name, k=60.0)
    other = built(name, k=35.5, recorded_ks=[11.0, 80.0, 33.25])
    shared, own = jax.jit(mine.update), jax.jit(other.update)
    _, first = mine.init(jax.random.key(0))
    proposal, state = other.init(jax.random.key(0))
    played = []
    for m, sign in enumerate(SIGNS):
      key = jax.random.key(m)
      observed = (
          crafted(proposal, sign) if mine.needs_observation else None
      )
      shared(key, observed, first)  # Compiled for its own k.
      got, want = (f(key, observed, state) for f in (shared, own))
      self.assertTrue(same(got, want))
      proposal, state = want
      played.append(float(proposal.k))
    self.assertEqual(shared._cache_size(), 1)
    if name == "replay":
      self.assertEqual(played[:3], [80.0, 33.25, 33.25])
    if name == "fixed":
      self.assertEqual(set(played), {35.5})

  @parameterized.named_parameters(*ALL)
  def test_makes_no_nan_and_no_infinity(self, controller):
    """Law: with JAX_DEBUG_NANS and JAX_DEBUG_INFS all rounds pass.

    Operation by operation too, unless the round itself shows a NaN.
    """
    proposal, _ = controller.init(jax.random.key(0))
    seen = [crafted(proposal, sign) for sign in SIGNS]
    # k' may be k once both are rounded, and time may be nothing.
    seen.append(seen[0]._replace(k_probe=proposal.k))
    seen.append(seen[0]._replace(time=jnp.float32(0.0)))
    with jax.debug_nans(True), jax.debug_infs(True):
      for wrap in (jax.jit, lambda f: f):
        _, state = wrap(controller.init)(jax.random.key(0))
        update = wrap(controller.update)
        for m, observed in enumerate(seen):
          if wrap is jax.jit or np.all(np.isfinite(observed)):
            shown = observed if controller.needs_observation else None
            _, state = update(jax.random.key(m), shown, state)

  @parameterized.named_parameters(*ALL)
  def test_wider_types_change_nothing(self, controller):
    """Law: the same with 64-bit types allowed, and strict promotion."""
    want = path(controller)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      self.assertTrue(same(path(controller), want))

  @parameterized.parameters(*NAMES)
  def test_what_the_registry_says(self, name):
    """Law: `learns` and `uses_...` say what the play depends on."""
    rule, plain = CONTROLLERS[name], path(built(name))
    self.assertEqual(
        rule.learns, not same(path(built(name, k_min=30.0)), plain)
    )
    self.assertEqual(
        rule.uses_horizon, not same(path(built(name, num_rounds=7)), plain)
    )
    self.assertEqual(
        rule.uses_budget, not same(path(built(name, budget=120.0)), plain)
    )


class RegisterTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(CONTROLLERS._added))

  def test_example(self):
    failed, attempted = doctest.testmod(by_name)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)
    self.assertEqual(CONTROLLERS["halving"][1:], (True, False, False))

  def test_a_rule_can_be_replaced(self):
    """Law: a name stands for the rule that came last."""
    register = controllers.register_controller("mine")
    for times in (2.0, 3.0):
      build = register(
          lambda k, *_, times=times: controllers.fixed(k * times)
      )
      self.assertIs(CONTROLLERS["mine"].build, build)
      proposal, _ = built("mine", k=4.0).init(jax.random.key(0))
      self.assertEqual(proposal.k, 4.0 * times)

  def test_refuses_names_of_the_package(self):
    for name in ("fixed", "two words", ""):
      with self.assertRaisesRegex(ConfigError, "^--controller="):
        controllers.register_controller(name)(lambda *_: None)
    self.assertEqual(tuple(CONTROLLERS), NAMES)


if __name__ == "__main__":
  absltest.main()
