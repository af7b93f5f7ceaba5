"""Rounds of few of many clients in plain NumPy, in the order of the papers.

Clients are those of `linear`, whose gradients have no chance in them. This file
shares no code with the package. Selections are those of `reference`.
"""

import heapq
from typing import NamedTuple

import numpy as np

from tests import reference
from tests.linear import losses_and_gradients

# The number of float32 elements that a kept bfloat16 lacks: its last 16 bits.
_BFLOAT16 = np.uint32(0xFFFF0000)


class Federation(NamedTuple):
  """Clients of one sample each, held `counts` times.

  Attributes:
    features: [N, F].
    labels: [N].
    counts: [N] C_i.
    rate: eta of the server and of the clients.
  """

  features: np.ndarray
  labels: np.ndarray
  counts: np.ndarray
  rate: float

  def gradient(self, client, params):
    """[D] f32, of the client's sample."""
    own = slice(client, client + 1)
    _, (gradient,) = losses_and_gradients(
        params, self.features[own], self.labels[own]
    )
    return gradient.astype(np.float32)


class Remedy(NamedTuple):
  """What clients do with old residuals; see `agsfl.feedback`."""

  decay: float = 1.0
  preview: float = 0.0
  stateless: bool = False


AS_IN_THE_PAPER = Remedy()


class After(NamedTuple):
  """What a round leads to.

  Attributes:
    params: [D].
    residual: [N, D].
    aggregate: [D] b, from which the server stepped.
    accumulated: {client: [D]} before it sent.
    contributed: {client: elements that the server used}.
  """

  params: np.ndarray
  residual: np.ndarray
  aggregate: np.ndarray
  accumulated: dict
  contributed: dict


def bfloat16(x):
  """The nearest bfloat16 of each float32; of two the even one."""
  bits = np.asarray(x, np.float32).view(np.uint32)
  half = np.uint32(0x7FFF) + (bits >> 16 & 1)
  return ((bits + half) & _BFLOAT16).view(np.float32)


def top(x, k):
  """The k entries of largest magnitude; 0 elsewhere."""
  kept = np.zeros_like(x)
  places = reference.largest(x, k)
  kept[places] = x[places]
  return kept


def play_round(
    federation,
    params,
    residual,
    clients,
    heard,
    k,
    *,
    remedy=AS_IN_THE_PAPER,
    waited=None,
    last_aggregate=None,
    old_params=None,
    trust=None,
    coded=lambda x: x,
    k_of=None,
):
  """A round of FAB-top-k of those who take part.

  Args:
    federation: all clients.
    params: [D] w(m-1).
    residual: [N, D]; not used by stateless clients.
    clients: who computes.
    heard: whose message arrives; some of `clients`.
    k: elements of a message.
    remedy: for old residuals.
    waited: {client: rounds since it last took part}.
    last_aggregate: [D] b of the round before; of stateless clients.
    old_params: {client: [D]}, the weights at which it computes, if not w(m-1).
    trust: {client: factor of its weight}; None for 1 each.
    coded: [D] -> what of it a message can hold.
    k_of: {client: k_i}; None for k each.

  Returns:
    An `After`.
  """
  # Each client adds its gradient to what it did not send.
  accumulated = {}
  for client in clients:
    here = params if old_params is None else old_params[client]
    if remedy.stateless:
      waiting = -last_aggregate
    else:
      waiting = residual[client]
      if remedy.decay < 1:
        waiting = waiting * np.float32(remedy.decay ** waited[client])
      here = here - remedy.preview * federation.rate * waiting
    gradient = federation.gradient(client, here)
    accumulated[client] = np.float32(gradient + waiting)

  # The server selects among the messages that it has.
  heard = sorted(heard)
  sizes = np.array([federation.counts[client] for client in heard], float)
  trusts = np.array([1.0 if trust is None else trust[i] for i in heard])
  messages = {client: coded(accumulated[client]) for client in heard}
  used = [i for i, s in zip(heard, trusts, strict=True) if s > 0]
  sent = {client: np.zeros_like(params, np.float32) for client in clients}
  b = np.zeros(len(params))
  if used:
    weights = (sizes * trusts)[trusts > 0]
    stacked = np.stack([messages[client] for client in used])
    selection = reference.fab(stacked, weights, k)
    share = weights / sizes.sum()
    of_client = selection.sent
    if k_of is not None:
      # J is that of k each; of it a client sends its k_i largest entries.
      own = np.stack([top(messages[i], k_of[i]) for i in used])
      of_client = np.where(selection.mask, own, 0)
    for client, own, factor in zip(used, of_client, share, strict=True):
      sent[client] = own
      b += factor * own

  # All of it that the server used leaves the residuals.
  residual = residual.copy()
  if not remedy.stateless:
    for client in clients:
      residual[client] = accumulated[client] - sent[client]
  elif used:
    b = b + last_aggregate
  return After(
      params - federation.rate * b if used else params,
      residual,
      b,
      accumulated,
      {client: np.count_nonzero(own) for client, own in sent.items()},
  )


class Arrival(NamedTuple):
  """A message on its way; of equal times the lower client comes first.

  Attributes:
    time: seconds since the start of the run.
    client: its number.
    began: after how many rounds it took its weights.
  """

  time: float
  client: int
  began: int


class Buffer:
  """The queue of events of FedBuff: messages, and the steps of the server.

  Source: Nguyen et al., AISTATS 2022, Alg. 1.
  """

  def __init__(self, num_clients, at_work, arrivals):
    """Nobody is at work.

    Args:
      num_clients: N.
      at_work: n, clients that work at any time.
      arrivals: K.
    """
    self.num_clients = num_clients
    self.at_work = at_work
    self.arrivals = arrivals
    self.queue = []
    self.rounds = 0

  def begin(self, order, available, arrival_of):
    """Clients begin until n are at work.

    Args:
      order: all clients, those that are to begin first come first.
      available: the clients that can begin.
      arrival_of: client -> seconds since the start at which its message comes.
    """
    working = {message.client for message in self.queue}
    for client in order:
      if len(self.queue) == self.at_work:
        break
      if client in available and client not in working:
        message = Arrival(arrival_of(client), client, self.rounds)
        heapq.heappush(self.queue, message)

  def next_messages(self):
    """The K messages of the server's next step; fewer if fewer work."""
    count = min(self.arrivals, len(self.queue))
    self.rounds += 1
    return [heapq.heappop(self.queue) for _ in range(count)]
