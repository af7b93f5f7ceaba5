"""How many bits a message has, and what arrives of its values."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.names import IndexCoding, ValueBits

_GOLDEN = (math.sqrt(5) + 1) / 2
# The largest bfloat16, and a number whose last bits float32 still holds as
# normal numbers.
_LARGEST, _SMALLEST = 2.0**127 * (2 - 2.0**-7), 2.0**-102


class Message(NamedTuple):
  """The form of a message.

  Attributes:
    index_coding: "raw", 32 bits for each index; "bitmask", a bit for each of
      the D weights; "golomb", the gaps between indices in a Rice code of the
      best parameter; "entropy", the least number of bits of any code, if
      indices are at random.
    value_bits: 32, or 16 for bfloat16.
  """

  index_coding: IndexCoding = "raw"
  value_bits: ValueBits = 32


def volume(
    message: Message, elements: jax.Array, numbers: jax.Array, dim: int
) -> jax.Array:
  """The length of a message in units of 32 bits.

  Args:
    message: its form.
    elements: values that it has.
    numbers: its length with 32 bits for each value and each index. What is
      above `elements` is the number of indices; 0 if both sides know them.
    dim: D.

  Returns:
    f32 of the same shape; with "raw" and 32 bits `numbers` itself.
  """
  numbers = jnp.float32(numbers)
  if message == Message():
    return numbers
  values = jnp.float32(elements)
  indices = numbers - values
  bits = message.value_bits * values + _index_bits(message, indices, dim)
  return bits / 32


def _index_bits(message, indices, dim):
  """Bits of all indices of a message."""
  if message.index_coding == "raw":
    return 32 * indices
  if message.index_coding == "bitmask":
    return jnp.where(indices > 0, jnp.float32(dim), 0.0)
  # With 1 in place of 0 no NaN arises.
  some = jnp.maximum(indices, 1.0)
  if message.index_coding == "golomb":
    bits = some * golomb_bits(some / dim)
  else:
    bits = _entropy_bits(some, dim)
  return jnp.where(indices > 0, bits, 0.0)


def golomb_bits(share: jax.Array) -> jax.Array:
  """Bits for each index on average, if indices are at random.

  The gap before each index is written as a Rice code: its last b bits as they
  are, and the rest in unary. b is the best one.

  Args:
    share: p, of D weights that have an index, above 0 and at most 1.

  Returns:
    f32: b + 1 / (1 - (1 - p)^(2^b)), where
    b = max(0, 1 + floor(log2(log(g - 1) / log(1 - p)))), g the golden ratio.

  Source: Sattler, Wiedemann, Müller, Samek, "Robust and communication-efficient
  federated learning from non-i.i.d. data", IEEE TNNLS 2020, Golomb encoding.
  """
  log_off = jnp.log1p(-share)
  b = 1 + jnp.floor(jnp.log2(math.log(_GOLDEN - 1) / log_off))
  b = jnp.maximum(b, 0.0)
  return b - 1 / jnp.expm1(jnp.exp2(b) * log_off)


def _entropy_bits(indices, dim):
  """D H(p), where H is the entropy of a weight that has an index or not."""
  others = dim - indices
  # Where there are no others, 1 in place of 0 gives 0 * log(1) = 0.
  share_off = jnp.where(others > 0, others / dim, 1.0)
  nats = -indices * jnp.log(indices / dim) - others * jnp.where(
      indices < dim / 2, jnp.log1p(-indices / dim), jnp.log(share_off)
  )
  return nats / math.log(2)


def rounded(values: jax.Array, value_bits: int) -> jax.Array:
  """What arrives of values that are sent with so many bits.

  16 bits are bfloat16. It has float32's range, so neither a large sum of
  gradients nor a small gradient is lost as a whole. float16 would lose numbers
  above 65,504 and below 6e-8. The residual keeps what rounding takes away:
  float32 holds `values - rounded` without error, so that `rounded + rest` is
  the value bit for bit. For this, values below 2^-102 arrive as 0, and values
  above the largest bfloat16 as that number.

  Args:
    values: f32 of any shape.
    value_bits: 16 or 32.

  Returns:
    f32 of the same shape; with 32 bits the values themselves.
  """
  if value_bits == 32:
    return values
  values = jnp.where(jnp.abs(values) < _SMALLEST, 0.0, values)
  # Not a cast there and back, which XLA may leave out.
  return lax.reduce_precision(
      jnp.clip(values, -_LARGEST, _LARGEST), exponent_bits=8, mantissa_bits=7
  )
