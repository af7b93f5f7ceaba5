"""Whole rounds with local steps and server optimisers; FedAvg is such a one."""

import itertools

import jax
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import controllers, sparsifiers
from agsfl.config import Config
from agsfl.rounds import build_round
from agsfl.training import optimizers
from agsfl.training.client import LocalTraining
from agsfl.training.schedules import Schedules, build_schedule
from tests import reference
from tests.linear import (
    BATCH,
    COUNTS,
    NUM_CLIENTS,
    example,
    linear_model,
    losses_and_gradients,
    one_sample_each,
)

RATE, BETA = 0.5, 10.0


def play(
    num_rounds, server=None, steps=None, sparsifier=None, controller=None,
    schedules=None,
):
  """States before each round and after the last, and infos, NumPy."""
  simulated = build_round(
      linear_model(),
      sparsifier or sparsifiers.send_all(),
      controller or controllers.fixed(6),
      server=server or optax.sgd(RATE),
      batch_size=BATCH,
      comm_time=BETA,
      learning_rate=RATE,
      training=steps and LocalTraining(steps, optimizers.local("sgd")),
      schedules=schedules,
  )
  data, step = example(), jax.jit(simulated.step)
  state = simulated.init(jax.random.key(0), NUM_CLIENTS)
  states, infos = [state], []
  for _ in range(num_rounds):
    state, info = step(data, state)
    states.append(state)
    infos.append(info)
  return jax.device_get([state.replace(key=None) for state in states]), infos


def trained(params, steps, rate=RATE):
  """[N, D] float64: plain SGD at each client, which holds one sample."""
  features, labels = one_sample_each()
  ends = []
  for client in range(NUM_CLIENTS):
    w, own = params.astype(np.float64), slice(client, client + 1)
    for _ in range(steps):
      w = w - rate * losses_and_gradients(w, features[own], labels[own])[1][0]
    ends.append(w)
  return np.array(ends)


class FedAvgTest(parameterized.TestCase):

  @parameterized.parameters(1, 5)
  def test_is_the_mean_of_the_clients_models(self, steps):
    """Law (McMahan 2017): w(m) = sum C_i w_i / C, each from w(m-1)."""
    states, infos = play(3, steps=steps)
    for before, after in itertools.pairwise(states):
      models = trained(before.params, steps)
      want = np.average(models, axis=0, weights=COUNTS)
      np.testing.assert_allclose(after.params, want, atol=1e-5)
      self.assertFalse(after.residual.any())
    # tau of computation, and beta once: dense messages have no indices.
    self.assertAlmostEqual(float(infos[0].elapsed), steps + BETA, places=4)

  @parameterized.parameters("cosine", "constant")
  def test_learning_rates_by_round(self, name):
    """Law: in round m clients and server have their eta times its factor.

    2 rounds of warm-up, then 2 of the cosine, then a client's eta of 0.
    """
    schedules = Schedules(*(
        build_schedule(one, warmup_rounds=2, horizon=4)
        for one in ("cosine", name)
    ))
    states, _ = play(5, steps=3, schedules=schedules)
    own = (0.5, 1, 1, 0.5, 0)
    factors = {"cosine": own, "constant": (0.5, 1, 1, 1, 1)}[name]
    for m, (before, after) in enumerate(itertools.pairwise(states)):
      # A message is in units of the gradient, so it has a limit at eta = 0.
      rate = RATE * max(own[m], 1e-6)
      models = trained(before.params, 3, rate)
      mean = np.average(models, axis=0, weights=COUNTS)
      message = (before.params - mean) / rate
      want = before.params - RATE * factors[m] * message
      np.testing.assert_allclose(after.params, want, atol=1e-5)

  def test_updates_can_be_sparsified(self):
    """FAB of the accumulated updates, against the oracle."""
    states, infos = play(4, steps=3, sparsifier=sparsifiers.fab_top_k())
    for before, after, info in zip(states, states[1:], infos, strict=False):
      models = trained(before.params, 3)
      updates = ((before.params - models) / RATE).astype(np.float32)
      params, residual = reference.gs_round(
          updates, before.residual, np.array(COUNTS), before.params, 6, RATE
      )
      np.testing.assert_allclose(after.params, params, atol=1e-4)
      np.testing.assert_allclose(after.residual, residual, atol=1e-4)
      self.assertEqual(info.k_down, 6)

  def test_default_steps_match_the_traffic_of_k(self):
    """tau = ceil(D / 2k): 444,062 / 2,000 is 222.03."""
    config = Config(method="fedavg", k=1000)
    self.assertEqual(config.used_local_steps(444_062), 223)
    self.assertEqual(config.used_controller, "fixed")
    config = Config(method="fedavg", local_steps=7)
    self.assertEqual(config.used_local_steps(444_062), 7)
    self.assertEqual(Config().used_local_steps(444_062), 1)


class ServerTest(parameterized.TestCase):

  def test_momentum_is_carried(self):
    """v <- 0.9 v + b, w <- w - eta v, over three rounds."""
    states, _ = play(3, optimizers.server_of("momentum", RATE))
    features, labels = one_sample_each()
    velocity = 0.0
    for before, after in itertools.pairwise(states):
      _, gradients = losses_and_gradients(before.params, features, labels)
      b = np.average(gradients, axis=0, weights=COUNTS)
      velocity = 0.9 * velocity + b
      want = before.params - RATE * velocity
      np.testing.assert_allclose(after.params, want, atol=1e-5)

  def test_a_trial_of_k_leaves_the_optimiser_alone(self):
    """Law: a probe changes nothing but k; here k stays, and is the same."""
    server = optimizers.server_of("momentum", RATE)
    periodic = sparsifiers.periodic_k()
    still = controllers.sign_descent(6, 6, 6)  # It probes, and cannot move.
    probed, infos = play(4, server, sparsifier=periodic, controller=still)
    plain, _ = play(4, server, sparsifier=periodic)
    self.assertLess(infos[0].k_probe, infos[0].k)
    np.testing.assert_allclose(
        probed[-1].params, plain[-1].params, rtol=1e-5, atol=1e-6
    )


if __name__ == "__main__":
  absltest.main()
