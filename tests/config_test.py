"""What settings are refused, and that the message says what is allowed."""

import dataclasses
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import parts
from agsfl.config import Config, ConfigError
from agsfl.controllers import bandits
from agsfl.controllers import descent as controllers
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.sparsifiers import per_layer as layerwise
from agsfl.types import Model, Observation

# Field, a value out of range, what is allowed.
OUT_OF_RANGE = (
    ("dataset", "cifar", ("mnist_5k", "npz:PATH")),
    ("dataset", "", ("mnist_5k", "npz:PATH")),
    ("dataset", "set.npz", ("mnist_5k", "npz:PATH")),
    ("partition", "skewed", ("one_class", "iid", "natural", "dirichlet")),
    ("model", "resnet", ("cnn", "mlp")),
    ("method", "top", ("fab_top_k",)),
    ("controller", "sign_", ("fixed", "sign", "sign_interval")),
    ("local_optimizer", "adagrad", ("sgd", "momentum", "adam")),
    ("server_optimizer", "", ("sgd", "momentum", "adam")),
    ("server_learning_rate", 0.0, ("above 0",)),
    ("local_steps", 0, ("at least 1",)),
    ("local_steps", 2**20 + 1, ("at most 2^20",)),
    ("stuck_rounds", 0, ("at least 1",)),
    ("stuck_rounds", 2**31, ("at most 2^31 - 1",)),
    ("exp3_arms", 0, ("at least 1",)),
    ("bandit_radius", 1.5, ("at most 1",)),
    ("bandit_radius", 0.0, ("above 0",)),
    ("bandit_step", -1.0, ("above 0",)),
    ("num_clients", 0, ("at least 1",)),
    ("min_samples", -1, ("at least 0",)),
    ("shards_per_client", 0, ("at least 1",)),
    ("dirichlet_alpha", 1e-4, ("from 0.001", "1e6")),
    ("power", -0.5, ("from 0 to 10",)),
    ("num_clients", -1, ("at least 1",)),
    ("k", 0.0, ("at least 1",)),
    ("k", 0.99, ("at least 1",)),
    ("k", -5.0, ("at least 1",)),
    ("k_min", 1.9, ("at least 2",)),
    ("k_min", 0.0, ("at least 2",)),
    ("k_max", 1.9, ("at least 2",)),
    ("k_max", 0.0, ("at least 2",)),
    ("comm_time", -0.1, ("at least 0",)),
    ("learning_rate", 0.0, ("above 0",)),
    ("learning_rate", -0.1, ("above 0",)),
    ("batch_size", 0, ("at least 1",)),
    ("batch_size", -1, ("at least 1",)),
    ("num_rounds", 0, ("at least 1",)),
    ("num_rounds", -1, ("at least 1",)),
    ("time_budget", 0.0, ("above 0",)),
    ("time_budget", -1.0, ("above 0",)),
    ("eval_every", 0, ("at least 1",)),
    ("eval_every", -1, ("at least 1",)),
    ("client_chunk", 0, ("at least 1",)),
    ("client_chunk", -1, ("at least 1",)),
    ("rounds_per_call", 0, ("at least 1",)),
    ("rounds_per_call", -1, ("at least 1",)),
    ("num_devices", 0, ("at least 1",)),
    ("num_devices", -1, ("at least 1",)),
    ("seed", -1, ("at least 0",)),
)
# The ends of the ranges, which are allowed.
IN_RANGE = (
    ("dataset", "npz:set.npz"),
    ("partition", "natural"),
    ("model", "mlp"),
    ("controller", "fixed"),
    ("controller", None),
    ("method", "fedavg"),
    ("local_steps", 1),
    ("server_optimizer", "adam"),
    ("stuck_rounds", 1),
    ("stuck_rounds", 2**31 - 1),
    ("exp3_arms", 1),
    ("num_clients", 1),
    ("num_clients", None),
    ("k", 1.0),
    ("k_min", 2.0),
    ("k_min", None),
    ("k_max", 2.0),
    ("k_max", None),
    ("comm_time", 0.0),
    ("learning_rate", 1e-9),
    ("batch_size", 1),
    ("num_rounds", 1),
    ("time_budget", 1e-9),
    ("time_budget", None),
    ("eval_every", 1),
    ("client_chunk", 1),
    ("client_chunk", None),
    ("rounds_per_call", 1),
    ("rounds_per_call", None),
    ("num_devices", 1),
    ("num_devices", None),
    ("seed", 0),
)
FLOATS = (
    "k", "k_min", "k_max", "comm_time", "learning_rate",
    "server_learning_rate", "bandit_radius", "bandit_step", "time_budget",
    "dirichlet_alpha", "power",
)
# Field, a value of another type as it is told, what is allowed.
OTHER_TYPES = (
    ("num_rounds", 2.5, "2.5", "a whole number"),
    ("batch_size", 8.0, "8.0", "a whole number"),
    ("num_clients", True, "True", "a whole number"),
    ("seed", None, "None", "a whole number"),
    ("learning_rate", None, "None", "a number"),
    ("k", "9", "'9'", "a number"),
    ("k_min", False, "False", "a number"),
    ("standardize", "false", "'false'", "True or False"),
    ("per_layer", 1, "1", "True or False"),
    ("model", None, "None", "text"),
    ("replay", 3, "3", "text"),
)
# Field, a value that stands for one of the field's type, that one.
CONVERTED = (
    ("num_rounds", np.int64(9), 9),
    ("num_clients", np.uint8(9), 9),
    ("learning_rate", np.float32(0.5), 0.5),
    ("k", 9, 9.0),
    ("time_budget", np.int32(9), 9.0),
    ("standardize", np.True_, True),
    ("model", np.str_("mlp"), "mlp"),
)
# Field, settings that do not go together, what is allowed.
COMBINATIONS = (
    ("controller", dict(method="send_all", controller="sign"), "fixed"),
    ("controller", dict(method="fedavg", controller="exp3"), "fixed"),
    ("controller", dict(method="fedavg", controller="replay"), "fixed"),
    ("per_layer", dict(method="send_all", per_layer=True), "false"),
    ("per_layer", dict(method="fedavg", per_layer=True), "false"),
    ("replay", dict(controller="replay"), "a run's folder"),
    ("replay", dict(controller="sign", replay="runs/a"), "unset"),
)


