"""How fast each client computes, sends and receives; no logic."""

from typing import NamedTuple

import jax


class Speeds(NamedTuple):
  """The device and the link of each client.

  The axis of clients comes first, so a cohort's speeds are rows of all.

  Attributes:
    seconds_per_sample: [N] f32, of one forward and backward pass.
    up: [N] f32, bytes a second from the client to the server.
    down: [N] f32, bytes a second from the server to the client.
    latency: [N] f32, seconds until the first byte of a message arrives.
  """

  seconds_per_sample: jax.Array
  up: jax.Array
  down: jax.Array
  latency: jax.Array
