"""What ONE client does with the part of its gradient that it did not send.

In the paper a client adds all of it to its next gradient. Where few of many
clients take part in a round, it waits for long and no longer fits the weights.
These are three remedies.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from agsfl.types import PyTree


class Feedback(NamedTuple):
  """The rule; its defaults are those of the paper.

  Attributes:
    decay: factor of the residual for each round since the client last took
      part; 1 leaves it as it is.
    preview: a, the share of the residual that the client applies to the weights
      before it computes its gradient. Nothing of the residual is lost. Source:
      SA-PEF, arXiv 2601.20738.
    stateless: whether clients keep no residual. They send the difference
      between their gradient and the last aggregate, which all of them know.
      Source: CAFe, arXiv 2412.04538.
    sends_all: whether clients send all that they have, and all of it arrives.
      So their residuals would be zeros.
  """

  decay: float = 1.0
  preview: float = 0.0
  stateless: bool = False
  sends_all: bool = False

  @property
  def has_residual(self) -> bool:
    """Whether clients have something that they have not sent."""
    return not (self.stateless or self.sends_all)

  def init(self, num_clients: int, dim: int) -> PyTree:
    """The state before round 1.

    Returns:
      With decay [N] i32, the round in which each client last took part; if
      clients are stateless [D] f32, the last aggregate; else ().
    """
    if self.stateless:
      return jnp.zeros(dim, jnp.float32)
    if self.decay < 1 and self.has_residual:
      return jnp.zeros(num_clients, jnp.int32)
    return ()

  def waited(self, residual: jax.Array, age: jax.Array) -> jax.Array:
    """[D], what is left of a residual when its client takes part again.

    Args:
      residual: [D].
      age: [] i32, rounds since the client last took part, at least 1.
    """
    return residual * self.decay ** age.astype(jnp.float32)

  def start(
      self, params: jax.Array, residual: jax.Array, eta: jax.Array
  ) -> jax.Array:
    """[D], the weights at which the client computes.

    SA-PEF's residual is a step of the weights. Here it is a sum of gradients,
    and eta times its negative is that step.

    Args:
      params: [D] w(m-1).
      residual: [D], from `waited`.
      eta: [] f32, the learning rate of the client.
    """
    return params - self.preview * eta * residual

  def step(self, aggregate: jax.Array, state: PyTree) -> jax.Array:
    """[D] b, from which the server steps.

    Args:
      aggregate: [D], the mean of what arrived.
      state: before the round.
    """
    return aggregate + state if self.stateless else aggregate

  def after(self, state: PyTree, b: jax.Array, m: jax.Array) -> PyTree:
    """The state after round m, of those who took part.

    Args:
      state: before the round.
      b: [D], from which the server stepped.
      m: [] i32.
    """
    if self.stateless:
      return b
    if self.decay < 1 and self.has_residual:
      return jnp.full_like(state, m)
    return state


AS_IN_THE_PAPER = Feedback()
