"""Who takes part in a round: some clients of all, drawn anew every round.

A draw depends only on the root key, the round and the client. So it is the same
on any number of devices, and it is known before the round begins, unless it
depends on who is available.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.clocks import is_on
from agsfl.data.federated import ClientData
from agsfl.names import SamplingName
from agsfl.synced import Synced, at_start, served
from agsfl.types import Cohort, PyTree, RoundInfo, RoundState

# The root key's round key -> a key for each purpose; a round uses 0 to 3.
_WHO, _DROPOUT = 4, 5


class Wait(Protocol):
  """How long clients need if they begin now."""

  def __call__(
      self, data: ClientData, state: RoundState, behind: jax.Array, /
  ) -> jax.Array:
    """Returns [n] f32, seconds until their messages arrive.

    Args:
      data: of these clients.
      state: of the run.
      behind: [n] f32, see `synced.missed`.
    """


class Attendance(NamedTuple):
  """Who takes part.

  Attributes:
    init: params [D] -> the state before round 1; it has a field `synced`.
    draw: (data of all clients, state, wait) -> the cohort of the next round,
      and the attendance's state.
    after: (data of all clients, state after a round, its info, wait) -> the
      attendance's state.
  """

  init: Callable[[jax.Array], PyTree]
  draw: Callable[[ClientData, RoundState, Wait], tuple[Cohort, PyTree]]
  after: Callable[[ClientData, RoundState, RoundInfo, Wait], PyTree]


def _round_key(key, round_index, purpose):
  """The key of a round's draws for one purpose."""
  return jax.random.fold_in(jax.random.fold_in(key, round_index), purpose)


def draw_key(state: RoundState) -> jax.Array:
  """The key by which the clients of the next round are drawn."""
  return _round_key(state.key, state.round_index + 1, _WHO)


def drops_out(
    key: jax.Array, round_index: jax.Array, clients: jax.Array, share: float
) -> jax.Array:
  """[n] bool, which clients drop out in the middle of a round.

  Args:
    key: the root key.
    round_index: [] i32, m.
    clients: [n] i32.
    share: probability.
  """
  key = _round_key(key, round_index, _DROPOUT)
  return _uniform_by_client(key, clients) < share


def _uniform_by_client(key, clients):
  """[n] f32 from [0, 1), which depends only on the key and the client."""
  of_client = lambda client: jax.random.uniform(
      jax.random.fold_in(key, client), dtype=jnp.float32
  )
  return jax.vmap(of_client)(clients)


class Begun(NamedTuple):
  """How many clients have begun before: times * number + lead.

  Attributes:
    times: [] i32.
    number: of clients that begin at a time.
    lead: [] i32, what the first time had more.
  """

  times: jax.Array
  number: int
  lead: jax.Array | int = 0


# (key, data, Begun) -> [N] f32, not negative; the largest are drawn.
Rule = Callable[[jax.Array, ClientData, Begun], jax.Array]


def _uniform(key, data, begun):
  """Every client with the same probability."""
  del begun
  return _uniform_by_client(key, jnp.arange(len(data.counts)))


def _by_size(key, data, begun):
  """One after another, with probabilities in proportion to C_i.

  Source: Efraimidis and Spirakis, "Weighted random sampling with a reservoir",
  Information Processing Letters 2006.
  """
  del begun
  u = _uniform_by_client(key, jnp.arange(len(data.counts)))
  # log(1 - u) is 0 for u = 0; a number below all others keeps it finite.
  return data.counts / (jnp.float32(1e-20) - jnp.log1p(-u))


def _round_robin(key, data, begun):
  """In the order of their numbers."""
  del key
  has_samples = data.counts > 0
  number = jnp.cumsum(has_samples) - 1
  total = jnp.maximum(jnp.sum(has_samples, dtype=jnp.int32), 1)
  first = _times(begun.times, begun.number, total) + begun.lead % total
  after_first = (number - first) % total
  return (total - after_first).astype(jnp.float32)


def _times(a, b: int, modulus):
  """a * b mod modulus in int32, which the product itself may exceed."""

  def add_bit(total, bit):
    doubled = 2 * total % modulus
    return (doubled + jnp.where(bit, a % modulus, 0)) % modulus, None

  bits = jnp.array([int(bit) for bit in f"{b:b}"], bool)
  return lax.scan(add_bit, jnp.zeros_like(modulus), bits)[0]


class Sampling(NamedTuple):
  """An entry of `SAMPLINGS`.

  Attributes:
    rule: which clients are drawn.
    weighs_alike: whether all count alike in the mean, because the size of their
      data is in the draw already.
  """

  rule: Rule
  weighs_alike: bool = False


SAMPLINGS: dict[SamplingName, Sampling] = {
    "uniform": Sampling(_uniform),
    "by_size": Sampling(_by_size, weighs_alike=True),
    "round_robin": Sampling(_round_robin),
}


def _largest(scores, may, number, places):
  """The best `number` clients, ascending; then empty places."""
  number = min(number, len(scores))
  found, clients = lax.top_k(jnp.where(may, scores, -1.0), number)
  # An empty place has a number of its own, beyond all clients.
  empty = len(scores) + jnp.arange(places, dtype=jnp.int32)
  clients = jnp.where(found < 0, empty[:number], clients)
  return jnp.sort(jnp.concatenate([clients, empty[number:]]))


def eligible(data: ClientData, state: RoundState) -> jax.Array:
  """[N] bool, clients with samples that are available now."""
  may = jnp.asarray(data.counts) > 0
  if data.availability is not None:
    may &= is_on(data.availability, state.seconds[0])
  return may


class SampledState(NamedTuple):
  """State of `sampled`.

  Attributes:
    synced: what clients have of the server's messages.
  """

  synced: Synced


def sampled(
    sampling: Sampling, number: int, places: int, num_clients: int, dim: int
) -> Attendance:
  """A new draw in every round, without replacement.

  Clients without samples, or that are not available, do not take part. If too
  few are left, places stay empty.

  Args:
    sampling: which clients are drawn.
    number: n, the clients of a round.
    places: at least n; the others stay empty.
    num_clients: N.
    dim: D.

  Returns:
    The attendance. Its draws do not depend on its state.
  """

  def init(params):
    del params
    return SampledState(at_start(num_clients))

  def draw(data, state, wait):
    del wait
    begun = Begun(state.round_index, number)
    scores = sampling.rule(draw_key(state), data, begun)
    clients = _largest(scores, eligible(data, state), number, places)
    weights = weights_of(sampling, data, clients)
    return Cohort(clients, weights), state.attendance

  def after(data, state, info, wait):
    del data, wait
    synced = state.attendance.synced
    return SampledState(served(synced, info.clients, info.volume_down, dim))

  return Attendance(init, draw, after)


def weights_of(
    sampling: Sampling, data: ClientData, clients: jax.Array
) -> jax.Array:
  """[n] i32, C_i; or 1 for each client if the draw has regarded the sizes."""
  counts = jnp.asarray(data.only(clients).counts)
  return (counts > 0).astype(jnp.int32) if sampling.weighs_alike else counts
