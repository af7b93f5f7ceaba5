"""A run as it goes, on an evaluation that only counts."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import recorder
from agsfl.config import Config
from agsfl.errors import ConfigError, DivergedError
from agsfl.records.checkpoints import States
from agsfl.records.fairness import SPREAD
from agsfl.records.folder import Extent, RunFolder
from agsfl.records.summary import summarize
from agsfl.training.evaluation import Evaluation
from agsfl.types import RoundInfo

# Two clients, and one of padding.
CONTRIBUTED = np.array([3, 1, 99], np.int32)


def data():
  """Six samples of two clients; the last two are for tests."""
  return agsfl.from_arrays(
      np.arange(12.0).reshape(6, 2), [0, 1, 0, 1, 0, 1],
      clients=list("ababab"), is_train=[True] * 4 + [False] * 2,
  )


# Each client's loss and accuracy.
EACH = np.array([1.5, 0.25]), np.array([0.25, 0.75])
EVALUATION = Evaluation(1.0, 0.75, 0.5, *EACH)


def info(number, **others):
  """A round of 2.5 units, as it comes from the device."""
  return RoundInfo(**{
      "round_index": np.int32(number),
      "elapsed": np.float32(2.5 * number),
      "k": np.float32(1.5),
      "k_probe": np.float32(1.25),
      "k_up": np.int32(2),
      "k_down": np.int32(1),
      "volume_up": np.float32(4.0),
      "volume_down": np.float32(2.0),
      "minibatch_loss": np.float32(0.5),
      "sign": np.float32(-1.0),
      "has_sign": np.bool_(True),
      "contributed": CONTRIBUTED,
      "finite": np.bool_(True),
      "metrics": {},
      **others,
  })


def state(weight=0.25):
  return SimpleNamespace(params=np.full(3, weight, np.float32))


class RecorderTest(parameterized.TestCase):

  def recorder(self, loss=1.0, folder=None, **settings):
    """A recorder; the weights that it evaluates are in `evaluated`."""
    self.evaluated = []

    def evaluate(params):
      self.evaluated.append(float(params[0]))
      return Evaluation(loss, 0.75, 0.5, *EACH)

    config = Config(**{"num_rounds": 10, "eval_every": 4, **settings})
    return recorder.Recorder(
        config, data(), evaluate, description={"k": 1}, folder=folder
    )

  @parameterized.parameters(1, 3, 99)
  def test_rows_and_end(self, rounds):
    """Every fourth round and the last one are evaluated, whatever a call has.

    Contributions add up, those of padding left out.
    """
    one = self.recorder()
    one.begin(state(7.0))
    while one.outcome is None:
      done = len(one.rows)
      length = min(rounds, one.rounds_ahead)
      numbers = range(done + 1, done + length + 1)
      one.add([info(i) for i in numbers], state(numbers[-1]), 1.0)
    run = one.outcome
    self.assertEqual(self.evaluated, [7.0, 4.0, 8.0, 10.0])
    self.assertEqual([row["round"] for row in run.rows], [*range(1, 11)])
    self.assertEqual([row["round"] for row in run.evaluated], [0, 4, 8, 10])
    self.assertEqual(run.series("test_loss")[0].tolist(), [0, 10, 20, 25])
    self.assertContainsSubset(
        {"round": 0, "time": 0.0, "train_loss": 1.0, "test_accuracy": 0.5},
        run.start,
    )
    self.assertNotIn("k", run.start)
    self.assertEqual(run.contributed.tolist(), [30, 10])
    self.assertEqual(run.clients["rounds"], [10, 10])
    records = run.client_evaluations
    self.assertEqual(records["round"].tolist(), [0, 4, 8, 10])
    self.assertEqual(records["test_loss"].tolist(), [EACH[0].tolist()] * 4)
    self.assertEqual(records["test_accuracy"].tolist(), [EACH[1].tolist()] * 4)
    self.assertEqual(run.params.tolist(), [10.0] * 3)
    self.assertEqual(run.config, {"k": 1})
    self.assertEqual(run.summary["round"], 10)
    self.assertEqual(run.summary["test_loss"], 0.75)

  def test_a_few_clients_a_round(self):
    """Contributions and rounds are of those that took part, by their numbers.

    Two empty places have numbers from N = 2.
    """
    one = self.recorder(num_rounds=3)
    one.add(
        [
            info(1, clients=np.int32([1, 2, 3]), contributed=CONTRIBUTED),
            info(2, clients=np.int32([0, 1, 2]), contributed=CONTRIBUTED),
            info(3, clients=np.int32([1, 2, 9]), contributed=CONTRIBUTED),
        ],
        state(), 1.0,
    )
    self.assertEqual(one.outcome.clients["rounds"], [1, 3])
    self.assertEqual(one.outcome.contributed.tolist(), [3, 3 + 1 + 3])

  def test_a_row(self):
    """By hand: 4 bytes a number; an estimate that was not made is null."""
    self.assertEqual(
        recorder.as_row(info(2, metrics={"norm": np.float32(0.5)})),
        {
            "round": 2, "time": 5.0, "k": 1.5, "k_probe": 1.25, "k_up": 2,
            "k_down": 1, "bytes_up": 16, "bytes_down": 8,
            "minibatch_loss": 0.5, "sign": -1, "norm": 0.5,
        },
    )
    self.assertIsNone(recorder.as_row(info(2, has_sign=False))["sign"])

  def test_the_row_of_an_evaluation(self):
    """By hand, of accuracies 1/4 and 3/4: 1 / (2 (1/16 + 9/16)) = 0.8."""
    row = recorder.as_row(info(2), EVALUATION)
    for name in recorder.as_row(info(2)):
      del row[name]
    self.assertEqual(row, {
        "train_loss": 1.0, "test_loss": 0.75, "test_accuracy": 0.5,
        "client_test_accuracy_mean": 0.5, "client_test_accuracy_std": 0.25,
        "client_test_accuracy_worst10": 0.25,
        "client_test_accuracy_best10": 0.75, "client_test_accuracy_jain": 0.8,
    })

  @parameterized.parameters(math.nan, math.inf, -math.inf)
  def test_what_json_has_no_word_for(self, value):
    """Null in the row: the user's own numbers and losses may overflow."""
    value = np.float32(value)
    evaluation = Evaluation(1.0, value, value, *[np.full(2, np.nan)] * 2)
    row = recorder.as_row(
        info(1, minibatch_loss=value, metrics={"norm": value}), evaluation
    )
    for name in (
        "minibatch_loss", "norm", "test_loss", "test_accuracy", *SPREAD
    ):
      self.assertIsNone(row[name], name)
    json.dumps(row, allow_nan=False)

  def test_a_metric_is_one_number(self):
    with self.assertRaisesRegex(
        ConfigError, "^--metrics=norm: must be a single number$"
    ):
      recorder.as_row(info(1, metrics={"norm": np.zeros(3)}))

  def test_the_names_of_rows_and_summaries(self):
    """Law: none of them is free for a metric."""
    row = recorder.as_row(info(1), EVALUATION)
    summary = summarize(row, [1.0], {"contributed": [1, 2]})
    self.assertContainsSubset(row, summary)
    for name in summary:
      with self.assertRaisesRegex(
          ConfigError, f"^--metrics={name}: must be another name"
      ):
        agsfl.simulate(Config(), metrics={name: lambda state, info: info.k})

  @parameterized.parameters(
      ({"time_budget": 6.0}, 3),
      ({"time_budget": 7.5}, 3),  # spent to the last bit
      ({"time_budget": 7.6}, 4),
      ({"time_budget": 1e9}, 10),
  )
  def test_the_budget(self, settings, rounds):
    """At 2.5 units a round; the round that spends it is the last one."""
    one = self.recorder(**settings)
    while one.outcome is None:
      one.add([info(len(one.rows) + 1)], state(), 1.0)
    self.assertLen(one.rows, rounds)
    self.assertIn("test_loss", one.rows[-1])

  @parameterized.parameters(
      ({"finite": False}, 1.0, 3, "round 3: a gradient is not finite"),
      ({"k": np.float32(np.nan)}, 1.0, 3, "round 3: the controller's k is not"),
      ({}, math.nan, 4, "round 4: the loss is not finite; .*learning_rate"),
      ({}, math.inf, 4, "round 4: the loss is not finite"),
  )
  def test_divergence_names_the_round(self, fault, loss, rounds, words):
    """The round has no row."""
    one = self.recorder(loss)
    for number in range(1, rounds + 1):
      self.assertIsNone(one.outcome)
      one.add([info(number, **(fault if number == 3 else {}))], state(), 1.0)
    self.assertIsInstance(one.outcome, DivergedError)
    self.assertRegex(str(one.outcome), words)
    self.assertLen(one.rows, rounds - 1)

  @parameterized.parameters(
      # The server has the clients' rate unless it has its own.
      ({"learning_rate": 3.0}, "--learning_rate than 3"),
      ({"server_optimizer": "adam", "learning_rate": 3.0},
       "--learning_rate than 3"),
      ({"server_learning_rate": 1e30}, "--server_learning_rate than 1e+30"),
      # Clients that train by themselves have a rate of their own.
      *(
          (
              {"server_learning_rate": 0.5, "learning_rate": 3.0, **own},
              "--learning_rate than 3 or a smaller --server_learning_rate "
              "than 0.5",
          )
          for own in (
              {"local_steps": 2}, {"local_optimizer": "adam"},
              {"method": "fedavg"},
          )
      ),
  )
  def test_divergence_names_the_flag(self, settings, flags):
    """Law: those rates that the weights depend on, and no others."""
    self.assertEqual(
        recorder.diverged(7, "the loss", Config(**settings)),
        f"round 7: the loss is not finite; a smaller {flags} may help",
    )

  @parameterized.parameters("row", "finish")
  def test_a_disk_that_refuses_ends_the_run(self, step):
    """Its outcome is the refusal; nothing is raised at other lanes."""
    full = ConfigError("--workdir=a: must be a folder that can be written")
    files = mock.create_autospec(RunFolder, instance=True)
    getattr(files, step).side_effect = full
    files.workdir = Path("a")
    one = self.recorder(folder=files, num_rounds=1)
    one.add([info(1)], state(), 1.0)
    self.assertIs(one.outcome, full)

  @parameterized.parameters(True, False)
  def test_states_of_another_run_stay(self, keeps_state):
    """A run whose folder is another run's by now removes nothing there."""
    gone = ConfigError("--workdir=a: another program removed this folder")
    files = mock.create_autospec(RunFolder, instance=True)
    files.workdir = Path("a")
    states = mock.create_autospec(States, instance=True)
    one = recorder.Recorder(
        Config(num_rounds=1), data(), lambda params: EVALUATION,
        description={}, folder=files, states=states, keeps_state=keeps_state,
    )
    one.add([info(1)], state(), 1.0)
    files.sync.side_effect = gone
    one.settle()
    self.assertIs(one.outcome, gone)
    states.remove.assert_not_called()
    states.keep_only.assert_not_called()

  def test_wall_times(self):
    """Of rounds; the first, with compilation, stands apart."""
    one = self.recorder(num_rounds=4)
    one.add([info(1)], state(), 8.0)
    one.add([info(2), info(3), info(4)], state(), 6.0)
    summary = one.outcome.summary
    self.assertEqual(summary["first_round_seconds"], 8.0)
    self.assertEqual(summary["median_round_seconds"], 2.0)
    self.assertGreater(summary["peak_memory_mb"], 1.0)


class ExtentTest(parameterized.TestCase):

  @parameterized.parameters(
      (3, None, 2, 9e9, False), (3, None, 3, 0.0, True),
      (9, 5.0, 2, 4.99, False), (9, 5.0, 2, 5.0, True), (9, 5.0, 2, 5.1, True),
      # 7.6 is above the number of float32 that is nearest to it.
      (9, 7.6, 2, float(np.float32(7.6)), True),
      (9, 7.6, 2, float(np.nextafter(np.float32(7.6), np.float32(0))), False),
  )
  def test_reached(self, num_rounds, budget, rounds, elapsed, reached):
    extent = Extent(num_rounds, budget)
    self.assertEqual(extent.is_reached(rounds, {"time": elapsed}), reached)


if __name__ == "__main__":
  absltest.main()
