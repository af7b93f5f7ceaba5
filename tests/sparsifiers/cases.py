"""Methods, hard gradients, and one round of a method on them."""

import functools
from typing import NamedTuple

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from agsfl.for_each_client import PER_CLIENT
from agsfl.sparsifiers import accelerator, cpu, methods, plain
from tests import reference, reference_methods

FACTORIES = {
    "fab": methods.fab_top_k,
    "fub": methods.fub_top_k,
    "fub_tree": methods.fub_top_k_tree,
    "unidirectional": methods.unidirectional_top_k,
}
ORACLES = {
    "fab": reference.fab,
    "fub": reference_methods.fub_flat,
    "fub_tree": reference_methods.fub_tree,
    "unidirectional": reference_methods.unidirectional,
}
FAST = {"cpu": cpu, "accelerator": accelerator}
# Fixed shapes, so that a shape compiles once and a thousand cases reuse it.
SHAPES = ((1, 12), (3, 40), (8, 40))


class Outcome(NamedTuple):
  """A Selection and all clients' Splits, as NumPy arrays."""

  mask: np.ndarray
  aggregate: np.ndarray
  contributed: np.ndarray
  k_up: np.ndarray
  k_down: np.ndarray
  volume_up: np.ndarray
  volume_down: np.ndarray
  client_mask: np.ndarray
  sent: np.ndarray
  residual: np.ndarray


def outcome(sparsifier, accumulated, weights, k, key=None):
  """One round's selection and splits, from the first state; traceable."""
  if key is None:
    key = jax.random.key(0)
  state = sparsifier.init(*accumulated.shape)
  chosen, _ = sparsifier.select(key, accumulated, weights, k, state)
  parts = jax.vmap(sparsifier.split, (0, None, 0))(
      accumulated, chosen.mask, chosen.clients
  )
  return Outcome(
      chosen.mask,
      chosen.aggregate,
      chosen.contributed,
      chosen.k_up,
      chosen.k_down,
      chosen.volume_up,
      chosen.volume_down,
      *parts,
  )


def runner(sparsifier):
  """(accumulated, counts, k) -> Outcome, compiled once for each shape."""
  compiled = jax.jit(functools.partial(outcome, sparsifier))

  def run(accumulated, counts, k):
    weights = jnp.asarray(counts / np.sum(counts), jnp.float32)
    return jax.device_get(
        compiled(jnp.asarray(accumulated), weights, jnp.int32(k))
    )

  return run


@functools.cache
def plainly(name):
  """The runner of a plain choice."""
  return runner(FACTORIES[name](getattr(plain, name)))


@functools.cache
def quickly(name, wing="cpu", width=1024):
  """The runner of a fast choice, that of a CPU or that of an accelerator."""
  choose = functools.partial(getattr(FAST[wing], name), width=width)
  return runner(FACTORIES[name](choose))


@st.composite
def gradients(draw, shapes=SHAPES):
  """(accumulated, counts, k): ties, zeros, denormals, mixed scales."""
  num_clients, dim = draw(st.sampled_from(shapes))
  kind = draw(st.sampled_from(("floats", "ties", "scaled", "shared")))
  shape = (num_clients, dim)
  if kind == "floats":
    finite = st.floats(width=32, allow_nan=False, allow_infinity=False)
    accumulated = draw(hnp.arrays(np.float32, shape, elements=finite))
  else:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    accumulated = rng.integers(-3, 4, shape).astype(np.float32)
    if kind == "scaled":
      scales = 10.0 ** rng.integers(-42, 20, (num_clients, 1))
      accumulated = (rng.normal(size=shape) * scales).astype(np.float32)
    if kind == "shared":
      base = rng.normal(size=dim)
      accumulated = base + 0.01 * rng.normal(size=shape)
      accumulated = accumulated.astype(np.float32)
  counts = draw(hnp.arrays(np.int64, num_clients, elements=st.integers(1, 99)))
  return accumulated, counts, draw(st.integers(0, dim))


@st.composite
def whole_numbers(draw, shapes=SHAPES):
  """Cases whose sums are exact, so that rounding cannot change their order.

  The values are small whole numbers, the weights whole numbers of 1/1024.
  """
  accumulated, counts, k = draw(gradients(shapes))
  accumulated = np.rint(np.clip(accumulated, -1e3, 1e3)).astype(np.float32)
  counts[0] += 1024 - counts.sum()
  return accumulated, counts, k


@st.composite
def with_silent_clients(draw, cases):
  """The cases, where one client may have the samples of several others."""
  accumulated, counts, k = draw(cases)
  silent = draw(hnp.arrays(bool, len(counts)))
  one = draw(st.integers(0, len(counts) - 1))
  silent[one] = False
  counts[one] += counts[silent].sum()
  return accumulated, np.where(silent, 0, counts), k


def assert_sums_close(got, want, accumulated):
  """Sums may differ by rounding, and denormal ones may be flushed to 0."""
  atol = 1e-6 * np.abs(accumulated).max() + 1e-37
  np.testing.assert_allclose(got, want, rtol=1e-6, atol=atol)


def split_over(mesh, *arrays):
  """Arrays of all clients, each device with its own rows."""
  sharding = NamedSharding(mesh, PER_CLIENT)
  return [jax.device_put(array, sharding) for array in arrays]
