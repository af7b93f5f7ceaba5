"""Several local steps, the optimisers, and FedAvg as the sum of both."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import rounds
from agsfl.config import Config
from agsfl.controllers import descent as controllers
from agsfl.data.federated import ClientData
from agsfl.parts import build_training
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.training.client import LocalTraining, build_client
from agsfl.training.optimizers import OPTIMIZERS
from tests import reference
from tests.rounds_test import (
  BATCH,
  BETA,
  COUNTS,
  DIM,
  NUM_CLIENTS,
  RATE,
  Script,
  example,
  linear_model,
  losses_and_gradients,
  one_sample_each,
  play,
)


def build(server, training=None, sparsifier=None):
  return rounds.build_round(
      linear_model(),
      sparsifier or sparsifiers.send_all(),
      controllers.fixed(6),
      server=server,
      training=training,
      batch_size=BATCH,
      comm_time=BETA,
      client_chunk=1,
  )


def trained(params, steps, rate):
  """[N, D] float64: plain SGD at each client, which holds one sample."""
  images, labels = one_sample_each()
  ends = []
  for client in range(NUM_CLIENTS):
    w = params.astype(np.float64)
    own = slice(client, client + 1)
    for _ in range(steps):
      w = w - rate * losses_and_gradients(w, images[own], labels[own])[1][0]
    ends.append(w)
  return np.array(ends)


class FedAvgTest(parameterized.TestCase):

  @parameterized.parameters(1, 5)
  def test_is_the_mean_of_the_clients_models(self, steps):
    """Law (McMahan 2017): w(m) = sum C_i w_i / C, each from w(m-1)."""
    training = LocalTraining(steps, optax.sgd(RATE), RATE)
    states, infos = play(build(optax.sgd(RATE), training), example(), 3)
    for before, after in itertools.pairwise(states):
      models = trained(before.params, steps, RATE)
      want = np.average(models, axis=0, weights=COUNTS)
      np.testing.assert_allclose(after.params, want, atol=1e-5)
      self.assertFalse(after.residual.any())
    # tau of computation, and beta once: dense messages have no indices.
    self.assertAlmostEqual(float(infos[0].elapsed), steps + BETA, places=4)

  def test_one_step_is_a_gradient(self):
    """Law: tau = 1 by the training's path is the path without."""
    training = LocalTraining(1, optax.sgd(RATE), RATE)
    plain, _ = play(build(optax.sgd(RATE)), example(), 4)
    states, _ = play(build(optax.sgd(RATE), training), example(), 4)
    np.testing.assert_allclose(states[-1].params, plain[-1].params, rtol=1e-4)

  def test_steps_far_below_the_weights_are_told(self):
    """Law: tiny steps tell the sum of their gradients, however large w is.

    A softmax takes no notice of 2^20 in all weights; floats there are 1/8
    apart, and the steps some 1e-3.
    """
    model, rate = linear_model(), 1e-3
    client = jax.jit(
        build_client(model, BATCH, LocalTraining(4, optax.sgd(rate), rate))
    )
    data, far = example(), jnp.full(DIM, 2.0**20)
    local = client(jax.random.key(0), far, data, data.starts[0], 1)
    images, labels = one_sample_each()
    _, gradients = losses_and_gradients(np.zeros(DIM), images, labels)
    np.testing.assert_allclose(local.gradient, 4 * gradients[0], rtol=1e-3)

  def test_updates_can_be_sparsified(self):
    """FAB of the accumulated updates, against the oracle."""
    training = LocalTraining(3, optax.sgd(RATE), RATE)
    simulated = build(optax.sgd(RATE), training, sparsifiers.fab_top_k())
    states, infos = play(simulated, example(), 4)
    for before, after, info in zip(states, states[1:], infos, strict=False):
      models = trained(before.params, 3, RATE)
      updates = ((before.params - models) / RATE).astype(np.float32)
      params, residual = reference.gs_round(
          updates, before.residual, np.array(COUNTS), before.params, 6, RATE
      )
      np.testing.assert_allclose(after.params, params, atol=1e-4)
      np.testing.assert_allclose(after.residual, residual, atol=1e-4)
      self.assertEqual(info.k_down, 6)

  def test_every_step_draws_anew(self):
    """With many samples, two steps see two minibatches."""
    training = LocalTraining(2, optax.sgd(0.0), 1e-6)
    seen = []

    def apply(w, images):
      jax.debug.callback(lambda x: seen.append(x), images)
      return images @ w

    model = linear_model()._replace(apply=lambda w, x: apply(
        w.reshape(-1, 3), x
    ))
    client = build_client(model, BATCH, training)
    images = jnp.arange(1000 * 8.0).reshape(1000, 8)
    data = ClientData.of(images, jnp.zeros(1000, int), [np.arange(1000)])
    data = jax.tree.map(jnp.asarray, data)
    client(jax.random.key(0), jnp.zeros(DIM), data, 0, 1000)
    jax.effects_barrier()
    drawn = {float(one[0, 0]) for one in seen if len(one) == BATCH}
    self.assertLen(drawn, 2)

  def test_default_steps_match_the_traffic_of_k(self):
    """tau = ceil(D / 2k): 444,062 / 2,000 is 222.03."""
    config = Config(method="fedavg", k=1000)
    self.assertEqual(build_training(config, 444_062, 0.1).steps, 223)
    self.assertEqual(config.used_controller, "fixed")
    self.assertIsNone(build_training(Config(), 444_062, 0.1))
    self.assertEqual(
        build_training(
            Config(method="fedavg", local_steps=7), 9, 0.1
        ).steps,
        7,
    )


