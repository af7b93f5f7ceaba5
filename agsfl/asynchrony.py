"""Asynchronous rounds: a step of the server whenever some messages arrived."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.attendance import (
  Attendance,
  Begun,
  Sampling,
  draw_key,
  eligible,
  weights_of,
)
from agsfl.synced import Synced, at_start, missed, served
from agsfl.types import Cohort, Flights


class BufferState(NamedTuple):
  """State of `buffered`.

  Attributes:
    clients: [n] i32, who is at work.
    began, left, behind: of each, see `Flights`.
    history: [V, D] f32, the weights after m rounds in row m mod V.
    synced: what clients have of the server's messages.
  """

  clients: jax.Array
  began: jax.Array
  left: jax.Array
  behind: jax.Array
  history: jax.Array
  synced: Synced


# Seconds of an empty place.
_NEVER = 1e30


def buffered(
    sampling: Sampling,
    at_work: int,
    arrivals: int,
    places: int,
    max_staleness: int,
    num_clients: int,
    dim: int,
) -> Attendance:
  """The server takes a step whenever K messages have arrived.

  n clients are at work at any time, or fewer if not so many are available. When
  a message of a client arrives, this client or another one begins with the
  present weights. A client whose weights are s rounds old counts (1 + s)^(-1/2)
  times. If they are older than `max_staleness` rounds, it counts 0 times and
  only begins anew. A step of the server ends when all K clients have its
  message; messages that arrive earlier wait.

  Args:
    sampling: which clients begin.
    at_work: n.
    arrivals: K.
    places: at least K; the others stay empty.
    max_staleness: in rounds.
    num_clients: N.
    dim: D.

  Returns:
    The attendance.

  Source: Nguyen et al., "Federated Learning with Buffered Asynchronous
  Aggregation", AISTATS 2022.
  """
  versions = max_staleness + 1

  def init(params):
    return BufferState(
        clients=jnp.zeros(at_work, jnp.int32),
        began=jnp.zeros(at_work, jnp.int32),
        left=jnp.zeros(at_work, jnp.float32),
        behind=jnp.zeros(at_work, jnp.float32),
        history=jnp.zeros((versions, *params.shape), jnp.float32),
        synced=at_start(num_clients),
    )

  def begin(data, state, now, is_free, wait):
    """Clients begin in free places, after m rounds."""
    m = state.round_index
    lead = jnp.where(m > 0, at_work - arrivals, 0)
    scores = sampling.rule(draw_key(state), data, Begun(m, arrivals, lead))

    # Who is still at work may not begin again.
    nobody = len(data.counts)
    working = jnp.where(is_free, nobody, now.clients)
    may = eligible(data, state).at[working].set(False, mode="drop")

    # The best ones go to the free places, in this order.
    found, best = lax.top_k(jnp.where(may, scores, -1.0), at_work)
    best = jnp.where(found < 0, nobody, best)
    best = best[jnp.cumsum(is_free) - 1]
    clients = jnp.where(is_free, best, now.clients)

    # An empty place never arrives before a client.
    behind = missed(now.synced, clients, dim, dim)
    seconds = wait(data.only(clients), state, behind)
    seconds = jnp.where(clients < nobody, seconds, _NEVER)
    return now._replace(
        clients=clients,
        began=jnp.where(is_free, m, now.began),
        left=jnp.where(is_free, seconds, now.left),
        behind=jnp.where(is_free, behind, now.behind),
    )

  def next_ones(now):
    """[K] places; of equal times the lower number comes first."""
    return jnp.lexsort((now.clients, now.left))[:arrivals]

  def draw(data, state, wait):
    m, now = state.round_index, state.attendance

    # Before round 1 nobody is at work.
    everywhere = jnp.ones(at_work, bool)
    now = lax.cond(
        m == 0,
        lambda: begin(data, state, now, everywhere, wait),
        lambda: now,
    )
    now = now._replace(history=now.history.at[m % versions].set(state.params))

    # The clients of the next K messages, in the order of their numbers.
    order = next_ones(now)
    order = order[jnp.argsort(now.clients[order])]
    clients, began, left, behind = (
        x[order] for x in (now.clients, now.began, now.left, now.behind)
    )
    empty = len(data.counts) + jnp.arange(places, dtype=jnp.int32)
    clients = jnp.where(clients < len(data.counts), clients, empty[:arrivals])
    staleness = m - began
    trust = jnp.where(
        staleness < versions, (1.0 + staleness.astype(jnp.float32)) ** -0.5, 0.0
    )

    # Places that only fill the devices.
    fill = lambda x: jnp.pad(x, (0, places - arrivals))
    clients = jnp.concatenate([clients, empty[arrivals:]])
    weights = weights_of(sampling, data, clients)
    flights = Flights(*map(fill, (began, left, trust, behind)))
    return Cohort(clients, weights, flights), now

  def after(data, state, info, wait):
    now = state.attendance

    # Places are free of those who arrived, or if nobody was there to begin.
    is_free = now.clients >= len(data.counts)
    is_free = is_free.at[next_ones(now)].set(True)
    now = now._replace(left=now.left - info.timing.duration)
    now = begin(data, state, now, is_free, wait)
    begun = jnp.where(is_free, now.clients, len(data.counts))
    return now._replace(
        synced=served(now.synced, begun, info.volume_down, dim)
    )

  return Attendance(init, draw, after)
