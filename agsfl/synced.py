"""How much each client has missed of what the server sent.

A client that did not take part for some rounds needs the server's messages of
these rounds, or all weights if these are fewer numbers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Volumes are whole numbers, or for D above 2^20 multiples of D / 2^20. So a
# difference of two sums is right even if the sums have grown beyond 2^32 units.
# But it must be below that: the messages of 4,096 dense rounds.
_PER_DIM = 2**20


def _unit(dim):
  """In numbers."""
  return max(1.0, dim / _PER_DIM)


class Synced(NamedTuple):
  """What the server has sent, and what of it each client has.

  Attributes:
    sent: [] u32, in units of at least one number, modulo 2^32.
    received: [N] u32, the same at the time when the client was up to date.
  """

  sent: jax.Array
  received: jax.Array


def at_start(num_clients: int) -> Synced:
  """All clients have the first weights before the run begins."""
  return Synced(jnp.uint32(0), jnp.zeros(num_clients, jnp.uint32))


def missed(
    synced: Synced, clients: jax.Array, dim: int, most: int
) -> jax.Array:
  """[n] f32, the volume that brings clients up to date, in 32-bit numbers.

  Args:
    synced: before the round.
    clients: [n] i32; a number >= N has missed nothing.
    dim: D.
    most: the volume after which the server sends the whole state instead.
  """
  received = jnp.where(
      clients < len(synced.received),
      synced.received.at[clients].get(mode="clip"),
      synced.sent,
  )
  units = (synced.sent - received).astype(jnp.float32)
  return jnp.minimum(units * _unit(dim), jnp.float32(most))


def served(
    synced: Synced, clients: jax.Array, volume_down: jax.Array, dim: int
) -> Synced:
  """After a message of the server, which these clients have.

  Args:
    synced: before it.
    clients: [n] i32; numbers >= N are left out.
    volume_down: [] f32, of the message.
    dim: D.
  """
  units = jnp.ceil(volume_down / _unit(dim)).astype(jnp.uint32)
  sent = synced.sent + units
  return Synced(sent, synced.received.at[clients].set(sent, mode="drop"))
