"""Messages from clients to the server: their size, their time, their arrival.

Without a clock in seconds, dropouts and message settings, all messages arrive,
an index and a value are 32 bits each, and no seconds pass.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from agsfl import clocks
from agsfl.attendance import drops_out
from agsfl.clocks import Message
from agsfl.controllers.cost import add_time
from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import SPARSE, weighted_sum
from agsfl.types import Cohort, RoundState, Selection, Timing

_BYTES_PER_NUMBER = 4.0


class Delivery(NamedTuple):
  """How messages come to the server and back.

  Attributes:
    message: how elements are coded.
    in_seconds: whether simulated seconds pass; the data then have speeds.
    deadline: seconds after which the server no longer waits. A client that is
      late keeps its gradient in its residual, if it has one.
    ends_together: whether clients send so many elements each that all uploads
      end together; k is then their mean, and the size of J.
    dropout: the probability that a client's message is lost in a round. Its
      gradient stays in its residual, if it has one.
    elements: of a message if k does not decide it; None for k.
    numbers_per_element: of a message, see `Method`.
  """

  message: Message = Message()
  in_seconds: bool = False
  deadline: float = math.inf
  ends_together: bool = False
  dropout: float = 0.0
  elements: int | None = None
  numbers_per_element: int = SPARSE

  @property
  def is_certain(self) -> bool:
    """Whether every message arrives."""
    return self.deadline == math.inf and self.dropout == 0

  def planned(self, k: jax.Array, dim: int) -> jax.Array:
    """The volume of a client's message of k elements, in 32-bit numbers."""
    elements = k if self.elements is None else jnp.full_like(k, self.elements)
    elements = elements.astype(jnp.float32)
    numbers = self.numbers_per_element * elements
    return clocks.volume(self.message, elements, numbers, dim)

  def coded(self, selection: Selection, dim: int) -> Selection:
    """The selection with its volumes as messages are coded."""

    def volume(message, elements, numbers):
      elements = elements.astype(jnp.float32)
      return clocks.volume(message, elements, numbers, dim)

    # The server sends its sums as they are: it has no residual for their rest.
    down = self.message._replace(value_bits=32)
    return selection._replace(
        volume_up=volume(self.message, selection.k_up, selection.volume_up),
        volume_down=volume(down, selection.k_down, selection.volume_down),
    )


EVERYTHING_ARRIVES = Delivery()


def arrivals_of(
    speeds: Any, seen: jax.Array, behind: jax.Array, volume_up: jax.Array
) -> jax.Array:
  """[n] f32, seconds until the messages of clients are at the server.

  Args:
    speeds, seen, behind: see `Work`.
    volume_up: [n] or [] f32, numbers in their messages.
  """
  arrivals = clocks.arrival(speeds, seen, volume_up)
  return arrivals + clocks.transfer(speeds.down, behind)


class Work(NamedTuple):
  """What the clients of a round do, beside their messages.

  Attributes:
    clients: [n] i32, their numbers.
    counts: [n] i32, C_i; who has none does nothing.
    speeds: of each; None without seconds.
    seen: [n] i32, samples in each client's local gradients.
    behind: [n] f32, numbers that each needs first, see `synced.missed`.
    dim: D.
  """

  clients: jax.Array
  counts: jax.Array
  speeds: Any
  seen: jax.Array
  behind: jax.Array
  dim: int

  def arrivals(self, volume_up: jax.Array) -> jax.Array:
    """[n] f32, seconds until messages of this volume are at the server."""
    return arrivals_of(self.speeds, self.seen, self.behind, volume_up)


class Meeting(NamedTuple):
  """Whom the server hears in a round.

  Attributes:
    waits_for: [n] bool, who computes and does not drop out.
    arrived: [n] bool, whose message the server has in time.
    lost: [n] bool, who drops out.
    weights: [n] f32, C_i / C of those who arrived, 0 for the others.
    damping: [] f32, factor of the server's step for stale messages, or None.
    arrivals: [n] f32, seconds after which each message arrives; None if what
      is sent decides it.
  """

  waits_for: jax.Array
  arrived: jax.Array
  lost: jax.Array
  weights: jax.Array
  damping: jax.Array | None
  arrivals: jax.Array | None


def meet(
    delivery: Delivery,
    work: Work,
    state: RoundState,
    cohort: Cohort | None,
    k: jax.Array,
) -> Meeting:
  """Whom the server hears.

  Args:
    delivery: how messages come to the server.
    work: of the round's clients.
    state: before the round.
    cohort: who takes part; None for all clients.
    k: [] i32, elements of a message.

  Returns:
    The meeting.
  """
  flights = None if cohort is None else cohort.flights
  computes = waits_for = arrived = work.counts > 0
  if delivery.dropout:
    m = state.round_index + 1
    arrived &= ~drops_out(state.key, m, work.clients, delivery.dropout)
    # A server that counts messages does not know who is at work.
    waits_for = arrived if flights is None else waits_for
  lost = computes & ~arrived

  # With a deadline, the size that is planned decides who is late.
  arrivals = None if flights is None else flights.left
  if delivery.deadline < math.inf:
    most = k_of_clients(delivery, work, waits_for, k)
    arrivals = work.arrivals(
        delivery.planned(k if most is None else most, work.dim)
    )
    arrived &= clocks.in_time(arrivals, waits_for, delivery.deadline)

  # C_i / C; a stale message counts less, and so does the server's step.
  of_all = work.counts if cohort is None else cohort.weights
  base = jnp.where(arrived, of_all, 0)
  trusted, damping = base, None
  if flights is not None:
    trusted = base * flights.trust
    damping = jnp.sum(trusted) / jnp.maximum(jnp.sum(base), 1)
  total = jnp.float32(jnp.sum(trusted))
  weights = jnp.float32(trusted) / jnp.where(total > 0, total, 1.0)
  return Meeting(waits_for, arrived, lost, weights, damping, arrivals)


