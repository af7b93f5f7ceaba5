"""What clients send up: J_i, each one's k largest entries, and their sums.

All methods pick from J_i; they differ in J, the coordinates that come back.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.over_clients import fold_clients, map_clients
from agsfl.sparsifiers import topk
from agsfl.types import PyTree, Split

# More ranks sorted show more at once, fewer sort faster: on CPU `lax.top_k` of
# 444,062 floats takes 0.9 ms for 64 of them, 1.4 for 1024 and 3.2 for 4096.
WIDTH = 1024

_COLLECTIVES = {
    jnp.minimum: lax.pmin,
    jnp.maximum: lax.pmax,
    jnp.add: lax.psum,
}


class Clients(NamedTuple):
  """The clients of this device.

  Keys are formed where they are used: inside branches and loops a second array
  of this size would have to be stored and copied.

  Attributes:
    accumulated: [N, D] f32, a_i.
    weights: [N] f32, C_i / C; one of weight 0 sends nothing.
    axes: mesh axes over which N is split; () for none.
    chunk: clients at a time, see `over_clients`.
  """

  accumulated: jax.Array
  weights: jax.Array
  axes: tuple[str, ...]
  chunk: int | None

  @property
  def active(self):
    """[N] bool, who sends."""
    return self.weights > 0

  def map(self, function, *arguments):
    """Over each client's accumulated gradient and further arguments."""
    return map_clients(function, (self.accumulated, *arguments), self.chunk)

  def fold(self, function, merge, start, *arguments):
    """The same, merged over all clients, those of other devices too."""
    merged, results = fold_clients(
        function, merge, start, (self.accumulated, *arguments), self.chunk
    )
    return _COLLECTIVES[merge](merged, self.axes), results

  def entries_at(self, index):
    """Each client's entry at its own coordinate of `index` [N]."""
    value = jnp.take_along_axis(self.accumulated, index[:, None], axis=1)
    return topk.Entry(topk.magnitude_key(value[:, 0]), index)


class Choice(NamedTuple):
  """What is sent, in little memory.

  Attributes:
    mask: [D] bool, J.
    clients: with a leading axis N, what tells each J_i: its last entry, above
      all where it is empty; or whatever the method's split takes.
    aggregate: [D] f32, b.
    contributed: [N] i32, |J_i and J|.
  """

  mask: jax.Array
  clients: PyTree
  aggregate: jax.Array
  contributed: jax.Array


def split(
    accumulated: jax.Array, mask: jax.Array, last: topk.Entry
) -> Split:
  """One client's part of a choice.

  Args:
    accumulated: [D] f32, a_i.
    mask: [D] bool, J.
    last: [] the last entry of J_i.

  Returns:
    The split; `sent + residual == accumulated`, bit for bit but for the sign
    of a zero.

  Source: Han, Wang, Leung, ICDCS 2020, Alg. 1.
  """
  used = topk.at_or_above(topk.magnitude_key(accumulated), last) & mask
  return split_where(accumulated, used)


def split_where(accumulated: jax.Array, used: jax.Array) -> Split:
  """The same with J_i and J together, [D] bool, told outright."""
  return Split(
      mask=used,
      sent=jnp.where(used, accumulated, 0.0),
      residual=jnp.where(used, 0.0, accumulated),
  )


def first_entries(clients: Clients, width: int) -> jax.Array:
  """The coordinates of each client's `width` largest entries, [N, W] i32."""
  return clients.map(lambda a: topk.top(jnp.abs(a), width))


def count(clients: Clients) -> jax.Array:
  """Each client's `topk.count`, [N, NUM_BINS] i32."""
  return clients.map(lambda a: topk.count(topk.magnitude_key(a)))


def nth_largest(
    clients: Clients, counts: jax.Array, q: jax.Array
) -> topk.Entry:
  """Each client's q-th entry.

  Args:
    clients: this device's.
    counts: [N, NUM_BINS] i32, their `count`.
    q: [] i32, see `topk.nth_largest`.

  Returns:
    [N] entries.
  """
  return clients.map(
      lambda a, counts: topk.nth_largest(topk.magnitude_key(a), counts, q),
      counts,
  )


def everything(clients: Clients, sends: jax.Array) -> topk.Entry:
  """The last of all entries, [N], of clients that send; J_i is dense.

  Args:
    clients: this device's.
    sends: [] bool, whether anybody does.

  Returns:
    [N] entries, above all for those that do not.
  """
  num_clients, dim = clients.accumulated.shape
  last = topk.Entry(
      jnp.zeros(num_clients, jnp.int32), jnp.full(num_clients, dim, jnp.int32)
  )
  return _silenced(last, clients.active & sends)


def _silenced(last, sends):
  return jax.tree.map(
      lambda some, none: jnp.where(sends, some, none), last, topk.above_all()
  )


