"""Random numbers of clients that never change during a run."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What a draw is for. The root key folds in rounds too, and these are far above
# the last round.
SPEEDS, AVAILABILITY = 2**32 - 1, 2**32 - 2


def uniforms(seed: int, purpose: int, num_clients: int) -> np.ndarray:
  """Two numbers of each client, uniform between 0 and 1 and never 0 or 1.

  A client's numbers depend only on the seed, the purpose and its own number.

  Args:
    seed: of the run.
    purpose: `SPEEDS` or `AVAILABILITY`.
    num_clients: N.

  Returns:
    [N, 2] f64.
  """
  key = jax.random.fold_in(jax.random.key(seed), np.uint32(purpose))
  drawn = _of_clients(key, jnp.arange(num_clients))
  # JAX draws multiples of 2^-23 from 0 on; half a step more is never 0.
  return np.asarray(drawn, np.float64) + 2.0**-24


@jax.jit
def _of_clients(key, clients):
  of_client = lambda client: jax.random.uniform(
      jax.random.fold_in(key, client), (2,), jnp.float32
  )
  return jax.vmap(of_client)(clients)


def as_float32(values: Any) -> Any:
  """A NumPy array for a field that a compiled program reads."""
  return np.asarray(values, np.float32)
