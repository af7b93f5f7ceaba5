"""A random order of 0, 1, ..., C - 1; each place can be computed by itself.

So a minibatch of an epoch needs no array of all the client's samples, and
clients of all sizes run the same program.
"""

import jax
import jax.numpy as jnp
from jax import lax

# With 6 rounds the orders of four numbers are not uniform: chi-square of 48,000
# orders is 19 deviations above its mean. With 10 no difference is seen.
_ROUNDS = 10


def permuted(
    key: jax.Array, positions: jax.Array, count: jax.Array
) -> jax.Array:
  """The numbers at some positions of a random order of range(count).

  A keyed Feistel network is a bijection of the numbers below 4^h, which is the
  least power of four that is `count` or more. A result outside the range goes
  through the network again, until it lies in the range. On average a number
  goes through the network four times at most.

  Args:
    key: of the order.
    positions: [B] i32, from 0 to count - 1; others may never come to an end.
    count: [] i32, C, at least 1; it may be traced.

  Returns:
    [B] i32, from 0 to count - 1. Equal positions give equal numbers, and
    different positions give different numbers.

  Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA
  2002, the cycle-walking cipher.
  """
  shift, *round_keys = jax.random.bits(key, (1 + _ROUNDS,), jnp.uint32)
  count = count.astype(jnp.uint32)

  # Each half of a number has h bits.
  bits = jnp.uint32(32) - lax.clz(count - jnp.uint32(1))
  half = jnp.maximum((bits + jnp.uint32(1)) // jnp.uint32(2), jnp.uint32(1))
  mask = (jnp.uint32(1) << half) - jnp.uint32(1)

  def network(numbers):
    # Feistel rounds are even permutations; half of the shifts are odd ones.
    numbers = numbers + shift
    left, right = (numbers >> half) & mask, numbers & mask
    for round_key in round_keys:
      left, right = right, left ^ (_hash(right, round_key) & mask)
    return (left << half) | right

  def walk(numbers):
    return jnp.where(numbers < count, numbers, network(numbers))

  numbers = lax.while_loop(
      lambda numbers: jnp.any(numbers >= count),
      walk,
      network(positions.astype(jnp.uint32)),
  )
  return numbers.astype(jnp.int32)


def _hash(numbers, key):
  """[B] u32 that look random, and independent for each key [] u32.

  Source: the finaliser of MurmurHash3 (public domain) of numbers + key.
  """
  numbers = numbers + key
  numbers = (numbers ^ (numbers >> jnp.uint32(16))) * jnp.uint32(0x85EBCA6B)
  numbers = (numbers ^ (numbers >> jnp.uint32(13))) * jnp.uint32(0xC2B2AE35)
  return numbers ^ (numbers >> jnp.uint32(16))
