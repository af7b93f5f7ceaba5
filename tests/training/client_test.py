"""One client: its minibatches, its gradient and its local steps."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl.data.federated import ClientData
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one
from agsfl.tasks import cross_entropy
from agsfl.training import epochs, optimizers
from agsfl.training.client import LocalTraining, as_input, build_client
from tests.linear import (
    BATCH,
    CLASSES,
    COUNTS,
    DIM,
    FEATURES,
    example,
    linear_model,
    losses_and_gradients,
    one_sample_each,
)

RATE = 0.5


def run(client, params, number=0, rate=RATE, seed=0):
  """LocalResult of client `number` of the example."""
  data = jax.tree.map(jnp.asarray, example())
  return jax.jit(client)(
      jax.random.key(seed),
      jnp.asarray(params, jnp.float32),
      data,
      data.starts[number],
      data.counts[number],
      jnp.float32(rate),
  )


def of_client(number):
  features, labels = one_sample_each()
  return features[number : number + 1], labels[number : number + 1]


def some_params(seed=0):
  return np.random.default_rng(seed).normal(size=DIM)


def many_samples(count=1000):
  """One client of samples that tell their own row."""
  features = np.repeat(np.arange(count, dtype=np.float32)[:, None], FEATURES, 1)
  return jax.tree.map(
      jnp.asarray,
      ClientData.of(
          features,
          np.arange(count, dtype=np.int32) % CLASSES,
          [np.arange(count)],
      ),
  )


class GradientTest(parameterized.TestCase):

  @parameterized.parameters(*range(len(COUNTS)))
  def test_is_that_of_its_own_samples(self, number):
    """Law: loss and gradient as by hand; h is a sample of its own."""
    params = some_params()
    local = run(build_client(linear_model(), BATCH), params, number)
    features, labels = of_client(number)
    losses, gradients = losses_and_gradients(params, features, labels)
    np.testing.assert_allclose(local.loss, losses[0], rtol=1e-5)
    np.testing.assert_allclose(local.gradient, gradients[0], atol=1e-5)
    np.testing.assert_array_equal(local.sample, features[0])
    self.assertEqual(local.label, labels[0])

  def test_any_loss(self):
    """Law: the gradient is that of the given loss's mean."""
    halved = lambda logits, labels: 0.5 * cross_entropy(logits, labels)
    params = some_params()
    plain = run(build_client(linear_model(), BATCH), params)
    local = run(build_client(linear_model(), BATCH, loss=halved), params)
    np.testing.assert_allclose(local.loss, plain.loss / 2, rtol=1e-6)
    np.testing.assert_allclose(local.gradient, plain.gradient / 2, rtol=1e-5)

  def test_uint8_is_scaled(self):
    """Law: 0..255 become 0..1; floats and tokens stay as they are."""
    scaled = as_input(jnp.uint8([0, 51, 255]))
    self.assertEqual(scaled.dtype, jnp.float32)
    np.testing.assert_allclose(scaled, [0, 0.2, 1], rtol=1e-6)
    np.testing.assert_array_equal(
        as_input(jnp.float16([0.5, 300])), np.float32([0.5, 300])
    )
    tokens = as_input(jnp.int8([0, 99]))
    self.assertEqual(tokens.dtype, jnp.int32)
    np.testing.assert_array_equal(tokens, [0, 99])

  def test_draws_are_uniform(self):
    """Law: h is any of 10 samples alike; 4 deviations at most."""
    data = many_samples(10)
    client = build_client(linear_model(), BATCH)
    draw = lambda key: client(
        key, jnp.zeros(DIM), data, 0, 10, jnp.float32(1)
    ).sample[0]
    keys = jax.random.split(jax.random.key(0), 10_000)
    counts = np.bincount(jax.jit(jax.vmap(draw))(keys).astype(int))
    self.assertLess(np.max(np.abs(counts - 1000)), 4 * np.sqrt(900))

  @parameterized.parameters(
      LocalTraining(3, optimizers.local("momentum")),
      LocalTraining(3, optimizers.local("sgd"), without_replacement=True),
      LocalTraining(None, optimizers.local("sgd", 0.1, 0.1), 1),
  )
  def test_wider_types_change_nothing(self, *training):
    """Law: the same with 64-bit types allowed, and strict promotion."""
    data, params = many_samples(10), jnp.zeros(DIM)
    training = LocalTraining(*training)
    client = build_client(linear_model(), BATCH, training)
    key, start, count = jax.random.key(3), jnp.int32(0), jnp.int32(10)
    play = lambda: jax.jit(client)(
        key, params, data, start, count, jnp.float32(1e-3)
    )
    want = play()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      got = play()
    for mine, other in zip(got, want, strict=True):
      self.assertEqual(mine.dtype, other.dtype)
      np.testing.assert_array_equal(mine, other)


