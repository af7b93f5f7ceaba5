"""The loop over rounds, on a simulation that only counts."""

import dataclasses
import math
import tempfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import parts, simulation
from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.training.evaluation import Evaluation
from agsfl.types import RoundInfo


class Counter:
  """Rounds of 2.5 units each; its state is the number of rounds done."""

  def __init__(self, rounds_per_call, loss=1.0, finite_until=math.inf):
    self.calls, self.evaluated = [], []
    self.loss = loss
    self.finite_until = finite_until
    self.simulation = simulation.Simulation(
        model=None,
        state=SimpleNamespace(params=0),
        advance=self.advance,
        rounds_per_call=rounds_per_call,
        evaluate=self.evaluate,
        pack=None,
        unpack=None,
    )

  def advance(self, state, num_rounds):
    self.calls.append(num_rounds)
    infos = [self.info(state.params + i + 1) for i in range(num_rounds)]
    return SimpleNamespace(params=state.params + num_rounds), infos

  def info(self, round_index):
    return RoundInfo(
        round_index=round_index,
        elapsed=2.5 * round_index,
        k=1.0,
        k_probe=1.0,
        k_up=1,
        k_down=1,
        minibatch_loss=1.0,
        sign=math.nan,
        contributed=None,
        finite=round_index <= self.finite_until,
    )

  def evaluate(self, params):
    self.evaluated.append(params)
    return Evaluation(self.loss, self.loss, 0.5, np.ones(1), np.ones(1))


class RunTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, [1] * 10),
      # Never past an evaluation, whose weights would be gone by then.
      (3, [3, 1, 3, 1, 2]),
      (99, [4, 4, 2]),
  )
  def test_calls_end_at_evaluations(self, rounds_per_call, calls):
    counter = Counter(rounds_per_call)
    config = Config(num_rounds=10, eval_every=4)
    steps = list(simulation.run(config, counter.simulation))
    self.assertEqual(counter.calls, calls)
    self.assertEqual(counter.evaluated, [4, 8, 10])
    self.assertEqual([step.info.round_index for step in steps], [*range(1, 11)])
    due = [step.info.round_index for step in steps if step.evaluation]
    self.assertEqual(due, [4, 8, 10])

  def test_the_budget_ends_a_run_with_an_evaluation(self):
    """2.5 a round: the third round spends a budget of 6."""
    counter = Counter(1)
    config = Config(num_rounds=10, eval_every=4, time_budget=6.0)
    steps = list(simulation.run(config, counter.simulation))
    self.assertLen(steps, 3)
    self.assertEqual(counter.evaluated, [3])

  @parameterized.parameters(
      ({"finite_until": 2}, 2, "round 3: a gradient"),
      ({"loss": math.nan}, 3, "round 4: the loss"),
      ({"loss": math.inf}, 3, "round 4: the loss"),
  )
  def test_divergence_names_the_round(self, fault, rows, words):
    counter = Counter(1, **fault)
    config = Config(num_rounds=10, eval_every=4)
    steps = simulation.run(config, counter.simulation)
    with self.assertRaisesRegex(simulation.DivergedError, words):
      for step in steps:
        rows -= 1
        self.assertIsNone(step.evaluation)
    self.assertEqual(rows, 0)


class SharedTest(parameterized.TestCase):
  """Runs of one process that are alike trace their rounds once."""

  TINY = Config(
      dataset="digits", partition="iid", num_clients=4, model="mlp",
      method="periodic_k", controller="fixed", batch_size=3, num_rounds=3,
  )

  def counted(self, *configs):
    """The runs, and how often a round was composed for them."""
    with mock.patch.object(
        parts, "compose", side_effect=parts.compose
    ) as compose:
      runs = [agsfl.simulate(config) for config in configs]
      return runs, compose.call_count

  def test_numbers_and_seeds_share(self):
    """Law: a run is bit for bit what it is in a process of its own."""
    changes = (
        {}, {"seed": 1}, {"k": 40.0}, {"learning_rate": 0.2, "comm_time": 3.0}
    )
    configs = [dataclasses.replace(self.TINY, **change) for change in changes]
    simulation.split_round.cache_clear()
    runs, count = self.counted(*configs)
    self.assertGreater(count, 0)
    self.assertEqual(self.counted(*configs)[1], 0)
    self.assertEqual(self.counted(configs[0])[1], 0)
    for config, run in zip(configs, runs, strict=True):
      simulation.split_round.cache_clear()
      (alone,), again = self.counted(config)
      self.assertEqual(again, count)
      self.assertEqual(alone.rows, run.rows)
      np.testing.assert_array_equal(alone.params, run.params)

  @parameterized.parameters({"batch_size": 4}, {"num_devices": 1})
  def test_others_do_not(self, **change):
    agsfl.simulate(self.TINY)
    other = dataclasses.replace(self.TINY, **change)
    self.assertGreater(self.counted(other)[1], 0)

  def test_each_k_is_checked(self):
    agsfl.simulate(self.TINY)
    with self.assertRaisesRegex(ConfigError, "--k=1000000.0: must be at most"):
      agsfl.simulate(dataclasses.replace(self.TINY, k=1e6))

  def test_a_record_that_changed_is_read_again(self):
    folder = self.enterContext(tempfile.TemporaryDirectory())
    record = Path(folder) / "metrics.jsonl"
    replay = dataclasses.replace(
        self.TINY, controller="replay", replay=folder
    )
    for k in (50.0, 70.0):
      record.write_text(f'{{"k": {k}}}\n')
      rows = agsfl.simulate(replay).rows
      self.assertEqual([row["k"] for row in rows], [k] * 3)


if __name__ == "__main__":
  absltest.main()
