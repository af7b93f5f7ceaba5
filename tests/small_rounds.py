"""Whole rounds of the linear model, and how tests play them."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from agsfl import controllers, rounds, sparsifiers
from agsfl.sparsifiers import cpu
from agsfl.types import KController, KProposal, Observation
from tests.linear import BATCH, DIM, linear_model

BETA = 10.0
RATE = 0.5
# What rules ask of a run.
RUN = types.SimpleNamespace(
    num_rounds=50,
    budget=None,
    stuck_rounds=None,
    exp3_arms=5,
    bandit_radius=None,
    bandit_step=None,
    recorded_ks=[9.5, 7.0, 4.25, 18.0],
)


class Script(KController):
  """A controller that plays pairs (k, k') and keeps what it observed."""

  def __new__(cls, pairs):
    pairs = jnp.asarray(pairs, jnp.float32)
    propose = lambda m: KProposal(*pairs[jnp.minimum(m, len(pairs) - 1)])
    shown = lambda: jnp.zeros(len(Observation._fields))
    return super().__new__(
        cls,
        init=lambda key: (propose(0), (jnp.int32(0), shown())),
        update=lambda key, observed, state: (
            propose(state[0] + 1),
            (state[0] + 1, jnp.stack(observed)),
        ),
        observes=True,
        probes=True,
    )


def narrow_fab():
  """FAB whose windows are so short that small examples need several."""
  return sparsifiers.fab_top_k(functools.partial(cpu.fab, width=4))


def build(controller, sparsifier=None, server=None, model=None, **parts):
  """A round whose other parts are those of the paper, of the linear model."""
  return rounds.build_round(
      model or linear_model(),
      sparsifier or narrow_fab(),
      controller,
      server=server or optax.sgd(RATE),
      batch_size=BATCH,
      comm_time=BETA,
      **parts,
  )


# Built once, so that tests share what is compiled.
@functools.cache
def steady():
  return build(controllers.fixed(6))


@functools.cache
def descent():
  return build(controllers.sign_descent(10, 2, DIM))


def play(simulated, data, num_rounds, seed=0, jit=jax.jit):
  """States and infos of some rounds, NumPy; the first state is round 0's."""
  state = simulated.init(jax.random.key(seed), len(data.counts))
  step = jit(simulated.step)
  states, infos = [jax.device_get(state)], []
  for _ in range(num_rounds):
    state, info = step(data, state)
    states.append(jax.device_get(state))
    infos.append(jax.device_get(info))
  return states, infos


def assert_close(got, want):
  """Law: two ways to one result differ in the last bits of sums alone."""
  chex.assert_trees_all_equal_structs(got, want)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
      a, b = jax.random.key_data(a), jax.random.key_data(b)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