class LocalStepsTest(parameterized.TestCase):

  @parameterized.parameters(1, 5)
  def test_sgd(self, steps):
    """Law: w - eta times the result is where plain SGD ends."""
    training = LocalTraining(steps, optimizers.local("sgd"))
    params = some_params()
    local = run(build_client(linear_model(), BATCH, training), params)
    w = params.copy()
    for _ in range(steps):
      w = w - RATE * losses_and_gradients(w, *of_client(0))[1][0]
    np.testing.assert_allclose(params - RATE * local.gradient, w, atol=1e-5)
    # The loss is that of the first minibatch.
    losses, _ = losses_and_gradients(params, *of_client(0))
    np.testing.assert_allclose(local.loss, losses[0], rtol=1e-5)

  def test_momentum(self):
    """v <- 0.9 v + g, w <- w - eta v, from v = 0."""
    training = LocalTraining(4, optimizers.local("momentum"))
    params = some_params()
    local = run(build_client(linear_model(), BATCH, training), params)
    w, velocity = params.copy(), 0.0
    for _ in range(4):
      gradient = losses_and_gradients(w, *of_client(0))[1][0]
      velocity = 0.9 * velocity + gradient
      w = w - RATE * velocity
    np.testing.assert_allclose(params - RATE * local.gradient, w, atol=1e-5)

  @parameterized.parameters("sgd", "momentum")
  def test_one_step_is_the_gradient(self, name):
    """Law: with one step the optimiser makes no difference."""
    plain = run(build_client(linear_model(), BATCH), some_params())
    training = LocalTraining(1, optimizers.local(name))
    local = run(build_client(linear_model(), BATCH, training), some_params())
    np.testing.assert_allclose(local.gradient, plain.gradient, rtol=1e-6)

  @parameterized.parameters("sgd", "momentum", "adam")
  def test_eta_is_the_optimisers_learning_rate(self, name):
    """Law: eta beside an optimiser of rate 1 is eta inside the optimiser."""
    params = some_params()
    local = run(
        build_client(
            linear_model(), BATCH, LocalTraining(3, optimizers.local(name))
        ),
        params,
        rate=0.125,
    )
    inside = LocalTraining(3, optimizers.OPTIMIZERS[name](0.125))
    want = run(
        build_client(linear_model(), BATCH, inside), params, rate=1.0
    )
    np.testing.assert_allclose(
        0.125 * local.gradient, want.gradient, rtol=1e-5, atol=1e-6
    )

  def test_one_program_for_all_learning_rates(self):
    """Law: eta is a number of the round, and no shape."""
    training = LocalTraining(2, optimizers.local("adam"))
    client = jax.jit(build_client(linear_model(), BATCH, training))
    data = jax.tree.map(jnp.asarray, example())
    for rate in (0.5, 0.25):
      client(
          jax.random.key(0), jnp.zeros(DIM), data, data.starts[0],
          data.counts[0], jnp.float32(rate),
      )
    self.assertEqual(client._cache_size(), 1)

  def test_steps_far_below_the_weights_add_up(self):
    """Law: tiny steps give the sum of their gradients, however large w is.

    A softmax takes no notice of 2^20 in all weights; floats there are 1/8
    apart, and the steps some 1e-3.
    """
    training = LocalTraining(4, optimizers.local("sgd"))
    client = build_client(linear_model(), BATCH, training)
    local = run(client, np.full(DIM, 2.0**20), rate=1e-3)
    _, gradients = losses_and_gradients(np.zeros(DIM), *of_client(0))
    np.testing.assert_allclose(local.gradient, 4 * gradients[0], rtol=1e-3)

  def test_every_step_draws_anew(self):
    """With many samples, two steps see two minibatches."""
    seen = []

    def apply(params, features):
      jax.debug.callback(lambda x: seen.append(x), features)
      return features @ params.reshape(FEATURES, CLASSES)

    client = build_client(
        linear_model()._replace(apply=apply),
        BATCH,
        LocalTraining(2, optax.sgd(0.0)),
    )
    client(
        jax.random.key(0), jnp.zeros(DIM), many_samples(), 0, 1000,
        jnp.float32(1.0),
    )
    jax.effects_barrier()
    drawn = {tuple(features[:, 0].tolist()) for features in seen}
    self.assertLen(drawn, 2)


# Clients whose samples all differ. With B = 4 the first has a short minibatch.
OWN_COUNTS = (10, 8, 3, 1, 0)


def own_samples():
  """The clients of `OWN_COUNTS`, their rows in no order."""
  rng = np.random.default_rng(5)
  rows = np.split(rng.permutation(sum(OWN_COUNTS)), np.cumsum(OWN_COUNTS)[:-1])
  features = rng.normal(size=(sum(OWN_COUNTS), FEATURES)).astype(np.float32)
  labels = rng.integers(0, CLASSES, sum(OWN_COUNTS)).astype(np.int32)
  return jax.tree.map(jnp.asarray, ClientData.of(features, labels, rows))


@jax.jit
def batch_of(seed, step, count):
  return epochs.batch_of(jax.random.key(seed), step, count, BATCH)


