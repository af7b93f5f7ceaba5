"""What settings are made of: the program that they name, and no other."""

import contextlib
import re
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import controllers, rounds, sparsifiers
from agsfl.clocks import Message
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import ClientData
from agsfl.delivery import Delivery
from agsfl.errors import ConfigError
from agsfl.feedback import Feedback
from agsfl.parts import Parts, compose, numbers_of
from agsfl.sparsifiers import METHODS
from agsfl.tasks import cross_entropy
from agsfl.training import augmentation, models
from agsfl.training.client import LocalTraining
from agsfl.training.models import MODELS
from agsfl.training.optimizers import OPTIMIZERS, local, server_of
from agsfl.training.schedules import Schedules, build_schedule

FEATURES, CLASSES = 8, 12
MODEL = models.flatten(
    lambda key: {"b": jnp.zeros(CLASSES), "w": jnp.zeros((FEATURES, CLASSES))},
    lambda params, x: (
        x.reshape(len(x), -1) @ params["w"] + params["b"][None]
    ),
)
BASE = {
    "method": "periodic_k", "batch_size": 4, "num_rounds": 50,
    "k": 33, "k_min": 4, "k_max": 90,
}
K = (33.0, 4.0, 90.0)
PERIODIC = sparsifiers.periodic_k()
INTERVAL = controllers.sign_interval(*K)


def direct(
    sparsifier=PERIODIC, controller=INTERVAL, server=("sgd", 0.01), **parts
):
  """The round of `BASE` but for the parts given, made without settings."""
  return rounds.build_round(
      MODEL, sparsifier, controller, server=server_of(*server),
      **({"batch_size": 4, "comm_time": 10.0, "learning_rate": 0.01} | parts),
  )


def trained(steps, *optimizer, **sampling):
  return LocalTraining(steps, local(*optimizer), **sampling)


def by_round(client, server=None, **settings):
  """Schedules of 50 rounds, or of those in the settings."""
  settings = {"horizon": 50, "drops": 2} | settings
  return Schedules(
      *(build_schedule(name, **settings) for name in (client, server or client))
  )


