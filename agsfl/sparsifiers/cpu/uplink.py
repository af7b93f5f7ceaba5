"""What clients send up: J_i, each one's k largest entries, and their sums.

All methods start from J_i. They differ in J, the coordinates on the downlink.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import Choice, split
from agsfl.sparsifiers.clients import Clients, one_run_at_a_time

# A wide window shows more ranks at once; a narrow one is sorted faster. On CPU
# `lax.top_k` of 444,062 floats takes 0.9 ms for 64 of them, 1.4 ms for 1024 and
# 3.2 ms for 4096.
WIDTH = 1024


def first_entries(clients: Clients, width: int) -> jax.Array:
  """The coordinates of each client's `width` largest entries, [N, W] i32."""
  return clients.map(lambda a: topk.top(jnp.abs(a), width))


def count(clients: Clients) -> jax.Array:
  """Each client's `topk.count`, [N, B] i32 for the B bins of D entries."""
  return clients.map(lambda a: topk.count(topk.magnitude_key(a)))


def nth_largest(
    clients: Clients, counts: jax.Array, q: jax.Array
) -> topk.Entry:
  """Each client's q-th entry.

  Args:
    clients: this device's.
    counts: [N, B] i32, their `count`.
    q: [] i32, see `topk.nth_largest`.

  Returns:
    [N] entries.
  """
  return clients.map(
      lambda a, counts: topk.nth_largest(topk.magnitude_key(a), counts, q),
      counts,
  )


class Uplink(NamedTuple):
  """J_i of all clients for some k; arrays that no k needs are zeros.

  Attributes:
    clients: this device's.
    order: [N, W] i32 from `first_entries`, for k < W.
    counts: [N, B] i32 from `count`, for W <= k < D.
  """

  clients: Clients
  order: jax.Array
  counts: jax.Array

  @property
  def width(self) -> int:
    """W."""
    return self.order.shape[1]

  def last(self, k: jax.Array) -> topk.Entry:
    """The last entry of each J_i, [N]; k [] i32, 0..D."""
    clients = self.clients
    num_clients, dim = clients.accumulated.shape
    deep = (k >= self.width).astype(jnp.int32) + (k >= dim).astype(jnp.int32)
    last = lax.switch(
        deep,
        [
            lambda: clients.entries_at(self.order[:, jnp.maximum(k - 1, 0)]),
            lambda: nth_largest(clients, self.counts, k),
            lambda: jax.tree.map(
                lambda x: jnp.full(num_clients, x), topk.below_all()
            ),
        ],
    )
    return jax.tree.map(
        lambda some, none: jnp.where(clients.active & (k > 0), some, none),
        last,
        topk.above_all(),
    )

  def sums(
      self, k: jax.Array, last: topk.Entry, mask: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """What the server adds up.

    Args:
      k: [] i32.
      last: [N], `last(k)`.
      mask: [D] bool.

    Returns:
      b [D] f32 over the coordinates of `mask`, the weighted sum of what was
      sent; and |J_i and mask|, [N] i32.
    """
    return lax.cond(
        k < self.width,
        lambda: self._sums_of_few(k, mask),
        lambda: self._sums_of_many(last, mask),
    )

  def _sums_of_few(self, k, mask):
    """One client after another, so that every platform adds in one order."""

    def add(total, client):
      accumulated, weight, order = client
      used = self._sent(k, order, weight) & mask[order]
      sent = jnp.where(used, weight * accumulated[order], 0.0)
      total = total.at[order].add(sent, unique_indices=True)
      return total, jnp.sum(used, dtype=jnp.int32)

    clients = self.clients
    arguments = (clients.accumulated, clients.weights, self.order)
    zeros = jnp.zeros(mask.shape, jnp.float32)
    total, contributed = lax.scan(add, zeros, arguments)
    return lax.psum(total, clients.axes), contributed

  def _sums_of_many(self, last, mask):
    """The same for large J_i, from all entries down to `last`."""

    def part(accumulated, weight, last):
      result = split(accumulated, mask, last)
      return weight * result.sent, jnp.sum(result.mask, dtype=jnp.int32)

    zeros = jnp.zeros(mask.shape, jnp.float32)
    return self.clients.fold(part, jnp.add, zeros, self.clients.weights, last)

  def _sent(self, k, order, weight):
    """[W] bool, which entries of a client's `order` it sends."""
    return (lax.iota(jnp.int32, order.shape[-1]) < k) & (weight > 0)

  def union(self, k: jax.Array, last: topk.Entry) -> jax.Array:
    """The coordinates that any client sends, [D] bool; see `sums`."""
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


def open_uplink(clients: Clients, ks: jax.Array, width: int) -> Uplink:
  """The uplink for some k.

  Args:
    clients: this device's.
    ks: [S] i32, 0..D.
    width: W; it changes the cost, never the result.

  Returns:
    The uplink. Call its last, sums and union only with these k.
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
      lambda: jnp.zeros((num_clients, topk.num_bins(dim)), jnp.int32),
  )
  return Uplink(clients, order, counts)


def choose(
    pick: Callable[[Uplink, jax.Array, topk.Entry], jax.Array],
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    width: int,
) -> Choice:
  """The choices of a method whose J follows from what is sent.

  Args:
    pick: (Uplink, k [], last [N]) -> [D] bool, J.
    accumulated, weights, ks: see `choice.Choose`.
    width: see `open_uplink`.

  Returns:
    The choices, with a leading axis S.
  """

  def local(clients, ks):
    uplink = open_uplink(clients, ks, width)

    def one(k):
      last = uplink.last(k)
      mask = pick(uplink, k, last)
      return Choice(mask, last, *uplink.sums(k, last, mask))

    return lax.map(one, ks)

  return one_run_at_a_time(local, accumulated, weights, ks)


def unidirectional(
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    *,
    width: int = WIDTH,
) -> Choice:
  """Top-k on the uplink only; see `methods.unidirectional_top_k`.

  Args:
    accumulated, weights, ks: see `choice.Choose`.
    width: see `open_uplink`.

  Returns:
    The choices, with a leading axis S.
  """
  return choose(Uplink.union, accumulated, weights, ks, width)