def batches_of(data, number, steps, seed):
  """Rows of the minibatches of one client, those of weight 0 left out."""
  start, count = int(data.starts[number]), int(data.counts[number])
  own = np.asarray(data.order)[start : start + count]
  drawn = [batch_of(seed, step, count) for step in range(steps)]
  return [own[np.asarray(chosen)[weights > 0]] for chosen, weights in drawn]


def textbook(data, params, batches, rate, mu=0.0, decay=0.0, clip=np.inf):
  """w after plain SGD as a textbook has it, float64; and the first loss."""
  features, labels = np.asarray(data.features), np.asarray(data.labels)
  w, velocity, first_losses = np.array(params, np.float64), 0.0, []
  for rows in batches:
    losses, gradients = losses_and_gradients(w, features[rows], labels[rows])
    first_losses.append(np.mean(losses))
    gradient = np.mean(gradients, axis=0)
    norm = np.sqrt(np.sum(gradient**2))
    if norm > clip:
      gradient = clip * gradient / norm
    gradient = gradient + decay * w
    velocity = mu * velocity + gradient
    w = w - rate * velocity
  return w, first_losses[0]


# The way over clients, their training, and the textbook's numbers.
TRAININGS = (
    *(
        (
            way,
            LocalTraining(None, optimizers.local("momentum", 0.125, 1.5), 2),
            {"mu": 0.9, "decay": 0.125, "clip": 1.5},
        )
        for way in (jax.vmap, one_by_one)
    ),
    # Five steps of ten samples end within the second epoch.
    (
        jax.vmap,
        LocalTraining(5, optimizers.local("sgd"), without_replacement=True),
        {},
    ),
    (
        jax.vmap,
        LocalTraining(
            1, optimizers.local("sgd", 0.125, 1.5), without_replacement=True
        ),
        {"decay": 0.125, "clip": 1.5},
    ),
)


class EpochsTest(parameterized.TestCase):

  @parameterized.parameters(*TRAININGS)
  def test_is_the_textbook(self, way, training, numbers):
    """Law: each of all clients ends where its own textbook loop does."""
    data, params = own_samples(), some_params()
    client = build_client(linear_model(), BATCH, training)

    def one(seed, start, count, params, data):
      key = jax.random.key(seed)
      return client(key, params, data, start, count, jnp.float32(RATE))

    seeds = jnp.arange(len(OWN_COUNTS), dtype=jnp.uint32)
    got = jax.device_get(jax.jit(way(one, (0, 0, 0, None, None)))(
        seeds, data.starts, data.counts, jnp.asarray(params, jnp.float32), data
    ))
    for number, count in enumerate(OWN_COUNTS):
      passes = training.epochs and training.epochs * -(-count // BATCH)
      steps = (training.steps or passes) if count else 0
      self.assertEqual(got.steps[number], steps)
      batches = batches_of(data, number, steps, number)
      self.assertEqual(got.seen[number], sum(map(len, batches)))
      if not count:
        continue
      w, loss = textbook(data, params, batches, RATE, **numbers)
      np.testing.assert_allclose(
          params - RATE * got.gradient[number], w, atol=2e-5
      )
      np.testing.assert_allclose(got.loss[number], loss, rtol=1e-5)
      # h is the first sample of the first minibatch.
      np.testing.assert_array_equal(
          got.sample[number], data.features[batches[0][0]]
      )
      self.assertEqual(got.label[number], data.labels[batches[0][0]])

  def test_steps_of_full_batches(self):
    """Law: with C_i a multiple of B, one epoch is C_i / B steps."""
    data = many_samples(12)
    training = LocalTraining(None, optimizers.local("sgd"), 1)
    client = jax.jit(build_client(linear_model(), BATCH, training))
    play = lambda count, rate: client(
        jax.random.key(0), jnp.zeros(DIM), data, 0, jnp.int32(count),
        jnp.float32(rate),
    )
    for count in (4, 8, 12):
      local = play(count, 0.0)
      self.assertEqual(local.steps, count / BATCH)
      self.assertEqual(local.seen, count)
      # At eta = 0 the steps stay at w, so the message is their gradients' sum.
      _, gradients = losses_and_gradients(
          np.zeros(DIM), *(np.asarray(x)[:count] for x in
                           (data.features, data.labels))
      )
      np.testing.assert_allclose(
          local.gradient, np.sum(gradients, axis=0) / BATCH, rtol=1e-5,
          atol=1e-5,
      )
    # One program for all numbers of steps.
    self.assertEqual(client._cache_size(), 1)

  def test_either_steps_or_epochs(self):
    for steps, passes in ((2, 2), (None, None)):
      training = LocalTraining(steps, optimizers.local("sgd"), passes)
      with self.assertRaisesRegex(ConfigError, "^--training=.*one of the two"):
        build_client(linear_model(), BATCH, training)


if __name__ == "__main__":
  absltest.main()
