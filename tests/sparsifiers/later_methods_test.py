"""Methods of other papers fit the seams as they are, each in a few lines.

They stand here, not in the package, for what they need of it: k that comes out
(a threshold), values that are not the gradient's (ternary), an estimate in the
place of a residual (EF21), a choice that remembers (age), a k that the gradient
decides (its norm).
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax import lax

from agsfl import devices, rounds
from agsfl.controllers import descent as controllers
from agsfl.types import Selection, Sparsifier, Split
from tests.rounds_test import BATCH, BETA, DIM, example, linear_model, play

LEVEL = 0.3


def largest(values, ks):
  """[N, D] bool, the k largest of each row; ks [N, 1] i32."""
  ranks = jnp.argsort(jnp.argsort(-values, axis=1), axis=1)
  return ranks < ks


def selected(sent, used, weights, axes, clients):
  """The Selection of what clients send, [N, D]; the server cuts nothing."""
  each = jnp.sum(used, axis=1, dtype=jnp.int32)
  mask = lax.pmax(jnp.any(used, axis=0).astype(jnp.int32), axes) > 0
  k_up, k_down = lax.pmax(jnp.max(each), axes), jnp.sum(mask)
  return Selection(
      mask=mask,
      aggregate=lax.psum(weights @ sent, axes),
      k_up=k_up,
      k_down=k_down,
      volume_up=2.0 * k_up,
      volume_down=2.0 * k_down,
      contributed=each,
      clients=clients,
  )


def of_clients(weights, k):
  """[N, 1] i32, k of each client: 0 of those without weight."""
  return jnp.where(weights > 0, k, 0)[:, None]


def of_mask(pick, init, axes):
  """A method that sends entries of the gradient as they are.

  Args:
    pick: (accumulated, ks [N, 1] i32, state) -> ([N, D] bool, state).
    init: as of a Sparsifier.
    axes: mesh axes.
  """

  def select(key, accumulated, weights, k, state):
    del key
    used, state = pick(accumulated, of_clients(weights, k), state)
    sent = jnp.where(used, accumulated, 0.0)
    return selected(sent, used, weights, axes, used), state

  def split(accumulated, mask, used):
    del mask
    return Split(
        used,
        jnp.where(used, accumulated, 0.0),
        jnp.where(used, 0.0, accumulated),
    )

  return Sparsifier(init, select, split)


def threshold(axes):
  """All entries of at least LEVEL: k is what comes of it."""

  def pick(accumulated, ks, state):
    return (jnp.abs(accumulated) >= LEVEL) & (ks > 0), state

  return of_mask(pick, lambda num_clients, dim: (), axes)


def age(axes):
  """Magnitude beside the rounds for which nobody sent a coordinate."""

  def pick(accumulated, ks, ages):
    used = largest(jnp.abs(accumulated) * (1.0 + ages)[None], ks)
    heard = jnp.any(used, axis=0).astype(jnp.int32)
    heard = lax.pmax(heard, axes) > 0
    return used, jnp.where(heard, 0.0, ages + 1.0)

  return of_mask(pick, lambda num_clients, dim: jnp.zeros(dim), axes)


def by_norm(axes):
  """A quarter of k once the gradient is small beside the largest so far."""

  def pick(accumulated, ks, most):
    norm = jnp.sqrt(lax.psum(jnp.sum(jnp.square(accumulated)), axes))
    most = jnp.maximum(most, norm)
    ks = jnp.where(norm < 0.7 * most, (ks + 3) // 4, ks)
    return largest(jnp.abs(accumulated), ks), most

  return of_mask(pick, lambda num_clients, dim: jnp.float32(0), axes)


def ternary(axes):
  """Of the k largest the sign, and one magnitude for all (Sattler 2019)."""

  def scaled(accumulated, used):
    sizes = jnp.where(used, jnp.abs(accumulated), 0.0)
    count = jnp.maximum(jnp.sum(used, -1, keepdims=True), 1)
    size = jnp.sum(sizes, -1, keepdims=True) / count
    return jnp.where(used, size * jnp.sign(accumulated), 0.0)

  def select(key, accumulated, weights, k, state):
    del key
    used = largest(jnp.abs(accumulated), of_clients(weights, k))
    sent = scaled(accumulated, used)
    return selected(sent, used, weights, axes, used), state

  def split(accumulated, mask, used):
    del mask
    sent = scaled(accumulated, used)
    return Split(used, sent, accumulated - sent)

  return Sparsifier(lambda num_clients, dim: (), select, split)


def ef21(axes):
  """Estimates of the gradients, mended where they are worst (Richtarik 2021).

  Law: what is applied is the mean of the estimates, and nothing is left over.
  """

  def select(key, gradients, weights, k, estimates):
    del key
    wrong = gradients - estimates
    used = largest(jnp.abs(wrong), of_clients(weights, k))
    estimates += jnp.where(used, wrong, 0.0)
    return selected(estimates, used, weights, axes, used), estimates

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


def build(method, controller, axes=()):
  return rounds.build_round(
      linear_model(),
      METHODS[method](axes),
      controller,
      server=optax.sgd(0.1),
      batch_size=BATCH,
      comm_time=BETA,
      client_chunk=None,
      axes=axes,
  )


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
  def test_clients_may_be_split_over_devices(self, method):
    states, infos = played(method)
    controller = controllers.sign_interval(9.0, 4.0, 20.0)
    mesh, key = devices.client_mesh(2), jax.random.key(0)
    split = devices.split_round(
        build(method, controller, (devices.AXIS,)), 12, mesh, key
    )
    clients = devices.split_clients(example(), mesh)
    state, rows, _ = split.chunk(
        key,
        clients,
        split.init(key, len(clients.counts)),
        jnp.int32(12),
        jnp.float32(jnp.inf),
    )
    np.testing.assert_allclose(state.params, states[-1].params, atol=1e-4)
    np.testing.assert_array_equal(
        rows.k_down, [info.k_down for info in infos]
    )

  def test_a_threshold_tells_k(self):
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
