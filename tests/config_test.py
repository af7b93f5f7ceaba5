"""The settings of a run: each by itself, and what they mean together."""

import dataclasses
import fractions
import math

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from agsfl import settings
from agsfl.clocks import ClockOptions
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.partitions import Partition
from agsfl.data.sources import SourceOptions
from agsfl.errors import ConfigError
from agsfl.participation import Participation
from experiments.lib import flags as run_flags

FIELDS = {field.name: field for field in dataclasses.fields(Config)}
SAID = {name: settings.said_of(field) for name, field in FIELDS.items()}
KINDS = {name: settings.kinds_of(field) for name, field in FIELDS.items()}
NUMBERS = [name for name, kinds in KINDS.items() if {int, float} & {*kinds}]

# By type, values of others; all but whole numbers may be whole.
OTHERS = {
    (bool,): ("false", 1, 0.0, None),
    (int,): (2.5, "2", True, [1], math.nan, math.inf),
    (float,): ("2", True, [1.0], 1j),
    (str,): (3, b"a", True, ["a"]),
    (float, str): ("x", "101%", True, [1.0]),
}
# Settings that one value needs beside it.
NEEDS = {
    "replay": {"controller": "replay", "replay": "runs/a"},
    "momentum": {"local_steps": 2},
    "lora_rank": {"lora_from": "runs/d"},
    "lora_from": {"lora_rank": 2},
    "deadline": {"clock": "constant"},
    "buffer_size": {"clock": "constant"},
    "seconds_budget": {"clock": "constant"},
    "speed_spread": {"clock": "constant"},
    "by_size": {"clients_per_round": 3},
    "round_robin": {"clients_per_round": 3},
    "host": {"clients_per_round": 3},
    "file": {"clients_per_round": 3},
}


def refusal(**given):
  """The line that refuses a Config."""
  try:
    Config(**given)
  except ConfigError as error:
    (line,) = str(error).splitlines()
    return line
  raise AssertionError(f"{given} is taken")


class FieldTest(parameterized.TestCase):
  """The contract of every field."""

  @parameterized.parameters(*FIELDS)
  def test_help_is_a_sentence(self, name):
    self.assertRegex(SAID[name].help, r"^\w[^\n]*[^\s.]\.$")
    self.assertNotIn("  ", SAID[name].help)

  @parameterized.parameters(*FIELDS)
  def test_default(self, name):
    """Law: it is a value like others, and of the field's own type."""
    default = FIELDS[name].default
    self.assertEqual(Config(**{name: default}), Config())
    if default is None:
      self.assertTrue(settings.is_optional(FIELDS[name]))
    else:
      self.assertIn(type(default), KINDS[name])

  @parameterized.parameters(*FIELDS)
  def test_other_types(self, name):
    """Law: one line names the flag, the value and what is allowed."""
    for value in OTHERS[KINDS[name]]:
      self.assertStartsWith(refusal(**{name: value}), f"--{name}=")
      self.assertIn(": must be ", refusal(**{name: value}))

  @parameterized.parameters(*NUMBERS)
  def test_bounds(self, name):
    """Law: both ends are allowed, and the next numbers beyond are not."""
    is_whole = KINDS[name] == (int,)
    next_to = lambda x, way: x + way if is_whole else math.nextafter(
        x, way * math.inf
    )
    for bound, way, words in (
        (SAID[name].least, -1, "at least"), (SAID[name].most, 1, "at most")
    ):
      if bound is None:
        continue
      needed = {name: bound} | NEEDS.get(name, {})
      self.assertEqual(getattr(Config(**needed), name), bound)
      line = refusal(**{name: next_to(bound, way)})
      self.assertRegex(line, f"^--{name}=.*: must be {words} [0-9]")
    if not is_whole:
      for value in ("nan", "inf", "-inf"):
        self.assertEqual(
            refusal(**{name: float(value)}),
            f"--{name}={value}: must be a finite number",
        )

  @parameterized.parameters(
      *[name for name in FIELDS if SAID[name].choices is not None]
  )
  def test_choices(self, name):
    """Law: each is taken, and a refusal names all of them."""
    for choice in SAID[name].choices:
      self.assertEqual(
          getattr(Config(**({name: choice} | NEEDS.get(choice, {}))), name),
          choice,
      )
    wrong = "other" if KINDS[name] == (str,) else 8
    allowed = ", ".join(map(str, SAID[name].choices))
    self.assertEqual(
        refusal(**{name: wrong}), f"--{name}={wrong}: must be one of {allowed}"
    )

  def test_it_stays_as_it_was_checked(self):
    with self.assertRaises(dataclasses.FrozenInstanceError):
      Config().k = 0.0

  def test_nothing_is_said_twice(self):
    """Law: a setting is a field of one class, and flags are made of fields."""
    kinds = Partition, SourceOptions, ClockOptions, Participation, Config
    own = [kind.__annotations__ for kind in kinds]
    self.assertLen(FIELDS, sum(map(len, own)))
    self.assertEqual(run_flags.NAMES, tuple(FIELDS))
    for name, field in FIELDS.items():
      self.assertEqual(flags.FLAGS[name].default, field.default)
      self.assertStartsWith(flags.FLAGS[name].help, SAID[name].help)


