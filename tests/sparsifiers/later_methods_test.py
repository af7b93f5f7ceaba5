"""Methods of other papers fit the seams as they are, each in a few lines.

They stand here, not in the package, for what they need of it: k that comes out
(a threshold), values that are not the gradient's (ternary), an estimate in the
place of a residual (EF21), a choice that remembers (age), a k that the gradient
decides (its norm). None of them knows of devices.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl import controllers, devices, rounds
from agsfl.sparsifiers import from_masks
from agsfl.sparsifiers.choice import SPARSE, Choice, selection, weighted_sum
from agsfl.types import Sparsifier, Split
from tests.linear import BATCH, DIM, example, linear_model

BETA = 10.0
LEVEL = 0.3


def largest(values, k):
  """[N, D] bool, the k largest of each row."""
  ranks = jnp.argsort(jnp.argsort(-values, axis=1), axis=1)
  return ranks < k


def of_active(used, weights):
  """Nobody without samples sends."""
  return used & (weights > 0)[:, None]


def threshold():
  """All entries of at least LEVEL: k is what comes of it."""

  def pick(key, accumulated, weights, k, state):
    del key, weights, k
    return jnp.abs(accumulated) >= LEVEL, state

  return from_masks(pick)


def age():
  """Magnitude times the rounds for which nobody sent a coordinate."""

  def pick(key, accumulated, weights, k, ages):
    del key
    used = largest(jnp.abs(accumulated) * (1.0 + ages)[None], k)
    used = of_active(used, weights)
    return used, jnp.where(jnp.any(used, axis=0), 0.0, ages + 1.0)

  return from_masks(pick, lambda num_clients, dim: jnp.zeros(dim))


def by_norm():
  """A quarter of k once the gradient is small beside the largest so far."""

  def pick(key, accumulated, weights, k, most):
    del key, weights
    norm = jnp.linalg.norm(accumulated)
    most = jnp.maximum(most, norm)
    k = jnp.where(norm < 0.7 * most, (k + 3) // 4, k)
    return largest(jnp.abs(accumulated), k), most

  return from_masks(pick, lambda num_clients, dim: jnp.float32(0))


def selected(sent, used, weights):
  """The Selection of what clients send, [N, D]; the server cuts nothing."""
  each = jnp.sum(used, axis=1, dtype=jnp.int32)
  choice = Choice(
      jnp.any(used, axis=0), used, weighted_sum(sent, weights), each
  )
  return selection(choice, jnp.max(each), SPARSE)


def ternary():
  """Of the k largest the sign, and one magnitude for all (Sattler 2019)."""

  def scaled(accumulated, used):
    sizes = jnp.where(used, jnp.abs(accumulated), 0.0)
    count = jnp.maximum(jnp.sum(used, -1, keepdims=True), 1)
    size = jnp.sum(sizes, -1, keepdims=True) / count
    return jnp.where(used, size * jnp.sign(accumulated), 0.0)

  def select(key, accumulated, weights, k, state):
    del key
    used = of_active(largest(jnp.abs(accumulated), k), weights)
    return selected(scaled(accumulated, used), used, weights), state

  def split(accumulated, mask, used):
    del mask
    sent = scaled(accumulated, used)
    return Split(used, sent, accumulated - sent)

  return Sparsifier(lambda num_clients, dim: (), select, split)


def ef21():
  """Estimates of the gradients, mended where they are worst (Richtarik 2021).

  Law: what is applied is the mean of the estimates, and nothing is left over.
  """

  def select(key, gradients, weights, k, estimates):
    del key
    wrong = gradients - estimates
    used = of_active(largest(jnp.abs(wrong), k), weights)
    estimates += jnp.where(used, wrong, 0.0)
    return selected(estimates, used, weights), estimates

  def split(gradient, mask, used):
    del mask
    return Split(used, gradient, jnp.zeros_like(gradient))

  return Sparsifier(
      lambda num_clients, dim: jnp.zeros((num_clients, dim)), select, split
  )


METHODS = {
    "threshold": threshold,
    "age": age,
    "by_norm": by_norm,
    "ternary": ternary,
    "ef21": ef21,
}


def build(method, controller):
  return rounds.build_round(
      linear_model(),
      METHODS[method](),
      controller,
      server=optax.sgd(0.1),
      batch_size=BATCH,
      comm_time=BETA,
  )


def play(simulated, data, num_rounds):
  """States and infos of some rounds, NumPy."""
  state = simulated.init(jax.random.key(0), len(data.counts))
  step = jax.jit(simulated.step)
  states, infos = [jax.device_get(state)], []
  for _ in range(num_rounds):
    state, info = step(data, state)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


@functools.cache
def played(method):
  """Twelve rounds with a k that is learned: states and infos."""
  controller = controllers.sign_interval(9.0, 4.0, 20.0)
  return play(build(method, controller), example(), 12)


class LaterMethodsTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_trains_with_a_learned_k(self, method):
    _, infos = played(method)
    self.assertTrue(all(info.finite for info in infos))
    losses = [info.minibatch_loss for info in infos]
    self.assertLess(losses[-1], losses[0] - 0.3)
    # Time is that of what was really sent, and of one more sample.
    volumes = np.cumsum([2 * (info.k_up + info.k_down) for info in infos])
    want = np.arange(1, 13) * (1 + 1 / BATCH) + BETA * volumes / (2 * DIM)
    np.testing.assert_allclose(
        [info.elapsed for info in infos], want, rtol=1e-5
    )

  @parameterized.parameters(*METHODS)
  def test_is_right_on_two_devices(self, method):
    """Law: what is written for one device holds on any number of them."""
    states, infos = played(method)
    controller = controllers.sign_interval(9.0, 4.0, 20.0)
    mesh = devices.client_mesh(2)
    with jax.set_mesh(mesh):
      data = devices.place_clients(example(), mesh)
      on_two, rows = play(build(method, controller), data, 12)
    np.testing.assert_allclose(on_two[-1].params, states[-1].params, atol=1e-4)
    for row, info in zip(rows, infos, strict=True):
      self.assertEqual((row.k_up, row.k_down), (info.k_up, info.k_down))
      # The last row is padding, a client without samples.
      np.testing.assert_array_equal(
          row.contributed, np.append(info.contributed, 0)
      )

  def test_a_threshold_decides_k(self):
    states, infos = played("threshold")
    # Nothing as large is left.
    self.assertLess(np.abs(states[-1].residual).max(), LEVEL)
    self.assertGreater(len({int(info.k_up) for info in infos}), 2)

  def test_the_norm_decides_k(self):
    ks = {int(info.k_up) for info in play(
        build("by_norm", controllers.fixed(12)), example(), 30
    )[1]}
    self.assertEqual(ks, {3, 12})

  def test_old_coordinates_have_their_turn(self):
    """Law: with k = 1 every coordinate is sent within 40 rounds."""
    states, infos = play(build("age", controllers.fixed(1)), example(), 40)
    self.assertLess(states[-1].sparsifier.max(), 40)
    self.assertTrue(all(info.k_up == 1 for info in infos))

  def test_with_every_entry_an_estimate_is_the_gradient(self):
    """Law: EF21 with k = D is gradient descent."""
    states, _ = play(build("ef21", controllers.fixed(DIM)), example(), 5)
    for before, after in itertools.pairwise(states):
      self.assertFalse(after.residual.any())
      step = np.average(
          after.sparsifier, axis=0, weights=example().counts
      )
      np.testing.assert_allclose(
          after.params, before.params - 0.1 * step, atol=1e-6
      )


if __name__ == "__main__":
  absltest.main()
