"""From the clients' messages to the server's step: size, seconds, who arrives.

Without a clock in seconds, dropouts and message settings, all messages arrive,
an index and a value are 32 bits each, and no seconds pass.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl import clocks
from agsfl.attendance import drops_out
from agsfl.clocks import Message
from agsfl.cohorts import numbers_of
from agsfl.controllers.cost import add_time
from agsfl.data.federated import ClientData
from agsfl.sparsifiers import topk
from agsfl.sparsifiers.choice import SPARSE, weighted_sum
from agsfl.types import Cohort, RoundState, Selection, Timing


class Delivery(NamedTuple):
  """How messages come to the server and back.

  Attributes:
    message: how elements are coded.
    in_seconds: whether simulated seconds pass; the data then have speeds.
    deadline: seconds after which the server no longer waits; None for never.
      A client that is late keeps its gradient in its residual.
    ends_together: whether clients send so many elements each that all uploads
      end together; k is then their mean, and the size of J.
    dropout: the probability that a client's message is lost in a round. Its
      gradient stays in its residual.
    elements: of a message if k does not decide it; None for k.
    numbers_per_element: of a message, see `Method`.
  """

  message: Message = Message()
  in_seconds: bool = False
  deadline: float | None = None
  ends_together: bool = False
  dropout: float = 0.0
  elements: int | None = None
  numbers_per_element: int = 2

  @property
  def is_certain(self) -> bool:
    """Whether every message arrives."""
    return self.deadline is None and self.dropout == 0

  @property
  def changes_messages(self) -> bool:
    """Whether clients send something else than k entries as they are."""
    return self.ends_together or self.message.value_bits < 32

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
    delivery: Delivery,
    data: ClientData,
    seen: jax.Array,
    k: jax.Array,
    behind: jax.Array | None,
    dim: int,
) -> jax.Array:
  """[n] f32, seconds after which messages arrive of clients that begin now.

  Args:
    delivery: how messages come to the server.
    data: of these clients.
    seen: [n] i32, samples in each client's local gradients.
    k: [] or [n] i32, elements of their messages.
    behind: [n] f32, numbers that they need first; None for none.
    dim: D.
  """
  return _arrivals(data, seen, delivery.planned(k, dim), behind)


def _arrivals(data, seen, volume_up, behind):
  arrivals = clocks.arrival(data.speeds, seen, volume_up)
  if behind is None:
    return arrivals
  return arrivals + clocks.transfer(data.speeds.down, behind)


class Meeting(NamedTuple):
  """Whom the server hears in a round.

  Attributes:
    waits_for: [n] bool, who computes and does not drop out.
    arrived: [n] bool, whose message the server has in time.
    lost: [n] bool, who drops out.
    weights: [n] f32, C_i / C of those who arrived, 0 for the others.
    damping: [] f32, factor of the server's step for stale messages, or None.
    most: [n] i32, k_i, the elements that each client may send; None for k.
    arrivals: [n] f32, seconds after which each message arrives, or None.
  """

  waits_for: jax.Array
  arrived: jax.Array
  lost: jax.Array
  weights: jax.Array
  damping: jax.Array | None
  most: jax.Array | None
  arrivals: jax.Array | None


def meet(
    delivery: Delivery,
    data: ClientData,
    state: RoundState,
    cohort: Cohort | None,
    seen: jax.Array,
    k: jax.Array,
    behind: jax.Array | None,
    dim: int,
) -> Meeting:
  """Whom the server hears.

  Args:
    delivery: how messages come to the server.
    data: of the cohort.
    state: before the round.
    cohort: who takes part; None for all clients.
    seen: [n] i32, samples in each client's local gradients.
    k: [] i32, elements of a message.
    behind: [n] f32, see `synced.missed`; None for none.
    dim: D.

  Returns:
    The meeting.
  """
  flights = None if cohort is None else cohort.flights
  computes = waits_for = arrived = jnp.asarray(data.counts) > 0
  if delivery.dropout:
    clients = numbers_of(data, cohort)
    m = state.round_index + 1
    arrived &= ~drops_out(state.key, m, clients, delivery.dropout)
    # A server that counts messages does not know who is at work.
    waits_for = arrived if flights is None else waits_for
  lost = computes & ~arrived
  most, arrivals = None, None
  if delivery.in_seconds:
    most = k_of_clients(delivery, data, waits_for, seen, k, dim)
    arrivals = arrivals_of(
        delivery, data, seen, k if most is None else most, behind, dim
    )
    if flights is not None:
      arrivals = flights.left
    if delivery.deadline is not None:
      arrived &= clocks.in_time(arrivals, waits_for, delivery.deadline)

  # C_i / C; a stale message counts less, and so does the server's step.
  of_all = data.counts if cohort is None else cohort.weights
  base = jnp.where(arrived, of_all, 0)
  trusted, damping = base, None
  if flights is not None:
    trusted = base * flights.trust
    damping = jnp.sum(trusted) / jnp.maximum(jnp.sum(base), 1)
  total = jnp.float32(jnp.sum(trusted))
  weights = jnp.float32(trusted) / jnp.where(total > 0, total, 1.0)
  return Meeting(waits_for, arrived, lost, weights, damping, most, arrivals)


def k_of_clients(
    delivery: Delivery,
    data: ClientData,
    waits_for: jax.Array,
    seen: jax.Array,
    k: jax.Array,
    dim: int,
) -> jax.Array | None:
  """How many elements each client sends.

  Args:
    delivery, data, seen, k, dim: see `meet`.
    waits_for: [n] bool, see `Meeting`.

  Returns:
    k_i [n] i32, so that all uploads end together; None if it is k for all.
  """
  if not delivery.ends_together:
    return None
  k = jnp.maximum(k, 1)
  per_element = 4.0 * delivery.planned(k, dim) / k.astype(jnp.float32)
  return clocks.k_together(data.speeds, seen, k, waits_for, per_element, dim)


def seconds_of(
    delivery: Delivery,
    data: ClientData,
    meeting: Meeting,
    selection: Selection,
    seen: jax.Array,
    behind: jax.Array | None,
    dim: int,
) -> jax.Array:
  """[] f32, how long a round would take with another selection than it has.

  Args:
    delivery, data, seen, behind, dim: see `meet`.
    meeting: of the round.
    selection: coded.
  """
  most = k_of_clients(
      delivery, data, meeting.waits_for, seen, selection.k_up, dim
  )
  volume = selection.volume_up
  if most is not None:
    volume = delivery.planned(most, dim)
  arrivals = _arrivals(data, seen, volume, behind)
  return _duration(delivery, data, meeting, selection, arrivals)


def _duration(delivery, data, meeting, selection, arrivals):
  deadline = jnp.inf if delivery.deadline is None else delivery.deadline
  return clocks.round_seconds(
      arrivals,
      clocks.download(data.speeds, selection.volume_down),
      meeting.waits_for,
      deadline,
  )


def pass_seconds(
    delivery: Delivery,
    data: ClientData,
    state: RoundState,
    cohort: Cohort | None,
    meeting: Meeting,
    selection: Selection,
    seen: jax.Array,
    dim: int,
) -> tuple[tuple[jax.Array, jax.Array], Timing]:
  """The simulated time after a round, and what a reader wants to know of it.

  Args:
    delivery, data, seen, dim: see `meet`.
    state: before the round.
    cohort: who takes part; None for all clients.
    meeting: of the round.
    selection: coded.

  Returns:
    `RoundState.seconds`, and the timing.
  """
  arrivals = meeting.arrivals
  assert arrivals is not None
  duration = _duration(delivery, data, meeting, selection, arrivals)
  before, rest = state.seconds
  now, rest = add_time(before, rest, duration)
  volume = selection.volume_up
  if meeting.most is not None:
    volume = delivery.planned(meeting.most, dim)
  deadline = jnp.inf if delivery.deadline is None else delivery.deadline
  place, cause = clocks.slowest(
      arrivals, data.speeds, seen, volume, meeting.waits_for, deadline
  )
  late = meeting.waits_for & (arrivals > deadline)
  return (now, rest), Timing(
      seconds=now,
      duration=duration,
      late=jnp.sum(late, dtype=jnp.int32),
      slowest=place if cohort is None
      else jnp.where(place < 0, -1, cohort.clients[place]),
      cause=cause,
  )


def traffic(
    delivery: Delivery,
    data: ClientData,
    meeting: Meeting,
    selection: Selection,
    behind: jax.Array | None,
    dim: int,
) -> tuple[jax.Array, jax.Array]:
  """[] f32 each: numbers in the messages of all clients, and to all of them.

  A message that is late has been sent all the same. Whoever computes has had
  what it needs for that.

  Args:
    delivery, data, behind, dim: see `meet`.
    meeting: of the round.
    selection: coded.
  """
  up = selection.volume_up
  if meeting.most is not None:
    up = delivery.planned(meeting.most, dim)
  down = selection.volume_down
  if behind is not None:
    down = down + behind
  total = lambda volume, clients: jnp.sum(jnp.where(clients, volume, 0.0))
  return total(up, meeting.waits_for), total(down, data.counts > 0)


def all_sent(
    selection: Selection, messages: jax.Array, weights: jax.Array
) -> Selection:
  """A selection in which the server uses all elements of J that it has.

  A sparsifier looks at the k largest entries of each client, to choose J. But
  some clients send more, and then also these elements count.

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


def sendable(
    delivery: Delivery, accumulated: jax.Array, most: jax.Array | None
) -> jax.Array:
  """ONE client's gradient as the server would get it.

  Args:
    delivery: how messages are coded.
    accumulated: [D] f32, a_i.
    most: [] i32, k_i, the elements that it may send; None for any number.

  Returns:
    [D] f32: the k_i largest entries, rounded; 0 elsewhere.
  """
  rounded = clocks.rounded(accumulated, delivery.message.value_bits)
  if most is None:
    return rounded
  keys = topk.magnitude_key(rounded)
  last = topk.nth_largest(keys, topk.count(keys), most)
  return jnp.where(topk.at_or_above(keys, last), rounded, 0.0)