class TogetherTest(parameterized.TestCase):

  @parameterized.parameters(
      ("dataset", {"dataset": "cifar"}, "mnist_5k, "),
      ("dataset", {"dataset": ""}, "mnist_5k, "),
      ("dataset", {"dataset": "set.npz"}, "npz:PATH"),
      ("controller", {"method": "send_all", "controller": "sign"}, "fixed"),
      ("controller", {"method": "fedavg", "controller": "exp3"}, "fixed"),
      ("per_layer", {"method": "fedavg", "per_layer": True}, "false"),
      ("local_optimizer", {"local_optimizer": "momentum"}, "--local_steps"),
      ("local_epochs", {"local_epochs": 2, "local_steps": 2}, "unset"),
      (
          "warmup_rounds",
          {"warmup_rounds": 9, "num_rounds": 9,
           "learning_rate_schedule": "cosine"},
          "less than the 9 rounds",
      ),
      (
          "schedule_drops",
          {"schedule_drops": 5, "warmup_rounds": 4, "schedule_rounds": 9,
           "server_learning_rate_schedule": "step"},
          "less than the 5 rounds",
      ),
      ("replay", {"controller": "replay"}, "a run's folder"),
      ("replay", {"controller": "sign", "replay": "runs/a"}, "unset"),
      ("lora_rank", {"lora_rank": 2}, "unset without --lora_from"),
      ("lora_from", {"lora_from": "runs/a"}, "unset without --lora_rank"),
  )
  def test_what_does_not_go_together(self, name, given, allowed):
    line = refusal(**given)
    self.assertStartsWith(line, f"--{name}={given.get(name)}: must be")
    self.assertIn(allowed, line)

  @parameterized.parameters(
      ({}, "sign_interval", 1),
      ({"method": "fub_top_k"}, "sign_interval", 1),
      ({"method": "send_all"}, "fixed", 1),
      # ceil(100 / (2 * 7)) = ceil(7.14)
      ({"method": "fedavg", "k": 7}, "fixed", 8),
      ({"method": "fedavg", "local_steps": 3}, "fixed", 3),
      ({"method": "fab_top_k", "local_steps": 5}, "sign_interval", 5),
      ({"method": "fedavg", "local_epochs": 3}, "fixed", None),
  )
  def test_defaults_follow_the_method(self, given, controller, steps):
    config = Config(**given)
    self.assertEqual(config.used_controller, controller)
    self.assertEqual(config.used_local_steps(100), steps)


def k_range(dim, controller="sign_interval", **given):
  return Config(controller=controller, **given).k_range(dim)


# A number of elements, or a share of D.
AMOUNTS = st.one_of(
    st.floats(2, 40),
    st.floats(2, 2e9),
    st.floats(1e-6, 100).map(lambda share: f"{share}%"),
)