# Settings, and the round that they name; no two rounds are the same.
ROUNDS = (
    ({}, lambda: direct()),
    ({"method": "fab_top_k"}, lambda: direct(sparsifiers.fab_top_k())),
    ({"method": "fub_top_k"}, lambda: direct(sparsifiers.fub_top_k())),
    (
        {"method": "fub_top_k_tree"},
        lambda: direct(sparsifiers.fub_top_k_tree()),
    ),
    (
        {"method": "unidirectional_top_k"},
        lambda: direct(sparsifiers.unidirectional_top_k()),
    ),
    (
        {"per_layer": True},
        lambda: direct(sparsifiers.per_layer(PERIODIC, MODEL.sizes)),
    ),
    (
        {"method": "send_all"},
        lambda: direct(
            sparsifiers.send_all(), controllers.fixed(33),
            feedback=Feedback(sends_all=True),
        ),
    ),
    (
        # tau = ceil(108 / 66)
        {"method": "fedavg"},
        lambda: direct(
            sparsifiers.send_all(), controllers.fixed(33),
            training=trained(2, "sgd"), feedback=Feedback(sends_all=True),
        ),
    ),
    # All may not arrive, or not as it is: then they have residuals.
    (
        {"method": "send_all", "dropout": 0.5},
        lambda: direct(
            sparsifiers.send_all(), controllers.fixed(33),
            delivery=Delivery(dropout=0.5),
        ),
    ),
    ({"residual_decay": 0.5}, lambda: direct(feedback=Feedback(decay=0.5))),
    (
        {"residual_preview": 0.5},
        lambda: direct(feedback=Feedback(preview=0.5)),
    ),
    ({"stateless": True}, lambda: direct(feedback=Feedback(stateless=True))),
    (
        {"value_bits": 16},
        lambda: direct(delivery=Delivery(Message(value_bits=16))),
    ),
    (
        {"method": "fab_top_k", "index_coding": "golomb"},
        lambda: direct(
            sparsifiers.fab_top_k(), delivery=Delivery(Message("golomb"))
        ),
    ),
    (
        {"controller": "fixed"},
        lambda: direct(controller=controllers.fixed(33)),
    ),
    (
        {"controller": "sign"},
        lambda: direct(controller=controllers.sign_descent(*K)),
    ),
    (
        {"controller": "sign", "stuck_rounds": 2},
        lambda: direct(controller=controllers.sign_descent(*K, 2)),
    ),
    (
        {"controller": "sign_log"},
        lambda: direct(controller=controllers.sign_log(*K)),
    ),
    (
        {"controller": "sign_log", "stuck_rounds": 2},
        lambda: direct(controller=controllers.sign_log(*K, 2)),
    ),
    (
        {"controller": "balance"},
        lambda: direct(controller=controllers.balance(*K, 50)),
    ),
    (
        {"controller": "balance", "time_budget": 70.0},
        lambda: direct(controller=controllers.balance(*K, 50, 70.0)),
    ),
    (
        {"stuck_rounds": 2},
        lambda: direct(
            controller=controllers.sign_interval(*K, stuck_rounds=2)
        ),
    ),
    (
        {"controller": "value"},
        lambda: direct(controller=controllers.value_descent(*K)),
    ),
    (
        {"controller": "exp3"},
        lambda: direct(controller=controllers.exp3(4.0, 90.0, 50)),
    ),
    (
        {"controller": "exp3", "exp3_arms": 7},
        lambda: direct(controller=controllers.exp3(4.0, 90.0, 50, 7)),
    ),
    (
        {"controller": "bandit", "num_rounds": 60},
        lambda: direct(controller=controllers.bandit(*K, 60)),
    ),
    (
        {"controller": "bandit", "bandit_radius": 0.25, "bandit_step": 0.125},
        lambda: direct(
            controller=controllers.bandit(*K, 50, radius=0.25, step=0.125)
        ),
    ),
    (
        {"controller": "replay", "replay": "runs/a"},
        lambda: direct(controller=controllers.replay([5.0, 9.0])),
    ),
    ({"learning_rate": 0.5}, lambda: direct(
        server=("sgd", 0.5), learning_rate=0.5,
    )),
    ({"server_learning_rate": 0.5}, lambda: direct(server=("sgd", 0.5))),
    (
        {"server_optimizer": "momentum"},
        lambda: direct(server=("momentum", 0.01)),
    ),
    ({"server_optimizer": "adam"}, lambda: direct(server=("adam", 0.01))),
    ({"local_steps": 3}, lambda: direct(training=trained(3, "sgd"))),
    (
        {"local_optimizer": "momentum", "local_steps": 3},
        lambda: direct(training=trained(3, "momentum")),
    ),
    (
        {"local_optimizer": "adam", "local_steps": 3},
        lambda: direct(training=trained(3, "adam")),
    ),
    (
        {"local_epochs": 3},
        lambda: direct(training=trained(None, "sgd", epochs=3)),
    ),
    (
        {"sample_without_replacement": True},
        lambda: direct(training=trained(1, "sgd", without_replacement=True)),
    ),
    (
        {"weight_decay": 0.25},
        lambda: direct(training=trained(1, "sgd", 0.25)),
    ),
    (
        {"clip_norm": 0.25, "local_steps": 3, "local_optimizer": "momentum"},
        lambda: direct(training=trained(3, "momentum", 0.0, 0.25)),
    ),
    (
        {"learning_rate_schedule": "cosine", "local_steps": 3},
        lambda: direct(
            training=trained(3, "sgd"), schedules=by_round("cosine")
        ),
    ),
    (
        {"server_learning_rate_schedule": "linear", "schedule_rounds": 40,
         "warmup_rounds": 5, "local_steps": 3},
        lambda: direct(
            training=trained(3, "sgd"),
            schedules=by_round(
                "constant", "linear", horizon=40, warmup_rounds=5
            ),
        ),
    ),
    (
        {"learning_rate_schedule": "step", "schedule_drops": 3,
         "schedule_drop_factor": 0.5},
        lambda: direct(
            schedules=by_round("step", drops=3, drop_factor=0.5)
        ),
    ),
    ({"batch_size": 5}, lambda: direct(batch_size=5)),
    (
        {"augmentation": "flip"},
        lambda: direct(augment=augmentation.flip),
    ),
    (
        {"augmentation": "crop_flip"},
        lambda: direct(augment=augmentation.crop_flip),
    ),
    ({"comm_time": 2.5}, lambda: direct(comm_time=2.5)),
)


