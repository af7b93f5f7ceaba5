"""Networks that predict the next token after each token of a sequence."""

import flax.linen as nn
import jax.numpy as jnp

from agsfl.training.networks import inputs, recurrence


class LSTM(nn.Module):
  """A stacked LSTM over tokens [B, T], with outputs [B, T, L].

  D = 820,522 for 90 different tokens.

  Attributes:
    num_classes: L.
    vocabulary: number of different tokens; None for L.
    embedding: numbers for each token.
    width: H, of each recurrent layer.
    layers: how many.

  Source: the Shakespeare network of McMahan et al., AISTATS 2017, which LEAF
  has too (Caldas et al., 2018): embedding 8, two layers of 256, dense. First
  weights as in the TensorFlow forms of both: Glorot uniform and orthogonal,
  the biases of the forget gates 1.
  """

  num_classes: int
  vocabulary: int | None = None
  embedding: int = 8
  width: int = 256
  layers: int = 2

  @nn.compact
  def __call__(self, x):
    x = inputs.tokens("lstm", x)
    x = nn.Embed(self.vocabulary or self.num_classes, self.embedding)(x.T)
    for _ in range(self.layers):
      x = _Recurrent(self.width)(x)
    return jnp.swapaxes(nn.Dense(self.num_classes)(x), 0, 1)


class _Recurrent(nn.Module):
  """One layer: [T, B, I] -> [T, B, H]."""

  width: int

  @nn.compact
  def __call__(self, x):
    # What does not depend on the last output is one product for all steps.
    gates = nn.Dense(
        4 * self.width,
        kernel_init=nn.initializers.glorot_uniform(),
        bias_init=_forget_ones,
    )(x)
    kernel = self.param(
        "recurrent_kernel",
        nn.initializers.orthogonal(),
        (self.width, 4 * self.width),
        jnp.float32,
    )
    return recurrence.lstm(gates, kernel)


def _forget_ones(key, shape, dtype=jnp.float32):
  """Biases 0, but 1 for the second of four gates."""
  del key
  gate = jnp.arange(4, dtype=jnp.int32) == 1
  return jnp.repeat(gate.astype(dtype), shape[0] // 4)


class Transformer(nn.Module):
  """A small causal transformer over tokens [B, T], with outputs [B, T, L].

  D = 430,170 for 90 different tokens and T = 80.

  Attributes:
    num_classes: L.
    vocabulary: number of different tokens; None for L.
    width: of a token between layers; the hidden layers have four times this.
    heads: of each attention.
    layers: how many.

  Source: Vaswani et al., "Attention Is All You Need", NeurIPS 2017, with the
  norms before each part and learned positions as in GPT-2 (Radford et al.,
  2019).
  """

  num_classes: int
  vocabulary: int | None = None
  width: int = 128
  heads: int = 4
  layers: int = 2

  @nn.compact
  def __call__(self, x):
    x = inputs.tokens("transformer", x)
    causal = nn.make_causal_mask(x)
    normal = nn.initializers.normal(0.02)
    places = self.param(
        "places", normal, (x.shape[1], self.width), jnp.float32
    )
    x = nn.Embed(
        self.vocabulary or self.num_classes, self.width, embedding_init=normal
    )(x)
    x = x + places[None]
    for _ in range(self.layers):
      y = nn.LayerNorm()(x)
      x = x + nn.MultiHeadDotProductAttention(self.heads)(y, mask=causal)
      y = nn.gelu(nn.Dense(4 * self.width)(nn.LayerNorm()(x)))
      x = x + nn.Dense(self.width)(y)
    return nn.Dense(self.num_classes)(nn.LayerNorm()(x))
