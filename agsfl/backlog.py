"""How far the weights lag behind, because clients have not sent all yet."""

import jax
import jax.numpy as jnp

# Numbers that are added up before their sum joins those of other blocks.
_BLOCK = 512


def energy(values: jax.Array) -> jax.Array:
  """The sum of the squares of one client's values.

  Block by block, because `lag` subtracts two energies that may differ by a
  thousandth, and one long sum of float32 would lose some of this.

  Args:
    values: [D] f32.

  Returns:
    [] f32.

  >>> float(energy(jnp.array([3.0, 4.0])))
  25.0
  """
  padded = jnp.pad(values, (0, -values.size % _BLOCK))
  return jnp.sum(jnp.sum(jnp.square(padded).reshape(-1, _BLOCK), axis=1))


def lag(
    weights: jax.Array,
    before: jax.Array,
    after: jax.Array,
    turns: float | jax.Array = 1.0,
) -> jax.Array:
  """Rounds that a gradient waits at its client, in the mean, until it is sent.

  Little's law: what waits in a queue, divided by what leaves it in a round, is
  how many rounds it waits. Here it is energy that waits and leaves, the sum of
  squares. If the gradients of a coordinate are noise, each round adds as much
  energy, and the law is exact in the long run. If they are all the same, the
  energy grows with the square of the time, and this is two thirds of the mean
  wait.

  Args:
    weights: [n], what each client counts in the mean, up to a factor.
    before: [n] f32, `energy` of each a_i, before the round sends some of it.
    after: [n] f32, `energy` of what has not been sent.
    turns: rounds from one turn of a client to its next one, N / n in the mean.

  Returns:
    [] f32, at least 0; -1 if nothing was sent.

  Source: Little, "A proof for the queuing formula L = lambda W", Operations
  Research 1961.

  >>> float(lag(jnp.array([1.0]), jnp.array([25.0]), jnp.array([20.0])))
  4.0
  """
  waiting = jnp.sum(weights * after)
  sent = jnp.sum(weights * (before - after))
  rounds = turns * waiting / jnp.where(sent > 0, sent, 1.0)
  return jnp.where(sent > 0, rounds, -1.0)