def composed(config, parts=None):
  numbers = numbers_of(config, MODEL.dim)
  return compose(
      config, parts or Parts(), MODEL, cross_entropy, numbers, (5.0, 9.0)
  )


def program(simulated):
  """A round as (the numbers that its state begins with, its step as text)."""
  data = ClientData.of(
      np.ones((3, 2, FEATURES // 2, 1), np.float32), np.arange(3),
      [[0], [1], [2]],
  )
  state = simulated.init(jax.random.key(0), 3)
  traced = jax.make_jaxpr(simulated.step)(data, state)
  consts = [np.asarray(x).tolist() for x in traced.consts]
  leaves = jax.tree.leaves(state.replace(key=None))
  numbers = [np.asarray(x).tolist() for x in leaves]
  return str(numbers), re.sub("0x[0-9a-f]+", "", f"{traced} {consts}")


class WiringTest(absltest.TestCase):

  def test_one_local_step_that_is_plain_sgd(self):
    """Law: an optimiser whose first step is that of SGD needs a second one.

    Otherwise a setting would have no effect. FedAvg may come to one step too.
    """
    gradient = jnp.arange(-3.0, 4.0)
    for name in OPTIMIZERS:
      first, _ = local(name).update(gradient, local(name).init(gradient))
      plain = name != "sgd" and np.allclose(first, -gradient)
      for settings in ({}, {"method": "fedavg", "k": MODEL.dim}):
        with self.subTest(name=name, **settings), (
            self.assertRaisesRegex(ConfigError, "^--local_optimizer=momentum: ")
            if plain else contextlib.nullcontext()
        ):
          composed(Config(**(BASE | settings | {"local_optimizer": name})))

  def test_settings_are_the_parts_they_name(self):
    """Law: the round of settings is the program of parts made directly.

    No two rows are the same program, so a setting that is lost, or taken for
    another, shows.
    """
    seen = set()
    for settings, directly in ROUNDS:
      with self.subTest(settings):
        got = program(composed(Config(**(BASE | settings))))
        self.assertTrue(got == program(directly()))
        self.assertNotIn(got, seen)
        seen.add(got)
    named = {name for settings, _ in ROUNDS for name in settings.values()}
    for registry in (METHODS, CONTROLLERS):
      self.assertLessEqual({*registry} - {*BASE.values(), "sign_interval"},
                           named)

  def test_equal_structures_are_one_step(self):
    """Law: the step of a run is that of its structure, number for number.

    What else its settings say lies in the state that it begins with.
    """
    config = Config(**BASE)
    numbers, step = program(composed(config))
    for change, in_state in (
        ({"learning_rate": 0.5}, True),
        ({"server_learning_rate": 0.5}, True),
        ({"comm_time": 2.5}, True),
        ({"k": 50}, True),
        ({"seed": 1, "num_rounds": 60}, False),
    ):
      other = Config(**(BASE | change))
      self.assertEqual(other.structure(), config.structure())
      other_numbers, other_step = program(composed(other))
      self.assertTrue(other_step == step)
      self.assertEqual(other_numbers != numbers, in_state)
    self.assertTrue(program(composed(config.structure()))[1] == step)


def model_of(scale):
  return lambda num_classes: models.flatten(
      lambda key: jnp.zeros((FEATURES, num_classes)),
      lambda w, x: scale * (x @ w),
  )


def method_of(share):
  def first(key, accumulated, weights, k, state):
    ranks = jnp.arange(accumulated.shape[1]) < share * k
    return jnp.broadcast_to(ranks, accumulated.shape), state

  return lambda: sparsifiers.from_masks(first)


def controller_of(scale):
  return lambda k, k_min, k_max, settings: controllers.fixed(scale * k)


class LagTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"stateless": True}, "stateless=True"),
      ({"clock": "constant", "deadline": 5.0}, "deadline=5"),
      (
          {
              "clock": "constant", "clients_per_round": 3, "buffer_size": 2,
          },
          "buffer_size=2",
      ),
      ({"clock": "constant", "time_budget": 9.0}, "time_budget=9"),
  )
  def test_what_a_lag_cannot_be_measured_with(self, settings, shown):
    """Refused for the rule by its name, and for an object."""
    base = BASE | settings
    for config, parts in (
        (Config(**base, controller="balance"), Parts()),
        (Config(**base), Parts(controller=controllers.balance(*K, 50))),
    ):
      with self.assertRaisesRegex(ConfigError, f"^--{shown}.*: must be unset"):
        composed(config, parts)

  def test_rounds_without_residuals(self):
    """The same for a round that is made without settings."""
    balance = controllers.balance(*K, 50)
    with self.assertRaisesRegex(ConfigError, "^controller: must not measure"):
      direct(controller=balance, feedback=Feedback(stateless=True))


