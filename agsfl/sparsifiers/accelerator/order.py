"""One client's order, searched by counting: no histogram and no full sort.

A sorted sample of the entries says roughly where a rank lies. Passes over all
entries then count exactly how many come before a few places, until a short
`Stretch` holds the rank. Only its entries are sorted. Every function here is of
ONE client; under `jax.vmap` all clients, runs and k go through it together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.types import PyTree

# One entry of 32 is in the sample: sorting it costs as much as one pass.
STRIDE = 32

# Where a pass counts around a rank, in standard deviations of what is known.
# Mostly the rank lies between the inner two, and nearly always between the
# outer two.
_DEVIATIONS = (-4.0, -1.0, 1.0, 4.0)
_PLACES = len(_DEVIATIONS)

# After so many passes the places divide the sample evenly.
_GUIDED_PASSES = 3

# A 32-bit word holds four counts of up to 255, or 32 flags.
_COUNTED_ROWS = 128
_FLAG_ROWS = 32


class Place(NamedTuple):
  """A place in a client's order.

  Attributes:
    entry: [...] the entry there.
    rank: [...] i32, entries at or above it.
    position: [...] i32, where it is in the sample, for the search alone.
  """

  entry: topk.Entry
  rank: jax.Array
  position: jax.Array


class Stretch(NamedTuple):
  """The entries that come after one place and no later than another."""

  above: Place
  last: Place

  @property
  def size(self) -> jax.Array:
    """[...] i32, its entries."""
    return self.last.rank - self.above.rank


def sample(accumulated: jax.Array) -> topk.Entry:
  """Every 32nd entry of a client.

  Args:
    accumulated: [D] f32, a_i.

  Returns:
    [ceil(D / 32)] entries in their order.
  """
  keys = topk.magnitude_key(accumulated[::STRIDE])
  order = jnp.argsort(-keys, stable=True).astype(jnp.int32)
  return topk.Entry(keys[order], STRIDE * order)


def count(flags: Sequence[jax.Array]) -> jax.Array:
  """How many are True, of several masks in one pass.

  Four counts share a word. The first sum goes down columns, because this is
  the order in which an accelerator reads fastest.

  Args:
    flags: masks, [D] bool each.

  Returns:
    [number of masks] i32.
  """
  words = []
  for start in range(0, len(flags), 4):
    word = sum(
        mask.astype(jnp.uint32) << 8 * i
        for i, mask in enumerate(flags[start : start + 4])
    )
    words.append(
        jnp.sum(_rows(word, _COUNTED_ROWS), axis=0, dtype=jnp.uint32)
    )
  bits = 8 * lax.iota(jnp.uint32, 4)[None, :, None]
  counts = (jnp.stack(words)[:, None] >> bits) & 255
  return jnp.sum(counts.astype(jnp.int32), axis=2).reshape(-1)[: len(flags)]


def _rows(x, num_rows):
  """[D] in rows of equal length, one after the other; zeros at the end."""
  length = -(-x.size // num_rows)
  return jnp.pad(x, (0, num_rows * length - x.size)).reshape(num_rows, length)


def stretches(
    accumulated: jax.Array, sample: topk.Entry, ranks: jax.Array, width: int
) -> Stretch:
  """Short stretches that hold the entries of some ranks.

  Each pass counts at four places for each rank. From the sample they are chosen
  so that one or two passes are mostly enough. If the sample has no entry left
  between two ends, the bits of the magnitudes and then the coordinates are
  halved. So the search ends for any gradients, with any number of ties.

  Args:
    accumulated: [D] f32, a_i.
    sample: its `sample`.
    ranks: [R] i32, 0..D.
    width: the most entries in a stretch. It starts at the top if it then fits.

  Returns:
    [R] stretches, with above.rank < rank <= last.rank. For rank 0 it is empty
    at the top, for rank D empty at the end.
  """
  dim, num_sampled = accumulated.size, sample.key.size
  top = Place(topk.above_all(), jnp.int32(0), jnp.int32(-1))
  end = Place(
      topk.Entry(jnp.int32(0), jnp.int32(dim - 1)),
      jnp.int32(dim),
      jnp.int32(num_sampled),
  )
  start = Stretch(where(ranks < dim, top, end), where(ranks > 0, end, top))

  def is_wide(carry):
    stretch, _ = carry
    return jnp.any(stretch.size > width)

  def narrow(carry):
    stretch, step = carry

    # Places between the ends, from the sample as long as it has some.
    is_sampled = (stretch.last.position - stretch.above.position > 1)[:, None]
    positions = jnp.where(
        is_sampled,
        _positions(stretch, ranks, step),
        stretch.above.position[:, None],
    )
    sampled = jax.tree.map(lambda x: x[jnp.maximum(positions, 0)], sample)
    entries = where(is_sampled, sampled, _halvings(stretch, dim))

    # How many entries come no later than each of them.
    keys = topk.magnitude_key(in_each_step(accumulated, step))
    places = jax.tree.map(jnp.ravel, entries)
    counts = count([topk.at_or_above(keys, place) for place in _each(places)])

    # The nearest places on both sides of the rank are the new ends.
    places = jax.tree.map(
        lambda low, inner, high: jnp.concatenate(
            [low[:, None], inner, high[:, None]], axis=1
        ),
        stretch.above,
        Place(entries, counts.reshape(positions.shape), positions),
        stretch.last,
    )
    is_before = places.rank[:, 1:-1] < ranks[:, None]
    before = jnp.sum(is_before, axis=1, keepdims=True)
    above, last = (
        jax.tree.map(
            lambda x, i=i: jnp.take_along_axis(x, before + i, axis=1)[:, 0],
            places,
        )
        for i in range(2)
    )
    above = where(last.rank <= width, top, above)
    return Stretch(above, last), step + 1

  return lax.while_loop(is_wide, narrow, (start, jnp.int32(0)))[0]


def in_each_step(accumulated: jax.Array, step: jax.Array) -> jax.Array:
  """The same array, for the body of a loop.

  What is computed from it alone, such as keys, is computed in each step, within
  the pass that reads the array. Otherwise the compiler would store it before
  the loop, as a second array of this size.
  """
  return lax.optimization_barrier((accumulated, step))[0]


def where(condition: jax.Array, some: PyTree, others: PyTree) -> PyTree:
  """`jnp.where` for the arrays of two pytrees, one by one."""
  return jax.tree.map(lambda a, b: jnp.where(condition, a, b), some, others)


def _positions(stretch, ranks, step):
  """Four positions in the sample around each rank, between the ends."""
  first = stretch.above.position[:, None]
  end = stretch.last.position[:, None]

  # A rank lies about as far in the sample as among the entries, give or take
  # the deviation of a count of random entries.
  size = jnp.maximum(stretch.size, 1).astype(jnp.float32)
  share = (ranks - stretch.above.rank).astype(jnp.float32) / size
  deviation = jnp.sqrt(share * (1 - share) / (size / STRIDE))
  guided = share[:, None] + deviation[:, None] * jnp.array(_DEVIATIONS)[None]
  evenly = jnp.arange(1, _PLACES + 1) / (_PLACES + 1)
  share = jnp.where(step < _GUIDED_PASSES, guided, evenly[None])
  position = first + jnp.round(share * (end - first)).astype(jnp.int32)
  return jnp.clip(position, first + 1, end - 1)


def _halvings(stretch, dim):
  """The quarters between the ends by bits; the middle twice, for four."""
  above, last = stretch.above.entry, stretch.last.entry
  middle = _middle(above, last, dim)
  entries = [_middle(above, middle, dim), middle, middle,
             _middle(middle, last, dim)]
  return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *entries)


def _middle(above, last, dim):
  """A place between two; it halves the keys, or else the coordinates."""
  gap = above.key - last.key
  # The end of a key is the beginning of the next smaller one.
  meets = (gap == 1) & (above.coordinate == dim - 1)
  gap = jnp.where(meets, 0, gap)
  before = jnp.where(meets, -1, above.coordinate)
  return topk.Entry(
      last.key + (gap - gap // 2),
      jnp.where(gap == 0, (before + last.coordinate) // 2, dim - 1),
  )


def sort(accumulated: jax.Array, stretches: Stretch, width: int) -> jax.Array:
  """The coordinates of stretches, in their order.

  One pass packs 32 flags a word; the rest works on these words and on the
  entries of the stretches.

  Args:
    accumulated: [D] f32, a_i.
    stretches: [R] with at most W entries each.
    width: W.

  Returns:
    [R, W] i32; D after the last entry.
  """
  keys = topk.magnitude_key(accumulated)
  bits = lax.iota(jnp.uint32, _FLAG_ROWS)[:, None]
  words = []
  for above, last in zip(
      _each(stretches.above.entry), _each(stretches.last.entry), strict=True
  ):
    inside = topk.at_or_above(keys, last) & ~topk.at_or_above(keys, above)
    # One word for each column: bit b says whether row b is in the stretch.
    flags = _rows(inside.astype(jnp.uint32), _FLAG_ROWS)
    words.append(jnp.sum(flags << bits, axis=0, dtype=jnp.uint32))
  of_words = lambda words: _sort_marked(accumulated, words, width)
  return jax.vmap(of_words)(jnp.stack(words))


def _each(entries):
  """The single entries of an array [R]."""
  return [topk.Entry(*entry) for entry in zip(*entries, strict=True)]


def _sort_marked(accumulated, words, width):
  """`sort` from the words of one stretch."""
  # The entry in each slot: its word, and which of the word's bits it is.
  sizes = lax.population_count(words).astype(jnp.int32)
  ends = jnp.cumsum(sizes, dtype=jnp.int32)
  slot = lax.iota(jnp.int32, width)
  column = jnp.searchsorted(ends, slot, side="right", method="scan_unrolled")
  column = jnp.minimum(column, words.size - 1)
  row = _nth_bit(words[column], slot - (ends - sizes)[column])
  coordinate = jnp.where(
      slot < ends[-1], row * words.size + column, accumulated.size
  )

  # By coordinate, then by magnitude: of equal ones the lower comes first.
  coordinate = jnp.sort(coordinate)
  key = entry_at(accumulated, coordinate).key
  key = jnp.where(slot < ends[-1], key, -1)
  return coordinate[jnp.argsort(-key, stable=True)]


def _nth_bit(word, n):
  """The position of the n-th bit that is set, from 0; elementwise."""
  position = jnp.zeros_like(n)
  for size in (16, 8, 4, 2, 1):
    low = (word >> position.astype(jnp.uint32)) & ((1 << size) - 1)
    below = lax.population_count(low).astype(jnp.int32)
    is_higher = n >= below
    n = jnp.where(is_higher, n - below, n)
    position = jnp.where(is_higher, position + size, position)
  return position


def entry_at(accumulated: jax.Array, coordinate: jax.Array) -> topk.Entry:
  """The entries of a client at some coordinates [...]."""
  values = accumulated.at[coordinate].get(mode="clip")
  return topk.Entry(topk.magnitude_key(values), coordinate)


def largest(keys: jax.Array, k: jax.Array) -> jax.Array:
  """Mask of the k largest of one vector, which is sorted in full.

  Args:
    keys: [D] i32, not negative.
    k: [] i32, 0..D.

  Returns:
    [D] bool; of equal keys the lower index comes first.
  """
  order = jnp.argsort(-keys, stable=True).astype(jnp.int32)
  last = order[jnp.maximum(k - 1, 0)]
  return topk.at_or_above(keys, topk.Entry(keys[last], last)) & (k > 0)
