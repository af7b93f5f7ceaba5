"""What is learned: losses and shares by hand, and runs of each task."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl.config import Config
from agsfl.data.federated import (
    ClientData,
    FederatedData,
    fingerprint,
    validated,
)
from agsfl.errors import ConfigError
from agsfl.tasks import TASKS

# One token of two is certain in the first place; all are alike elsewhere.
LOGITS = jnp.array([
    [[99.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
    [[99.0, 0.0], [0.0, 0.0], [0.0, 0.0]],
])
TOKENS = jnp.array([[0, 1, -1], [1, -1, -1]])


class LossTest(absltest.TestCase):

  def test_cross_entropy_by_hand(self):
    """Equal logits over 4 classes cost log 4; certainty costs nothing."""
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 99.0, 0.0, 0.0]])
    task = TASKS["classification"]
    losses = task.loss(logits, jnp.array([2, 1]))
    np.testing.assert_allclose(losses, [np.log(4), 0], atol=1e-6)
    right = task.share_right(logits, jnp.array([2, 1]))
    np.testing.assert_array_equal(right, [0, 1])

  def test_tokens_by_hand(self):
    """Places without a label count neither in the loss nor in the share."""
    task = TASKS["next_token"]
    np.testing.assert_allclose(
        task.loss(LOGITS, TOKENS), [np.log(2) / 2, 99], rtol=1e-6
    )
    np.testing.assert_array_equal(
        task.share_right(LOGITS, TOKENS), np.float32([1 / 2, 0])
    )
    np.testing.assert_array_equal(task.label_counts(np.asarray(TOKENS)), [2, 1])
    # One label for each sample, and one sample without labels.
    last = TOKENS[:, 0]
    np.testing.assert_allclose(task.loss(LOGITS[:, 0], last), [0, 99])
    np.testing.assert_array_equal(task.share_right(LOGITS[:, 0], last), [1, 0])
    nothing = jnp.full_like(TOKENS, -1)
    gradient = jax.grad(lambda x: jnp.sum(task.loss(x, nothing)))(LOGITS)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(task.loss(LOGITS, nothing), 0)

  def test_squared_error_by_hand(self):
    task = TASKS["regression"]
    outputs = jnp.array([[1.0, 5.0], [2.0, 2.0]])
    labels = jnp.array([[0.0, 2.0], [2.0, 2.0]])
    np.testing.assert_array_equal(task.loss(outputs, labels), [5, 0])
    np.testing.assert_array_equal(
        task.loss(outputs[:, :1], labels[:, 0]), [1, 0]
    )
    with self.assertRaisesRegex(ConfigError, "^--task=regr.*: .* 1 outputs"):
      task.loss(outputs, labels[:, 0])


class Bigram(nn.Module):
  """The next token by the last one: a table of logits."""

  num_tokens: int

  @nn.compact
  def __call__(self, x):
    zeros = nn.initializers.zeros_init()
    return nn.Embed(self.num_tokens, self.num_tokens, embedding_init=zeros)(x)


class Line(nn.Module):
  """A line through the features, from 0."""

  num_outputs: int

  @nn.compact
  def __call__(self, x):
    zeros = nn.initializers.zeros_init()
    return nn.Dense(self.num_outputs, kernel_init=zeros)(x)


class Wrong:
  """A network with a parameter of another name."""

  def init(self, key, features):
    return jnp.zeros(features.size)

  def apply(self, params, features, rng, train):
    return features @ params


def config(**settings):
  return Config(**{
      "num_rounds": 30, "eval_every": 30, "learning_rate": 1.0,
      "batch_size": 16, "method": "send_all", "num_devices": 1, **settings,
  })


class RunTest(parameterized.TestCase):

  @parameterized.parameters(True, False)
  def test_next_token(self, sequences):
    """Law: weights, losses and perplexity as in NumPy, token by token.

    The text goes round a circle of 5 letters, so a table learns it.
    """
    text = np.arange(400) % 5
    starts = np.random.default_rng(0).integers(0, 300, 90)
    x = np.stack([text[i : i + 4] for i in starts]).astype(np.uint8)
    y = np.stack([text[i + 1 : i + 5] for i in starts])
    if sequences:
      y[::3, 2:] = -1
      y[1] = -1
    data = agsfl.from_arrays(
        x, y if sequences else y[:, -1], np.arange(90) % 3,
        np.arange(90) % 5 > 0, task="next_token",
    )
    self.assertEqual(data.task, "next_token")
    self.assertEqual(
        data.form, agsfl.Form((4,), (4, 5) if sequences else (5,), 5)
    )
    run = agsfl.simulate(config(), data=data, model=Bigram(5))
    last = run.rows[-1]
    self.assertEqual(last["test_accuracy"], 1)

    # All losses anew in float64, over tokens.
    table = run.params.reshape(5, 5).astype(np.float64)
    logs = table - np.log(np.exp(table).sum(axis=1, keepdims=True))
    labels = y if sequences else np.where(np.arange(4) == 3, y, -1)
    rows = np.arange(90) % 5 == 0
    tested, wanted = x[rows][labels[rows] >= 0], labels[rows][labels[rows] >= 0]
    loss = -logs[tested, wanted].mean()
    # The mean over tokens is the mean over samples, each by its tokens.
    self.assertAlmostEqual(last["test_loss"], loss, 5)
    self.assertAlmostEqual(last["test_perplexity"], math.exp(loss), 4)
    self.assertEqual(run.clients["test_accuracy"], [1, 1, 1])

  @parameterized.parameters(1, 2)
  def test_regression(self, size):
    """Law: least squares finds the line; the root of its loss is in rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3)).astype(np.float32)
    slopes = rng.normal(size=(3, size))
    y = x @ slopes + 0.5
    data = agsfl.from_arrays(
        x, y[:, 0] if size == 1 else y, task="regression"
    )
    self.assertEqual(data.form, agsfl.Form((3,), (size,)))
    run = agsfl.simulate(
        config(learning_rate=0.1 * size, num_rounds=100), data=data,
        model=Line(size),
    )
    bias, kernel = np.split(run.params, [size])
    np.testing.assert_allclose(bias, 0.5, atol=0.01)
    np.testing.assert_allclose(kernel.reshape(3, size), slopes, atol=0.01)
    last = run.rows[-1]
    self.assertAlmostEqual(last["test_rmse"], last["test_loss"] ** 0.5, 6)
    self.assertIsNone(last["test_accuracy"])
    self.assertNotIn("test_perplexity", last)

  @parameterized.parameters(
      {}, {"clients_per_round": 3},
      {"buffer_size": 2, "clients_per_round": 3, "clock": "phones",
       "seconds_per_sample": 0.01},
  )
  def test_tokens_on_several_devices(self, **settings):
    """Law: sequences of labels go to clients on 3 devices as on one."""
    rng = np.random.default_rng(1)
    x = rng.integers(0, 5, (60, 4))
    y = np.where(rng.random((60, 4)) < 0.3, -1, rng.integers(0, 5, (60, 4)))
    data = agsfl.from_arrays(x, y, np.arange(60) % 6, task="next_token")
    runs = [
        agsfl.simulate(
            config(num_rounds=6, num_devices=number, **settings),
            data=data, model=Bigram(5),
        )
        for number in (1, 3)
    ]
    np.testing.assert_allclose(runs[0].params, runs[1].params, atol=1e-6)
    for name in ("train_loss", "test_loss", "test_accuracy"):
      self.assertAlmostEqual(runs[0].rows[-1][name], runs[1].rows[-1][name], 5)

  def test_a_loss_of_ones_own(self):
    """Law: what is derived from the task's loss is not told of another one."""
    data = agsfl.from_arrays(np.eye(20), np.arange(20.0), task="regression")
    run = agsfl.simulate(
        config(num_rounds=1), data=data, model=Line(1),
        loss=lambda outputs, labels: abs(outputs[:, 0] - labels),
    )
    self.assertNotIn("test_rmse", run.rows[-1])
    for wrong, shape in ((lambda a, b: a, "250, 1"), (lambda a, b: 0.0, "")):
      with self.assertRaisesRegex(
          ConfigError, rf"^--loss: must give \[B\].* \[{shape}\]"
      ):
        agsfl.simulate(
            config(num_rounds=1), data=data, model=Line(1), loss=wrong
        )

  def test_what_does_not_fit_the_task(self):
    """Each mistake in one line, before anything is computed."""
    x = np.arange(400).reshape(100, 4) % 7
    tokens = agsfl.from_arrays(x, x[:, 0], task="next_token")
    numbers = agsfl.from_arrays(np.eye(100), np.arange(100) % 2)
    for words, data, settings, model in (
        ("--model=mlp: does not take tokens; lstm and transformer do",
         tokens, {"model": "mlp"}, None),
        ("--standardize=True: must be false with tokens",
         tokens, {"model": "lstm", "standardize": True}, None),
        ("--task=regression: must be next_token, the task of the data",
         tokens, {"model": "lstm", "task": "regression"}, None),
        # Only tokens have outputs of which the last one counts.
        ("--model=Line: has outputs of shape 8x2 .* need 2",
         agsfl.from_arrays(np.zeros((40, 8, 8)), np.arange(40) % 2), {},
         Line(2)),
        ("--model=Wrong: apply needs the parameter 'rng'", numbers, {},
         Wrong()),
    ):
      with self.assertRaisesRegex(ConfigError, f"^{words}"):
        agsfl.simulate(config(**settings), data=data, model=model)
    # A table of whole numbers is no text.
    table = agsfl.from_arrays(x, np.arange(100) % 2)
    self.assertEqual(table.task, "classification")
    agsfl.simulate(config(model="logistic", num_rounds=1), data=table)

  def test_large_vocabularies(self):
    """Law: with [C] labels a text may have as many tokens as with [C, T]."""
    x = np.random.default_rng(0).integers(0, 5000, (100, 80))
    data = agsfl.from_arrays(x, x[:, 0], task="next_token")
    self.assertEqual(validated(data).num_classes, 5000)

  def test_labels_that_are_all_unknown(self):
    x = np.arange(40).reshape(10, 4) % 3
    y = np.where(np.arange(10)[:, None] < 5, x, -1)
    with self.assertRaisesRegex(ConfigError, "one from 0 for testing, all are"):
      agsfl.from_arrays(x, y, is_train=np.arange(10) < 5, task="next_token")

  def test_own_data_are_checked(self):
    """A data set made by hand, with one thing wrong in it."""

    def own(**changes):
      fields = {
          "x": np.array([[0, 1], [1, 2]]), "y": np.array([[1, 2], [2, 0]]),
          "classes": 3, "task": "next_token",
      } | changes
      clients = ClientData.of(fields["x"], fields["y"], [[0]])
      return FederatedData(
          clients, np.array([1]), np.array([0]), np.array(["a"]),
          fields["classes"], fields["task"],
      )

    run = agsfl.simulate(config(num_rounds=1), data=own(), model=Bigram(3))
    self.assertEqual(run.config["task_used"], "next_token")
    for words, changes in (
        ("task=tokens: must be one of", {"task": "tokens"}),
        ("num_classes must be 3, found 2",
         {"classes": 2, "y": np.array([[1, 1], [1, 0]])}),
        ("labels must lie in -1 to 2, found -2",
         {"y": np.array([[1, -2], [2, 0]])}),
        ("features must be tokens", {"x": np.zeros((2, 2), np.float32)}),
        ("num_classes must be 2, found 3", {"task": "regression"}),
        ("labels must be one whole number", {"task": "classification"}),
    ):
      with self.assertRaisesRegex(ConfigError, words):
        agsfl.simulate(config(num_rounds=1), data=own(**changes), model=Line(3))
    # The same arrays that mean another thing are other data.
    x, y = np.array([[0, 1], [1, 2]]), np.array([0, 1])
    self.assertNotEqual(*(
        fingerprint(own(x=x, y=y, task=task))
        for task in ("classification", "next_token")
    ))


if __name__ == "__main__":
  absltest.main()