class SendAllTest(parameterized.TestCase):

  @parameterized.parameters({}, {"clients_per_round": 2})
  def test_nothing_is_left(self, **cohort):
    """Law: without residuals, which would be zeros, a run is the same.

    With a sparsifier of the user's own, a run cannot know that none is left.
    """
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, FEATURES)).astype(np.float32)
    data = agsfl.from_arrays(x, np.arange(60) % CLASSES)
    config = Config(
        model="mlp", method="send_all", num_rounds=4, learning_rate=0.5,
        partition="iid", num_clients=3, num_devices=1, **cohort,
    )
    own = {"sparsifier": sparsifiers.send_all()}
    run, other = agsfl.simulate(config, data=data), agsfl.simulate(
        config, data=data, **own
    )
    np.testing.assert_array_equal(run.params, other.params)
    self.assertEqual(run.rows, other.rows)
    of = lambda **parts: agsfl.build(config, data, **parts).state.residual
    self.assertEqual((of(), of(**own).any()), ((), False))


class ReplacedTest(parameterized.TestCase):

  @parameterized.parameters(
      ("model", MODELS, agsfl.register_model, model_of),
      ("method", METHODS, agsfl.register_method, method_of),
      ("controller", CONTROLLERS, agsfl.register_controller, controller_of),
  )
  def test_the_last_of_a_name_is_run(self, field, registry, register, make):
    """Law: a part that is replaced under its name is the one that runs."""
    self.enter_context(mock.patch.dict(registry._added))
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, FEATURES)).astype(np.float32)
    data = agsfl.from_arrays(x, np.arange(60) % CLASSES)

    def run(**settings):
      config = Config(**({
          "model": "mine", "method": "periodic_k", "controller": "fixed",
          "k": 20, "num_rounds": 2, "learning_rate": 0.5, "partition": "iid",
          "num_clients": 3, "num_devices": 1,
      } | settings))
      return agsfl.simulate(config, data=data)

    if field != "model":
      self.enter_context(mock.patch.dict(MODELS._added))
      agsfl.register_model("mine")(model_of(1.0))
    ends = []
    for number in (1.0, 2.0, 1.0):
      register("mine")(make(number))
      ends.append(run(**{field: "mine"}))
    self.assertFalse(np.allclose(ends[0].params, ends[1].params))
    np.testing.assert_array_equal(ends[0].params, ends[2].params)


if __name__ == "__main__":
  absltest.main()
