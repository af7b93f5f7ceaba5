"""Parts by name: the package's own, and those that users add."""

import dataclasses
import typing
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from agsfl import (
  Config,
  ConfigError,
  fixed,
  periodic_k,
  register_controller,
  register_method,
  register_model,
  register_partition,
  register_source,
)
from agsfl.attendance import SAMPLINGS
from agsfl.controllers import CONTROLLERS
from agsfl.data.partitions import PARTITIONS
from agsfl.data.sources import SOURCES
from agsfl.registry import Registry
from agsfl.settings import said_of
from agsfl.sparsifiers import METHODS
from agsfl.tasks import TASKS
from agsfl.training.augmentation import AUGMENTATIONS
from agsfl.training.models import MODELS
from agsfl.training.networks import MLP
from agsfl.training.optimizers import OPTIMIZERS
from agsfl.training.schedules import SCHEDULES

# The setting, its parts, how one is registered, and one to register.
KINDS = (
    ("model", MODELS, register_model, MLP),
    ("method", METHODS, register_method, periodic_k),
    ("controller", CONTROLLERS, register_controller, lambda k, *_: fixed(k)),
    (
        "partition",
        PARTITIONS,
        register_partition,
        lambda labels, settings, rng: [np.arange(len(labels))],
    ),
    ("dataset", SOURCES, register_source, lambda place: {}),
)
FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# The setting, and the names that its type offers to editors.
LITERALS = (
    *[(field, registry) for field, registry, *_ in KINDS[:-1]],
    ("dataset", [name for name, source in SOURCES.items() if not source.place]),
    ("task", TASKS),
    ("sampling", SAMPLINGS),
    ("augmentation", AUGMENTATIONS),
    ("local_optimizer", OPTIMIZERS),
    ("server_optimizer", OPTIMIZERS),
    ("learning_rate_schedule", SCHEDULES),
    ("server_learning_rate_schedule", SCHEDULES),
)


class RegistryTest(absltest.TestCase):

  def test_is_a_mapping(self):
    """Law: the package's parts first, then those added, in order."""
    parts = Registry("part", {"b": 1, "a": 2})
    self.assertEqual(dict(parts), {"b": 1, "a": 2})
    parts.add("own", 3)
    parts.add("another", 4)
    self.assertEqual(list(parts.items()), [
        ("b", 1), ("a", 2), ("own", 3), ("another", 4),
    ])
    self.assertLen(parts, 4)
    self.assertEqual([*map(parts.is_added, parts)], [False, False, True, True])
    self.assertNotIn("c", parts)
    with self.assertRaises(KeyError):
      parts["c"]

  def test_what_was_added_can_be_replaced(self):
    parts = Registry("part", {"a": 1})
    parts.add("own", 2)
    parts.add("own", 3)
    self.assertEqual(dict(parts), {"a": 1, "own": 3})

  def test_refuses(self):
    """One line; and nothing is changed."""
    parts = Registry("part", {"a": 1})
    for name in ("a", "", "two words", "a-b", "a:b", "own\n", None, 3):
      with self.assertRaises(ConfigError) as caught:
        parts.add(name, 2)
      self.assertRegex(
          str(caught.exception),
          r"^--part=.*: must be letters, digits and _, and not a part of the "
          r"package$",
      )
    self.assertEqual(dict(parts), {"a": 1})


class KindsTest(parameterized.TestCase):

  @parameterized.parameters(*KINDS)
  def test_is_known_at_once(self, field, registry, register, part):
    """Law: a name that is registered may stand in settings; before, not."""
    self.enter_context(mock.patch.dict(registry._added))
    with self.assertRaises(ConfigError):
      Config(**{field: "mine"})
    self.assertIs(register("mine")(part), part)
    self.assertEqual(getattr(Config(**{field: "mine"}), field), "mine")
    self.assertTrue(registry.is_added("mine"))
    # A refusal of another name now says this one too.
    with self.assertRaisesRegex(ConfigError, f"^--{field}=others: .*mine"):
      Config(**{field: "others"})

  @parameterized.parameters(*KINDS)
  def test_the_package_s_own_are_not_replaced(
      self, field, registry, register, part
  ):
    """Law: what a preset or an old run names keeps its meaning."""
    del field
    before = dict(registry)
    for name in before:
      with self.assertRaisesRegex(ConfigError, f"={name}: must be letters"):
        register(name)(part)
    self.assertEqual(dict(registry), before)

  def test_choices_are_the_registries(self):
    """Law: no list of names is written twice for settings."""
    for field, registry, *_ in KINDS[:-1]:
      self.assertIs(said_of(FIELDS[field]).choices, registry)

  @parameterized.parameters(*LITERALS)
  def test_editors_know_the_names(self, field, names):
    """Law: the Literal of a field's type has the names of its registry."""
    (literal,) = (
        member
        for member in (FIELDS[field].type, *typing.get_args(FIELDS[field].type))
        if typing.get_origin(member) is typing.Literal
    )
    self.assertEqual(typing.get_args(literal), tuple(names))


if __name__ == "__main__":
  absltest.main()