class KRangeTest(parameterized.TestCase):

  @parameterized.parameters(
      # 0.002 D and D, and 1000 brought between them.
      (444_062, {}, (1000, 888.124, 444_062)),
      (10**6, {}, (2000, 2000, 10**6)),
      (500, {}, (500, 2, 500)),
      # k' < k needs 2 elements.
      (100, {"k": 9}, (9, 2, 100)),
      (2, {}, (2, 2, 2)),
      (100, {"k": 2, "k_min": "0.1%"}, (2, 2, 100)),
      (5000, {"k_min": 1500}, (1500, 1500, 5000)),
      # k_min gives way to k_max.
      (5000, {"k": 9, "k_max": 9}, (9, 9, 9)),
      (5000, {"k": "1%", "k_min": "0.5%", "k_max": "10%"}, (50, 25, 500)),
      # Where k is not learned there is no interval to keep.
      (500, {"k": 1, "controller": "fixed"}, (1, 1, 500)),
      (500, {"k": 50, "k_max": 40, "controller": "fixed"}, (50, 1, 500)),
      (500, {"controller": "fixed"}, (500, 1, 500)),
  )
  def test_by_hand(self, dim, given, want):
    self.assertEqual(k_range(dim, **given), want)

  @parameterized.parameters(
      ({"k": 501}, "k", "501", "500"),
      ({"k": 501, "controller": "fixed"}, "k", "501", "500"),
      ({"k": 500, "k_min": 501}, "k_min", "501", "500"),
      ({"k": 50, "k_max": 501}, "k_max", "501", "500"),
      ({"k_min": 40, "k_max": 30}, "k_max", "30", "40 (k_min)"),
      ({"k": 50, "k_min": 51}, "k", "50", "51 (k_min)"),
      ({"k": 50, "k_max": 49}, "k", "50", "49 (k_max)"),
      ({"k": 1.5}, "k", "1.5", "2 (k_min)"),
      ({"k": "0.1%", "k_min": "1%"}, "k", "0.1%", "5 (k_min)"),
  )
  def test_refused(self, given, name, value, allowed):
    """One line: the flag, the value as it was given, what is allowed."""
    with self.assertRaises(ConfigError) as caught:
      k_range(500, **given)
    (line,) = str(caught.exception).splitlines()
    self.assertStartsWith(line, f"--{name}={value}: must be ")
    self.assertIn(allowed, line)

  @hypothesis.settings(max_examples=500, deadline=None)
  @hypothesis.given(
      st.one_of(st.integers(2, 2000), st.integers(2, 10**9)),
      st.fixed_dictionaries({}, optional={
          "k": AMOUNTS, "k_min": AMOUNTS, "k_max": AMOUNTS,
      }),
      st.sampled_from([name for name in CONTROLLERS if name != "replay"]),
      st.sampled_from(["fab_top_k", "periodic_k"]),
  )
  def test_law(self, dim, given, controller, method):
    """Law: k_min <= k <= k_max <= D, as asked; only what was set is refused.

    The interval is also that of the structure, which holds no k.
    """
    elements = {}
    for name, amount in given.items():
      if isinstance(amount, str):
        share = fractions.Fraction(f"{float(amount[:-1]):g}")
        amount = max(1.0, float(share * dim / 100))
      elements[name] = amount
    learns = CONTROLLERS[controller].learns
    high = max(2.0, elements.get("k_max", dim))
    low = max(2.0, elements.get("k_min", min(0.002 * dim, high)))
    low, high = (low, high) if learns else (1, dim)
    k = elements.get("k", min(max(1000, low), high))
    close = lambda a, b: math.isclose(a, b, rel_tol=1e-9)
    # A rounded share may lie on either side of an end that it meets.
    hypothesis.assume(not any(
        close(a, b) and a != b
        for a, b in ((low, k), (k, high), (low, high), (high, dim), (low, dim))
    ))
    config = Config(controller=controller, method=method, **given)
    if low <= k <= high <= dim:
      got = config.k_range(dim)
      for one, want in zip(got, (k, low, high), strict=True):
        # Above 2^24 it is the float32 number next to it, at most D.
        spacing = float(np.spacing(np.float32(dim))) if want > 2**24 else 0.0
        self.assertTrue(math.isclose(one, want, rel_tol=1e-9, abs_tol=spacing))
      self.assertTrue(got.k_min <= got.k <= got.k_max <= dim)
      self.assertEqual(config.structure().k_range(dim)[1:], got[1:])
    else:
      with self.assertRaises(ConfigError) as caught:
        config.k_range(dim)
      name = str(caught.exception).removeprefix("--").split("=")[0]
      self.assertIn(name, given)


def other(name):
  """Another value of a field."""
  special = {
      "dataset": "digits", "controller": "value", "k": 30.0, "k_min": "5%",
      "k_max": "90%", "replay": "runs/b", "label_column": "y",
      "client_column": "who", "client_regex": "(a)", "init_from": "runs/c",
      "lora_from": "runs/d",
      "bandit_radius": 0.5, "bandit_step": 0.5, "time_budget": 9.0,
      "server_learning_rate": 0.5, "local_optimizer": "adam",
      "schedule_drop_factor": 0.5, "clock": "phones", "availability": "phones",
      "clients_per_round": "10%",
      "dropout": 0.5, "residual_decay": 0.5, "residual_preview": 0.5,
      "value_bits": 16, "deadline": 9.0, "seconds_budget": 9.0,
      "store": "host",
  }
  if name in special:
    return special[name]
  default, choices = FIELDS[name].default, SAID[name].choices
  if choices is not None:
    return next(choice for choice in choices if choice != default)
  if isinstance(default, bool):
    return not default
  return 7 if default is None else default + 1