def k_of_clients(
    delivery: Delivery, work: Work, waits_for: jax.Array, k: jax.Array
) -> jax.Array | None:
  """How many elements each client sends.

  Args:
    delivery, work, k: see `meet`.
    waits_for: [n] bool, see `Meeting`.

  Returns:
    k_i [n] i32, so that all uploads end together; None if it is k for all.
  """
  if not delivery.ends_together:
    return None
  per_element = delivery.planned(jnp.maximum(k, 1), work.dim)
  per_element *= _BYTES_PER_NUMBER / jnp.maximum(k, 1).astype(jnp.float32)
  return clocks.k_together(
      work.speeds,
      work.seen,
      k,
      waits_for,
      per_element,
      work.dim,
      clocks.transfer(work.speeds.down, work.behind),
  )


def volumes_up(
    delivery: Delivery, work: Work, meeting: Meeting, selection: Selection
) -> jax.Array:
  """[n] or [] f32, numbers in each client's message.

  Args:
    delivery, work: see `meet`.
    meeting: of the round.
    selection: coded.
  """
  most = k_of_clients(delivery, work, meeting.waits_for, selection.k_up)
  if most is None:
    return selection.volume_up
  return delivery.planned(most, work.dim)


def seconds_of(
    delivery: Delivery, work: Work, meeting: Meeting, selection: Selection
) -> jax.Array:
  """[] f32, how long a synchronous round takes with a selection.

  Args:
    delivery, work, meeting, selection: see `volumes_up`.
  """
  volume = volumes_up(delivery, work, meeting, selection)
  return _duration(delivery, work, meeting, selection, work.arrivals(volume))


def _duration(delivery, work, meeting, selection, arrivals):
  return clocks.round_seconds(
      arrivals,
      clocks.download(work.speeds, selection.volume_down),
      meeting.waits_for,
      delivery.deadline,
  )


def pass_seconds(
    delivery: Delivery,
    work: Work,
    seconds: tuple[jax.Array, jax.Array],
    meeting: Meeting,
    selection: Selection,
) -> tuple[tuple[jax.Array, jax.Array], Timing]:
  """The simulated time after a round, and its record for readers.

  Args:
    delivery, work, meeting, selection: see `volumes_up`.
    seconds: `RoundState.seconds` before the round.

  Returns:
    `RoundState.seconds` after it, and the timing.
  """
  volume = volumes_up(delivery, work, meeting, selection)
  arrivals = meeting.arrivals
  if arrivals is None:
    arrivals = work.arrivals(volume)
  duration = _duration(delivery, work, meeting, selection, arrivals)
  before, rest = seconds
  now, rest = add_time(before, rest, duration)
  place, cause = clocks.slowest(
      arrivals,
      work.speeds,
      work.seen,
      volume,
      work.behind,
      meeting.waits_for,
      delivery.deadline,
  )
  late = meeting.waits_for & (arrivals > delivery.deadline)
  return (now, rest), Timing(
      seconds=now,
      duration=duration,
      late=jnp.sum(late, dtype=jnp.int32),
      slowest=jnp.where(place < 0, -1, work.clients[place]),
      cause=cause,
  )


def traffic(
    delivery: Delivery, work: Work, meeting: Meeting, selection: Selection
) -> tuple[jax.Array, jax.Array]:
  """[] f32 each: numbers in the messages of all clients, and to all of them.

  A late message counts, because it was sent too. Each client that computes has
  received what it needs for that.

  Args:
    delivery, work, meeting, selection: see `volumes_up`.
  """
  up = volumes_up(delivery, work, meeting, selection)
  down = selection.volume_down + work.behind
  total = lambda volume, clients: jnp.sum(jnp.where(clients, volume, 0.0))
  return total(up, meeting.waits_for), total(down, work.counts > 0)


def all_sent(
    selection: Selection, messages: jax.Array, weights: jax.Array
) -> Selection:
  """A selection in which the server has what clients send of J, and no more.

  A sparsifier looks at the k largest entries of each client, to choose J. But
  some clients send more elements, which count too, and others send fewer.

  Args:
    selection: of sparse messages.
    messages: [n, D] f32, 0 where a client sends nothing.
    weights: [n] f32, see `Meeting`.
  """
  used = selection.mask[None] & (messages != 0) & (weights > 0)[:, None]
  total = weighted_sum(messages, weights)
  aggregate = jnp.where(selection.mask, total, 0.0)
  k_down = jnp.sum(aggregate != 0, dtype=jnp.int32)
  return selection._replace(
      aggregate=aggregate,
      k_down=k_down,
      volume_down=SPARSE * k_down.astype(jnp.float32),
      contributed=jnp.sum(used, axis=1, dtype=jnp.int32),
  )


def largest(accumulated: jax.Array, most: jax.Array) -> jax.Array:
  """ONE client's k_i largest entries; 0 elsewhere.

  Args:
    accumulated: [D] f32.
    most: [] i32, k_i.

  Returns:
    [D] f32.
  """
  keys = topk.magnitude_key(accumulated)
  last = topk.nth_largest(keys, topk.count(keys), most)
  return jnp.where(topk.at_or_above(keys, last), accumulated, 0.0)
