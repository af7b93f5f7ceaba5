"""How long a cohort's round takes in seconds, and which client decides this."""

import jax
import jax.numpy as jnp

from agsfl.clocks.speeds import Speeds

# Bytes of a number.
_NUMBER = 4

# Seconds of a round in which nobody takes part. Time must pass, or nobody would
# ever be on. Clients are on for minutes to hours, so a server that looks again
# after a minute finds each of them.
EMPTY_ROUND = 60.0

# Why a round lasted as long as it did; `slowest` gives the place in this list.
CAUSES = (
    "computation", "upload", "latency", "download", "deadline", "nobody"
)


def arrival(
    speeds: Speeds, seen: jax.Array | float, volume_up: jax.Array | float
) -> jax.Array:
  """When each client's message is at the server, from the round's beginning.

  Args:
    speeds: [n] each.
    seen: [n] or [] samples whose gradients a client computes.
    volume_up: [n] or [] numbers of 32 bits in its message.

  Returns:
    [n] f32 seconds: latency + computation + upload.
  """
  computation, upload, latency = _parts(speeds, seen, volume_up)
  return latency + computation + upload


def _parts(speeds, seen, volume_up):
  """Seconds [n] by cause, in the order of the first three `CAUSES`."""
  volume_up = jnp.float32(volume_up)
  return (
      speeds.seconds_per_sample * jnp.float32(seen),
      _NUMBER * volume_up / speeds.up,
      jnp.float32(speeds.latency),
  )


def transfer(
    bytes_a_second: jax.Array, volume: jax.Array | float
) -> jax.Array:
  """[n] f32 seconds of a transfer, without latency.

  Args:
    bytes_a_second: [n].
    volume: [n] or [] numbers of 32 bits.
  """
  return _NUMBER * jnp.float32(volume) / bytes_a_second


def download(speeds: Speeds, volume_down: jax.Array | float) -> jax.Array:
  """How long the server's message takes to each client.

  Args:
    speeds: [n] each.
    volume_down: [] numbers of 32 bits.

  Returns:
    [n] f32 seconds: latency + download.
  """
  return speeds.latency + _NUMBER * jnp.float32(volume_down) / speeds.down


def in_time(
    arrivals: jax.Array, takes_part: jax.Array, deadline: float | jax.Array
) -> jax.Array:
  """Whose message the server uses.

  Args:
    arrivals: [n] seconds.
    takes_part: [n] bool, who began.
    deadline: [] seconds, infinite if the server waits for all.

  Returns:
    [n] bool.
  """
  return takes_part & (arrivals <= deadline)


def round_seconds(
    arrivals: jax.Array,
    downloads: jax.Array,
    takes_part: jax.Array,
    deadline: float | jax.Array = jnp.inf,
) -> jax.Array:
  """How long a synchronous round takes.

  The server waits for the last message, or until the deadline if a message is
  not there by then. Then it sends its own message. The round ends when all
  clients that took part have it, also those that were late.

  Args:
    arrivals, downloads: [n] seconds.
    takes_part: [n] bool, who began.
    deadline: [] seconds, infinite if the server waits for all.

  Returns:
    [] f32; `EMPTY_ROUND` if nobody takes part.
  """
  last = lambda seconds: jnp.max(seconds, where=takes_part, initial=0.0)
  lasts = jnp.minimum(last(arrivals), deadline) + last(downloads)
  return jnp.where(jnp.any(takes_part), lasts, jnp.float32(EMPTY_ROUND))


def slowest(
    arrivals: jax.Array,
    speeds: Speeds,
    seen: jax.Array | float,
    volume_up: jax.Array | float,
    behind: jax.Array | float,
    takes_part: jax.Array,
    deadline: float | jax.Array = jnp.inf,
) -> tuple[jax.Array, jax.Array]:
  """For whom the server waited longest, and why.

  Args:
    arrivals, takes_part, deadline: as for `round_seconds`.
    speeds, seen, volume_up: as for `arrival`.
    behind: [n] or [] numbers of 32 bits that a client needed first.

  Returns:
    place: [] i32 in the cohort, the first of several; -1 if nobody takes part.
    cause: [] i32, a place in `CAUSES`: the longest part of this client's time,
      or the deadline if it missed that.
  """
  parts = jnp.stack(jnp.broadcast_arrays(
      *_parts(speeds, seen, volume_up), transfer(speeds.down, behind)
  ))
  place = jnp.argmax(jnp.where(takes_part, arrivals, -jnp.inf))
  place = place.astype(jnp.int32)
  of_parts = jnp.argmax(parts[:, place])
  missed = arrivals[place] > deadline
  cause = jnp.where(missed, CAUSES.index("deadline"), of_parts)
  anybody = jnp.any(takes_part)
  return (
      jnp.where(anybody, place, -1),
      jnp.where(anybody, cause, CAUSES.index("nobody")).astype(jnp.int32),
  )