# By the run: the settings in which a run that goes on may differ, and those
# which other runs of the same compiled program may have.
SAME_RUN = {"num_rounds", "time_budget", "seconds_budget", "eval_every"}
SAME_PROGRAM = {
    "seed", "data_seed", "learning_rate", "server_learning_rate", "comm_time",
    "k", "init_from", "lora_from", "seconds_per_sample", "up_mbit", "down_mbit",
    "latency", "speed_spread", *SAME_RUN,
}
# What some settings need beside them.
COHORTS = {
    "clock": "constant", "clients_per_round": 3, "lora_rank": 2,
    "lora_from": "runs/e",
}
BASES = (
    ({}, SAME_RUN, SAME_PROGRAM),
    # Their steps depend on the number of rounds.
    (
        {"controller": "exp3"},
        SAME_RUN - {"num_rounds"},
        SAME_PROGRAM - {"num_rounds"},
    ),
    (
        {"controller": "bandit"},
        SAME_RUN - {"num_rounds"},
        SAME_PROGRAM - {"num_rounds"},
    ),
    # Its steps depend on how much time is left, too.
    (
        {"controller": "balance"},
        SAME_RUN - {"num_rounds", "time_budget", "seconds_budget"},
        SAME_PROGRAM - {"num_rounds", "time_budget", "seconds_budget"},
    ),
    (
        {"server_learning_rate_schedule": "cosine"},
        SAME_RUN - {"num_rounds"},
        SAME_PROGRAM - {"num_rounds"},
    ),
    # Their own number of rounds takes its place.
    (
        {"learning_rate_schedule": "step", "schedule_rounds": 40},
        SAME_RUN,
        SAME_PROGRAM,
    ),
    # k decides the number of local steps.
    ({"method": "fedavg"}, SAME_RUN, SAME_PROGRAM - {"k"}),
    # The recorded k lie in the state.
    (
        {"controller": "replay", "replay": "runs/a"},
        SAME_RUN,
        SAME_PROGRAM | {"replay"},
    ),
)


class IdentityTest(parameterized.TestCase):

  @parameterized.parameters(*BASES)
  def test_what_a_change_makes_of_a_run(self, base, same_run, same_program):
    """Law: another run, another program, both or neither, by the field."""
    config = Config(**COHORTS, **base)
    self.assertEqual(hash(config.structure()), hash(config.structure()))
    runs, programs = set(), set()
    for name in FIELDS:
      if name in ("controller", "method", "per_layer") or (
          name == "replay" and not base.get("replay")
      ) or (name == "k_by_speed" and "method" in base):
        continue
      changed = dataclasses.replace(config, **{name: other(name)})
      self.assertNotEqual(changed, config)
      if changed.identity() == config.identity():
        runs.add(name)
      if changed.structure() == config.structure():
        programs.add(name)
    self.assertEqual(runs, same_run)
    self.assertEqual(programs, same_program)

  @parameterized.parameters(
      {"controller": "value"}, {"method": "periodic_k"}, {"per_layer": True}
  )
  def test_parts_make_another_run_and_program(self, **change):
    config, changed = Config(), Config(**change)
    self.assertNotEqual(changed.identity(), config.identity())
    self.assertNotEqual(changed.structure(), config.structure())

  def test_settings_of_the_data(self):
    """Law: those of `load`; equal if the data are, whatever trains on them."""
    base = Config(seed=3, **COHORTS)
    same = {
        name for name in FIELDS
        if name not in ("controller", "method", "replay")
        and dataclasses.replace(base, **{name: other(name)}).data_settings()
        == base.data_settings()
    }
    of_data = {
        field.name
        for kind in (Partition, SourceOptions)
        for field in dataclasses.fields(kind)
    } | {"dataset"}
    self.assertTrue(same.isdisjoint(of_data))
    self.assertLen(same | of_data, len(FIELDS) - 3)
    self.assertEqual(
        Config(seed=1, data_seed=3).data_settings(), base.data_settings()
    )

  def test_structure_is_its_own(self):
    """Law: nothing is left to take out."""
    for base, *_ in BASES:
      structure = Config(**base).structure()
      self.assertEqual(structure.structure(), structure)


if __name__ == "__main__":
  absltest.main()