class ServerTest(parameterized.TestCase):

  def test_sgd_is_the_papers_step(self):
    states, _ = play(build(optax.sgd(RATE)), example(), 1)
    images, labels = one_sample_each()
    _, gradients = losses_and_gradients(states[0].params, images, labels)
    b = np.average(gradients, axis=0, weights=COUNTS)
    want = states[0].params - RATE * b
    np.testing.assert_allclose(states[1].params, want, atol=1e-6)

  def test_momentum_is_carried(self):
    """v <- 0.9 v + b, w <- w - eta v, over three rounds."""
    states, _ = play(build(OPTIMIZERS["momentum"](RATE)), example(), 3)
    images, labels = one_sample_each()
    velocity = 0.0
    for before, after in itertools.pairwise(states):
      _, gradients = losses_and_gradients(before.params, images, labels)
      b = np.average(gradients, axis=0, weights=COUNTS)
      velocity = 0.9 * velocity + b
      want = before.params - RATE * velocity
      np.testing.assert_allclose(after.params, want, atol=1e-5)

  def test_adam_is_fed_adam(self):
    """Reddi et al. 2021: b1 0.9, b2 0.99, epsilon 1e-3, bias corrected."""
    states, _ = play(build(OPTIMIZERS["adam"](0.1)), example(), 3)
    images, labels = one_sample_each()
    mean, square = 0.0, 0.0
    pairs = itertools.pairwise(states)
    for step, (before, after) in enumerate(pairs, 1):
      _, gradients = losses_and_gradients(before.params, images, labels)
      b = np.average(gradients, axis=0, weights=COUNTS)
      mean, square = 0.9 * mean + 0.1 * b, 0.99 * square + 0.01 * b**2
      scaled = mean / (1 - 0.9**step)
      scaled /= np.sqrt(square / (1 - 0.99**step)) + 1e-3
      want = before.params - 0.1 * scaled
      np.testing.assert_allclose(after.params, want, atol=1e-4)

  def test_a_trial_of_k_leaves_the_optimiser_alone(self):
    """Law: with a probe, momentum is that of the k used."""
    server = OPTIMIZERS["momentum"](RATE)
    of = lambda controller: rounds.build_round(
        linear_model(),
        sparsifiers.fab_top_k(),
        controller,
        server=server,
        batch_size=BATCH,
        comm_time=BETA,
        client_chunk=1,
    )
    probed, _ = play(of(Script([(6.0, 2.0)])), example(), 4)
    plain, _ = play(of(controllers.fixed(6)), example(), 4)
    np.testing.assert_allclose(
        probed[-1].params, plain[-1].params, rtol=1e-5, atol=1e-6
    )


if __name__ == "__main__":
  absltest.main()
