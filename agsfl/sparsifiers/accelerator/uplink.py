"""What clients send up: J_i, each one's k largest entries, and their sum."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.sparsifiers import topk
from agsfl.sparsifiers.accelerator import order
from agsfl.sparsifiers.choice import Choice
from agsfl.sparsifiers.clients import Clients, over_devices

# Entries in a stretch: with more of them fewer passes search for it, but more
# entries are sorted.
WIDTH = 2048


class Uplink(NamedTuple):
  """J_i of all clients for S numbers k.

  Attributes:
    clients: this device's.
    samples: [N, n] entries, each client's `order.sample`.
    stretches: [N, S], of at most W entries; each holds the k-th.
    sorted: [N, S, W] i32, their coordinates, see `order.sort`.
    last: [N, S], the last entry of each J_i, as `Choice.clients` has it.
  """

  clients: Clients
  samples: topk.Entry
  stretches: order.Stretch
  sorted: jax.Array
  last: topk.Entry

  def sent(self, index: int) -> jax.Array:
    """All J_i for the k at an index, [N, D] bool."""
    last = jax.tree.map(lambda x: x[:, index], self.last)
    keys = topk.magnitude_key(self.clients.accumulated)
    return jax.vmap(topk.at_or_above)(keys, last)


def open_uplink(clients: Clients, ks: jax.Array, width: int) -> Uplink:
  """The uplink for some k.

  Args:
    clients: this device's.
    ks: [S] i32, 0..D.
    width: W; it changes the cost, never the result.

  Returns:
    The uplink.
  """

  of_client = lambda accumulated, active: open_client(
      accumulated, jnp.where(active, ks, 0), width
  )
  return Uplink(
      clients, *jax.vmap(of_client)(clients.accumulated, clients.active)
  )


def open_client(
    accumulated: jax.Array, ranks: jax.Array, width: int
) -> tuple[topk.Entry, order.Stretch, jax.Array, topk.Entry]:
  """ONE client's part of the uplink: all but the first of its attributes.

  Args:
    accumulated: [D] f32, a_i.
    ranks: [S] i32, 0..D.
    width: W.

  Returns:
    Its part; the last one is the entries at these ranks, for 0 the place above
    all entries.
  """
  sample = order.sample(accumulated)
  stretches = order.stretches(accumulated, sample, ranks, width)
  coordinates = order.sort(accumulated, stretches, width)

  # The entry at its place in the stretch.
  position = jnp.maximum(ranks - stretches.above.rank - 1, 0)
  coordinate = jnp.take_along_axis(coordinates, position[:, None], axis=1)
  entry = order.entry_at(accumulated, coordinate[:, 0])
  last = order.where(stretches.size == 0, stretches.last.entry, entry)
  return sample, stretches, coordinates, last


def choose(
    pick: Callable[[Uplink, jax.Array, jax.Array], jax.Array],
    accumulated: jax.Array,
    weights: jax.Array,
    ks: jax.Array,
    width: int,
) -> Choice:
  """The choices of a method whose J follows from what is sent.

  Args:
    pick: (Uplink, ks [S], sums [S, D]) -> [S, D] bool, J. The sums are the
      weighted ones of all that clients send.
    accumulated, weights, ks: see `choice.Choose`.
    width: see `open_uplink`.

  Returns:
    The choices, with a leading axis S.
  """

  def local(clients, ks):
    uplink = open_uplink(clients, ks, width)
    sent = [uplink.sent(index) for index in range(ks.size)]

    # One sum over all that is sent; outside J it is 0.
    weighted = clients.weights[:, None] * clients.accumulated
    sums = jnp.stack([
        jnp.sum(jnp.where(own, weighted, 0.0), axis=0) for own in sent
    ])
    sums = lax.psum(sums, clients.axes)
    mask = pick(uplink, ks, sums)

    def count(*sent):
      used = [own & of_k for own, of_k in zip(sent, mask, strict=True)]
      return order.count(used)

    return Choice(
        mask=mask,
        clients=jax.tree.map(jnp.transpose, uplink.last),
        aggregate=jnp.where(mask, sums, 0.0),
        contributed=jax.vmap(count)(*sent).T,
    )

  return over_devices(local, accumulated, weights, ks)


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

  def union(uplink, ks, sums):
    del sums
    is_sent = [jnp.any(uplink.sent(i), axis=0) for i in range(ks.size)]
    number = lax.pmax(jnp.stack(is_sent).astype(jnp.int32), uplink.clients.axes)
    return number > 0

  return choose(union, accumulated, weights, ks, width)
