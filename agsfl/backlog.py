"""How far the weights lag behind what clients have computed but not sent."""

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
  """About how many rounds a gradient waits at its client until it is sent.

  By Little's law, what waits in a queue, divided by what leaves it in a round,
  is the number of rounds of a wait. Here energy waits and leaves, the sum of
  squares. If coordinates take turns, and gradients are noise, this is the mean
  wait. If they take turns, and their gradients are all the same, it is two
  thirds of it. With top-k it is less than the mean wait of all coordinates:
  large entries are sent soon, and entries that wait for long are small.

  Args:
    weights: [n], what each client counts in the mean, up to a factor; 0 if its
      message did not arrive.
    before: [n] f32, `energy` of each a_i, before the round sends some of it.
    after: [n] f32, `energy` of what has not been sent.
    turns: rounds from one message of a client to its next one, in the mean.

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
