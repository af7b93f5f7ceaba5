"""Methods layer by layer instead of over the whole weight vector."""

import itertools

import jax
import jax.numpy as jnp

from agsfl.sparsifiers import check_arguments
from agsfl.types import Selection, Sparsifier


def per_layer(sparsifier: Sparsifier, sizes: tuple[int, ...]) -> Sparsifier:
  """A method applied to each layer by itself, k shared out by size.

  Layer l of D_l weights sends k_l = floor(k c_(l+1) / D) - floor(k c_l / D)
  elements, with c_l the weights before it: exactly k in all.

  Args:
    sparsifier: of one layer.
    sizes: D_l, in the order of the weight vector.

  Returns:
    The sparsifier of the whole.
  """
  ends = list(itertools.accumulate(sizes, initial=0))
  slices = [slice(*ends) for ends in itertools.pairwise(ends)]

  def init(num_clients, dim):
    del dim
    return tuple(sparsifier.init(num_clients, size) for size in sizes)

  def select(key, accumulated, weights, k, state):
    check_arguments(accumulated, weights, k)
    k = jnp.minimum(k, ends[-1])
    bounds = [share(k, end, ends[-1]) for end in ends]
    picked = [
        sparsifier.select(
            jax.random.fold_in(key, layer),
            accumulated[:, part],
            weights,
            bounds[layer + 1] - bounds[layer],
            state[layer],
        )
        for layer, part in enumerate(slices)
    ]
    layers = [selection for selection, _ in picked]
    selection = Selection(
        mask=jnp.concatenate([one.mask for one in layers]),
        aggregate=jnp.concatenate([one.aggregate for one in layers]),
        k_up=sum(one.k_up for one in layers),
        k_down=sum(one.k_down for one in layers),
        volume_up=sum(one.volume_up for one in layers),
        volume_down=sum(one.volume_down for one in layers),
        contributed=sum(one.contributed for one in layers),
        clients=tuple(one.clients for one in layers),
    )
    return selection, tuple(state for _, state in picked)

  def split(accumulated, mask, clients):
    parts = [
        sparsifier.split(accumulated[part], mask[part], client)
        for part, client in zip(slices, clients, strict=True)
    ]
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts)

  return Sparsifier(init, select, split)


def share(k: jax.Array, part: int, whole: int) -> jax.Array:
  """floor(k * part / whole), exactly.

  Long division, a few bits of k at a time: k * part itself would overflow.

  Args:
    k: [] i32, 0..whole.
    part: 0..whole.
    whole: below 2^30.

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
  return quotient.astype(jnp.int32)
