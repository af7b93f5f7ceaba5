"""The optimisers by name, against NumPy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized

from agsfl.training import optimizers

DIM = 6


def aggregates(num_rounds=4):
  return np.random.default_rng(0).normal(size=(num_rounds, DIM))


def sgd(bs, rate):
  """w after each round, from 0."""
  return -rate * np.cumsum(bs, axis=0)


def momentum(bs, rate):
  """v <- 0.9 v + b, w <- w - eta v."""
  w, velocity, path = np.zeros(DIM), 0.0, []
  for b in bs:
    velocity = 0.9 * velocity + b
    w = w - rate * velocity
    path.append(w)
  return np.array(path)


def adam(bs, rate):
  """Reddi et al. 2021: b1 0.9, b2 0.99, epsilon 1e-3, bias corrected."""
  w, mean, square, path = np.zeros(DIM), 0.0, 0.0, []
  for step, b in enumerate(bs, 1):
    mean, square = 0.9 * mean + 0.1 * b, 0.99 * square + 0.01 * b**2
    scaled = mean / (1 - 0.9**step)
    w = w - rate * scaled / (np.sqrt(square / (1 - 0.99**step)) + 1e-3)
    path.append(w)
  return np.array(path)


ORACLES = {"sgd": sgd, "momentum": momentum, "adam": adam}


def play(optimizer, bs, state=None):
  """w after each round, from 0, jitted; float32."""
  w, path = jnp.zeros(DIM), []
  state = optimizer.init(w) if state is None else state
  update = jax.jit(optimizer.update)
  for b in bs:
    updates, state = update(jnp.float32(b), state, w)
    w = optax.apply_updates(w, updates)
    path.append(w)
  return np.array(path)


class OptimizersTest(parameterized.TestCase):

  def test_all_have_an_oracle(self):
    self.assertEqual(set(optimizers.OPTIMIZERS), set(ORACLES))

  @parameterized.product(name=tuple(ORACLES), rate=(0.1, 0.01))
  def test_server(self, name, rate):
    """Law: equals the oracle over several rounds."""
    bs = aggregates()
    got = play(optimizers.server_of(name, rate), bs)
    np.testing.assert_allclose(got, ORACLES[name](bs, rate), atol=1e-6)

  @parameterized.parameters(*ORACLES)
  def test_local(self, name):
    """Law: the same with learning rate 1."""
    bs = aggregates()
    got = play(optimizers.local(name), bs)
    np.testing.assert_allclose(got, ORACLES[name](bs, 1.0), atol=1e-5)

  @parameterized.parameters(*ORACLES)
  def test_learning_rate_lies_in_the_state(self, name):
    """Law: one server's update with another's state has the other's rate.

    And the rate may be traced where the state begins.
    """
    bs, zero = aggregates(), jnp.zeros(DIM)
    mine = optimizers.server_of(name, 0.5)
    init = jax.jit(lambda rate: optimizers.server_of(name, rate).init(zero))
    state = init(0.02)
    self.assertEqual(
        state.hyperparams["learning_rate"], jnp.float32(0.02)
    )
    np.testing.assert_array_equal(
        play(mine, bs, state), play(optimizers.server_of(name, 0.02), bs)
    )

  @parameterized.parameters(*ORACLES)
  def test_wider_types_change_nothing(self, name):
    """Law: the same with 64-bit types allowed, and strict promotion.

    Up to the last bits, for Optax corrects Adam's bias in 64 bits there.
    """

    def outcome():
      optimizer, zero = optimizers.server_of(name, 0.02), jnp.float32([0, 0])
      state = optimizer.init(zero)
      return optimizer.update(jnp.float32([1.5, -0.2]), state, zero)

    want = outcome()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      got = outcome()
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    chex.assert_trees_all_close(got, want, rtol=1e-6)


if __name__ == "__main__":
  absltest.main()