class FieldTest(parameterized.TestCase):

  @parameterized.parameters(*OUT_OF_RANGE)
  def test_out_of_range(self, field, value, allowed):
    """One line: the flag, the value, what is allowed."""
    with self.assertRaises(ConfigError) as caught:
      Config(**{field: value})
    problem = str(caught.exception)
    self.assertLen(problem.splitlines(), 1)
    self.assertStartsWith(problem, f"--{field}={value}: must be ")
    for word in allowed:
      self.assertIn(word, problem)

  @parameterized.parameters(*IN_RANGE)
  def test_in_range(self, field, value):
    self.assertEqual(getattr(Config(**{field: value}), field), value)

  @parameterized.parameters(*OTHER_TYPES)
  def test_other_types(self, field, value, told, allowed):
    with self.assertRaises(ConfigError) as caught:
      Config(**{field: value})
    self.assertEqual(
        str(caught.exception), f"--{field}={told}: must be {allowed}"
    )

  @parameterized.parameters(*CONVERTED)
  def test_converted(self, field, value, want):
    """To what JSON and a command line know."""
    held = getattr(Config(**{field: value}), field)
    self.assertIs(type(held), type(want))
    self.assertEqual(held, want)

  @parameterized.parameters(*COMBINATIONS)
  def test_what_does_not_go_together(self, field, settings, allowed):
    with self.assertRaises(ConfigError) as caught:
      Config(**settings)
    problem = str(caught.exception)
    self.assertStartsWith(problem, f"--{field}={settings.get(field)}: must be")
    self.assertIn(allowed, problem)

  @parameterized.parameters(
      ({}, "sign_interval", 1),
      (dict(method="fub_top_k"), "sign_interval", 1),
      (dict(method="send_all"), "fixed", 1),
      # ceil(100 / (2 * 7)) = ceil(7.14)
      (dict(method="fedavg", k=7), "fixed", 8),
      (dict(method="fedavg", local_steps=3), "fixed", 3),
      (dict(method="fab_top_k", local_steps=5), "sign_interval", 5),
  )
  def test_defaults_follow_the_method(self, settings, controller, steps):
    config = Config(**settings)
    self.assertEqual(config.used_controller, controller)
    self.assertEqual(config.used_local_steps(100), steps)

  @parameterized.product(field=FLOATS, value=("nan", "inf", "-inf"))
  def test_not_finite(self, field, value):
    with self.assertRaises(ConfigError) as caught:
      Config(**{field: float(value)})
    self.assertEqual(
        str(caught.exception), f"--{field}={value}: must be a finite number"
    )

  def test_no_field_is_left_out(self):
    names = {field.name for field in dataclasses.fields(Config)}
    wrong = (*OUT_OF_RANGE, *COMBINATIONS)
    right = {"standardize"}  # either value will do
    self.assertEqual(names - right, {row[0] for row in wrong})
    self.assertEqual(
        set(FLOATS),
        {
            field.name
            for field in dataclasses.fields(Config)
            if field.type in (float, float | None)
        },
    )

  def test_it_stays_as_it_was_checked(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      Config().k = 0.0


def interval(dim, controller="sign_interval", **settings):
  return Config(controller=controller, **settings).k_interval(dim)


class IntervalTest(parameterized.TestCase):

  @parameterized.parameters("sign", "sign_interval", "fixed")
  def test_defaults(self, controller):
    """0.002 D and D; below 2 elements there would be no room for k'."""
    low, high = interval(444062, controller)
    self.assertAlmostEqual(low, 888.124)
    self.assertEqual(high, 444062)
    self.assertEqual(interval(100, controller, k=9), (2, 100))
    self.assertEqual(interval(5000, controller, k=10, k_max=10), (10, 10))
    self.assertEqual(interval(5000, controller, k_min=1000), (1000, 5000))

  @parameterized.parameters(
      # k > D, whatever the controller.
      (dict(k=501), "k", 501, "500"),
      (dict(k=501, controller="fixed"), "k", 501, "500"),
      (dict(k=501, k_max=501), "k", 501, "500"),
      # The interval against D and itself.
      (dict(k=500, k_min=501), "k_min", 501, "500"),
      (dict(k=50, k_max=501), "k_max", 501, "500"),
      (dict(k=50, k_min=40, k_max=30), "k_max", 30, "40 (k_min)"),
      (dict(k=35, k_min=40, k_max=30), "k_max", 30, "40 (k_min)"),
      # k outside the interval, and outside a default end.
      (dict(k=50, k_min=51), "k", 50, "51 (k_min)"),
      (dict(k=50, k_max=49), "k", 50, "49 (k_max)"),
      (dict(k=1.5), "k", 1.5, "2 (k_min)"),
      (dict(k=50, controller="sign", k_max=49), "k", 50, "49 (k_max)"),
      # No whole k in the interval.
      (dict(k=5.5, controller="exp3", k_min=5.2, k_max=5.8), "k_max", 5.8, "6"),
  )
  def test_refused(self, settings, field, value, allowed):
    """One line: the flag, the value, what is allowed."""
    with self.assertRaises(ConfigError) as caught:
      interval(500, **settings)
    problem = str(caught.exception)
    self.assertLen(problem.splitlines(), 1)
    self.assertStartsWith(problem, f"--{field}={float(value)}: must be ")
    self.assertIn(allowed, problem)

  @parameterized.parameters(
      dict(k=500),
      dict(k=2),
      dict(k=500, k_max=500),
      dict(k=500, k_min=500),
      dict(k=40, k_min=40, k_max=40),
  )
  def test_ends_are_inside(self, **settings):
    low, high = interval(500, **settings)
    self.assertBetween(settings["k"], low, high)

  def test_a_fixed_k_needs_no_interval(self):
    self.assertEqual(interval(500, "fixed", k=1), (2.0, 500.0))
    self.assertEqual(interval(500, "fixed", k=50, k_max=40), (2.0, 40))

  @hypothesis.settings(max_examples=300, deadline=None)
  @hypothesis.given(
      st.integers(2, 2000),
      st.floats(1, 40) | st.floats(1, 2100),
      st.none() | st.floats(2, 40) | st.floats(2, 2100),
      st.none() | st.floats(2, 40) | st.floats(2, 2100),
      st.sampled_from(("sign", "sign_interval")),
  )
  def test_law(self, dim, k, k_min, k_max, controller):
    """2 <= k_min <= k <= k_max <= D as asked, or else an error."""
    low = max(2, 0.002 * dim) if k_min is None else k_min
    high = dim if k_max is None else k_max
    settings = dict(controller=controller, k=k, k_min=k_min, k_max=k_max)
    if 2 <= low <= k <= high <= dim:
      self.assertEqual(interval(dim, **settings), (low, high))
    else:
      with self.assertRaises(ConfigError):
        interval(dim, **settings)


# Settings beside K = [4, 90], k = 33 and T = 50, and the controller they mean.
CONTROLLERS = (
    (dict(controller="fixed"), lambda: controllers.fixed(33)),
    (
        dict(controller="sign"),
        lambda: controllers.sign_descent(33.0, 4.0, 90.0),
    ),
    (
        dict(controller="sign", stuck_rounds=2),
        lambda: controllers.sign_descent(33.0, 4.0, 90.0, 2),
    ),
    ({}, lambda: controllers.sign_interval(33.0, 4.0, 90.0)),
    (
        dict(stuck_rounds=2),
        lambda: controllers.sign_interval(33.0, 4.0, 90.0, stuck_rounds=2),
    ),
    (
        dict(controller="value"),
        lambda: controllers.value_descent(33.0, 4.0, 90.0),
    ),
    (dict(controller="exp3"), lambda: bandits.exp3(4.0, 90.0, 50)),
    (
        dict(controller="exp3", exp3_arms=7),
        lambda: bandits.exp3(4.0, 90.0, 50, num_arms=7),
    ),
    (dict(controller="bandit"), lambda: bandits.bandit(33.0, 4.0, 90.0, 50)),
    (
        dict(controller="bandit", bandit_radius=0.25),
        lambda: bandits.bandit(33.0, 4.0, 90.0, 50, radius=0.25),
    ),
    (
        dict(controller="bandit", bandit_step=0.125),
        lambda: bandits.bandit(33.0, 4.0, 90.0, 50, step=0.125),
    ),
    (
        dict(controller="bandit", bandit_radius=0.25, bandit_step=0.125),
        lambda: bandits.bandit(33.0, 4.0, 90.0, 50, radius=0.25, step=0.125),
    ),
)
SIZES = (7, 1, 32)
SPARSIFIERS = (
    (dict(method="unidirectional_top_k"), sparsifiers.unidirectional_top_k),
    (
        dict(method="unidirectional_top_k", per_layer=True),
        lambda: layerwise.per_layer(sparsifiers.unidirectional_top_k(), SIZES),
    ),
    (dict(method="periodic_k"), sparsifiers.periodic_k),
    (dict(method="fedavg"), sparsifiers.send_all),
)
SERVERS = (
    (dict(learning_rate=0.5), lambda: optax.sgd(0.5)),
    (
        dict(learning_rate=0.5, server_learning_rate=0.25),
        lambda: optax.sgd(0.25),
    ),
    (
        dict(server_optimizer="momentum", server_learning_rate=0.25),
        lambda: optax.sgd(0.25, momentum=0.9),
    ),
)


TRAININGS = (
    (dict(learning_rate=0.5, local_steps=3), lambda: (optax.sgd(0.5), 3)),
    (dict(learning_rate=0.25, local_steps=3), lambda: (optax.sgd(0.25), 3)),
    (dict(learning_rate=0.5, local_steps=2), lambda: (optax.sgd(0.5), 2)),
    (
        dict(learning_rate=0.5, local_optimizer="momentum"),
        lambda: (optax.sgd(0.5, momentum=0.9), 1),
    ),
    (
        dict(learning_rate=0.5, local_optimizer="adam", server_optimizer="sgd"),
        lambda: (optax.adam(0.5, b2=0.99, eps=1e-3), 1),
    ),
)


def program(function, *arguments):
  """What a function computes, as text: numbers and arrays in it too."""
  traced = jax.make_jaxpr(function)(*arguments)
  consts = [np.asarray(x).tolist() for x in traced.consts]
  return re.sub("0x[0-9a-f]+", "", f"{traced} {consts}")


class WiringTest(absltest.TestCase):
  """Law: what is built of settings is the program of parts made directly.

  No two rows of a table are the same program, so a setting that is lost, or
  taken for another, shows.
  """

  def assert_built(self, table, build, program_of):
    seen = set()
    for settings, directly in table:
      got = program_of(build(settings))
      self.assertTrue(got == program_of(directly()), settings)
      seen.add(got)
    self.assertEqual(len(seen), len(table))

  def test_controllers(self):

    def build(settings):
      config = Config(k=33, k_min=4, k_max=90, num_rounds=50, **settings)
      return parts.build_controller(config, 100, config.k)

    def program_of(controller):
      key, observed = jax.random.key(0), Observation(*jnp.ones(7))
      _, state = controller.init(key)
      first = program(controller.init, key)
      return first + program(controller.update, key, observed, state)

    self.assert_built(CONTROLLERS, build, program_of)

  def test_sparsifiers(self):

    def program_of(sparsifier):
      key, weights = jax.random.key(0), jnp.ones(3)
      accumulated = jnp.ones((3, 40))
      state = sparsifier.init(3, 40)
      return program(
          sparsifier.select, key, accumulated, weights, jnp.int32(9), state
      )

    model = Model(None, None, SIZES)
    build = lambda settings: parts.build_sparsifier(
        Config(**settings), model, (), None
    )
    self.assert_built(SPARSIFIERS, build, program_of)

  def test_servers(self):

    def build(settings):
      config = Config(**settings)
      return parts.build_server(config, config.learning_rate)

    def program_of(server):
      params = jnp.ones(2)
      return program(server.update, params, server.init(params), params)

    self.assert_built(SERVERS, build, program_of)

  def test_trainings(self):

    def build(settings):
      config = Config(**settings)
      training = parts.build_training(config, 40, config.learning_rate)
      self.assertEqual(training.learning_rate, config.learning_rate)
      return training.optimizer, training.steps

    def program_of(training):
      optimizer, steps = training
      params = jnp.ones(2)
      state = optimizer.init(params)
      return program(optimizer.update, params, state, params) + str(steps)

    self.assert_built(TRAININGS, build, program_of)


if __name__ == "__main__":
  absltest.main()