class Uplink(NamedTuple):
  """J_i of all clients for any k; what the k at hand do not need is empty.

  Attributes:
    clients: this device's.
    order: [N, W] i32 from `first_entries`, for k < W.
    counts: [N, NUM_BINS] i32 from `count`, for k from W below D.
  """

  clients: Clients
  order: jax.Array
  counts: jax.Array

  @property
  def width(self):
    """W."""
    return self.order.shape[1]

  def last(self, k: jax.Array) -> topk.Entry:
    """The last entry of each J_i, [N]; k [] i32, 0..D."""
    clients = self.clients
    dim = clients.accumulated.shape[1]
    deep = (k >= self.width).astype(jnp.int32) + (k >= dim)
    last = lax.switch(
        deep,
        [
            lambda: clients.entries_at(self.order[:, jnp.maximum(k - 1, 0)]),
            lambda: nth_largest(clients, self.counts, k),
            lambda: everything(clients, True),
        ],
    )
    return _silenced(last, clients.active & (k > 0))

  def sums(self, k, last, mask):
    """b [D] over the coordinates of `mask` [D], and |J_i and mask| [N].

    The mean is by data size; the divisor is C, whoever sent.
    """
    return lax.cond(
        k < self.width,
        lambda: self._sums_of_few(k, mask),
        lambda: sums(self.clients, last, mask),
    )

  def _sums_of_few(self, k, mask):
    """One client after another, so that sums have one order everywhere."""

    def add(total, client):
      accumulated, weight, order = client
      used = self._sent(k, order, weight) & mask[order]
      sent = jnp.where(used, weight * accumulated[order], 0.0)
      return total.at[order].add(sent, unique_indices=True), jnp.sum(used)

    clients = self.clients
    arguments = (clients.accumulated, clients.weights, self.order)
    zeros = jnp.zeros(mask.shape, jnp.float32)
    total, contributed = lax.scan(add, zeros, arguments)
    return lax.psum(total, clients.axes), contributed

  def _sent(self, k, order, weight):
    return (lax.iota(jnp.int32, order.shape[-1]) < k) & (weight > 0)

  def union(self, k, last):
    """The coordinates that any client sends, [D] bool."""
    clients = self.clients
    nobody = jnp.zeros(clients.accumulated.shape[1], jnp.int32)

    def few():
      sent = jax.vmap(self._sent, (None, 0, 0))(
          k, self.order, clients.weights
      )
      union = nobody.at[self.order].max(sent.astype(jnp.int32))
      return lax.pmax(union, clients.axes)

    def many():
      sent = lambda a, last: (
          topk.at_or_above(topk.magnitude_key(a), last).astype(jnp.int32),
          None,
      )
      return clients.fold(sent, jnp.maximum, nobody, last)[0]

    return lax.cond(k < self.width, few, many) > 0


def sums(clients: Clients, last: topk.Entry, mask: jax.Array):
  """The same as `Uplink.sums`, by all entries at or above `last` [N]."""

  def part(accumulated, weight, last):
    result = split(accumulated, mask, last)
    return weight * result.sent, jnp.sum(result.mask)

  zeros = jnp.zeros(mask.shape, jnp.float32)
  return clients.fold(part, jnp.add, zeros, clients.weights, last)


def open_uplink(clients: Clients, ks: jax.Array, width: int) -> Uplink:
  """The uplink for some k.

  Args:
    clients: this device's.
    ks: [S] i32, 0..D.
    width: W; it changes the cost, never the result.

  Returns:
    The uplink; its last, sums and union may be asked for these k alone.
  """
  num_clients, dim = clients.accumulated.shape
  width = min(width, dim)
  order = lax.cond(
      jnp.any(ks < width),
      lambda: first_entries(clients, width),
      lambda: jnp.zeros((num_clients, width), jnp.int32),
  )
  counts = lax.cond(
      jnp.any((ks >= width) & (ks < dim)),
      lambda: count(clients),
      lambda: jnp.zeros((num_clients, topk.NUM_BINS), jnp.int32),
  )
  return Uplink(clients, order, counts)


def choose(
    pick: Callable[[Uplink, jax.Array, topk.Entry], jax.Array],
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int,
    axes: tuple[str, ...],
    client_chunk: int | None,
) -> Choice:
  """The choices for several k, where J follows from what is sent.

  Args:
    pick: (Uplink, k [], last [N]) -> [D] bool, J.
    accumulated, weights, ks, width, axes, client_chunk: see `fab.choose`.

  Returns:
    The choices, with a leading axis S.
  """
  clients = Clients(accumulated, weights, axes, client_chunk)
  sent = open_uplink(clients, ks, width)

  def one(k):
    last = sent.last(k)
    mask = pick(sent, k, last)
    return Choice(mask, last, *sent.sums(k, last, mask))

  return lax.map(one, ks)
