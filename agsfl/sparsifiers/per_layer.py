"""Methods for each layer by itself, in place of the whole weight vector."""

import functools
import itertools

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers.choice import check_arguments
from agsfl.types import Selection, Sparsifier


def per_layer(sparsifier: Sparsifier, sizes: tuple[int, ...]) -> Sparsifier:
  """A method applied to each layer by itself, with k divided by size.

  Layer l has D_l weights and sends k_l elements, see `shares`. Together these
  are exactly k. On average over rounds k_l is k D_l / D, so even the smallest
  layer is sent in some rounds.

  Args:
    sparsifier: of one layer.
    sizes: D_l, in the order of the weight vector.

  Returns:
    The sparsifier of the whole.
  """
  ends = list(itertools.accumulate(sizes, initial=0))
  slices = [slice(*pair) for pair in itertools.pairwise(ends)]
  # Layers of one size share what is compiled; deep networks have many of these.
  alike: dict[int, list[int]] = {}
  for layer, size in enumerate(sizes):
    alike.setdefault(size, []).append(layer)

  def init(num_clients, dim):
    del dim
    return tuple(sparsifier.init(num_clients, size) for size in sizes)

  def select(key, accumulated, weights, k, state):
    check_arguments(accumulated, weights, k)
    k = jnp.minimum(k, ends[-1])

    # A round's k for each layer. Layers fold in 0, 1, ...; this key the next.
    ks = jnp.stack(shares(jax.random.fold_in(key, len(sizes)), k, sizes))
    starts = jnp.array(ends, jnp.int32)

    def select_in(size, layer, state):
      part = lax.dynamic_slice_in_dim(accumulated, starts[layer], size, 1)
      key_layer = jax.random.fold_in(key, layer)
      return sparsifier.select(key_layer, part, weights, ks[layer], state)

    picked = {}
    for size, same in alike.items():
      states = jax.tree.map(lambda *x: jnp.stack(x), *(state[l] for l in same))
      results = lax.map(
          lambda each, size=size: select_in(size, *each),
          (jnp.array(same, jnp.int32), states),
      )
      for place, layer in enumerate(same):
        picked[layer] = jax.tree.map(lambda x, at=place: x[at], results)

    # The layers' selections, joined or added up.
    in_order = [picked[layer] for layer in range(len(sizes))]
    layers = [selection for selection, _ in in_order]
    total = lambda name: functools.reduce(
        jnp.add, (getattr(layer, name) for layer in layers)
    )
    selection = Selection(
        mask=jnp.concatenate([layer.mask for layer in layers]),
        aggregate=jnp.concatenate([layer.aggregate for layer in layers]),
        k_up=total("k_up"),
        k_down=total("k_down"),
        volume_up=total("volume_up"),
        volume_down=total("volume_down"),
        contributed=total("contributed"),
        clients=tuple(layer.clients for layer in layers),
    )
    return selection, tuple(state for _, state in in_order)

  def split(accumulated, mask, clients):
    parts = [
        sparsifier.split(accumulated[part], mask[part], client)
        for part, client in zip(slices, clients, strict=True)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)

  return Sparsifier(init, select, split)


def shares(
    key: jax.Array, k: jax.Array, sizes: tuple[int, ...]
) -> list[jax.Array]:
  """A round's k divided among layers, at random around k D_l / D.

  With c_l the weights before layer l, and one u in [0, 1) for all layers,

      k_l = floor(k c_(l+1) / D + u) - floor(k c_l / D + u).

  The k_l sum to floor(k + u) - floor(u) = k. On average floor(x + u) is x, so
  on average k_l is k D_l / D. As k D_l / D <= D_l, we have 0 <= k_l <= D_l.

  Args:
    key: of the round. Two k with the same key have the same u.
    k: [] i32, 0..D.
    sizes: D_l, less than 2^30 together.

  Returns:
    k_l, [] i32 each.
  """
  ends = list(itertools.accumulate(sizes, initial=0))
  offset = jax.random.randint(key, (), 0, ends[-1], jnp.int32)  # u D
  offset = offset.astype(jnp.uint32)
  bounds = [share(k, end, ends[-1], offset) for end in ends]
  return [high - low for low, high in itertools.pairwise(bounds)]


def share(
    k: jax.Array, part: int, whole: int, offset: jax.Array
) -> jax.Array:
  """floor((k * part + offset) / whole), exactly.

  By long division, a few bits of k at a time, because k * part would overflow.

  Args:
    k: [] i32, 0..whole.
    part: 0..whole.
    whole: below 2^30.
    offset: [] u32 below whole.

  Returns:
    [] i32.
  """
  bits = 31 - whole.bit_length()
  digits = -(-whole.bit_length() // bits)
  quotient, rest = jnp.uint32(0), jnp.uint32(0)
  for digit in reversed(range(digits)):
    figure = (k.astype(jnp.uint32) >> (digit * bits)) & ((1 << bits) - 1)
    rest = (rest << bits) + figure * part
    quotient = (quotient << bits) + rest // whole
    rest = rest % whole
  quotient += (rest + offset >= whole).astype(jnp.uint32)
  return quotient.astype(jnp.int32)
