"""What the benchmark compares with: plain loops over plain gradients."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from agsfl.tasks import cross_entropy
from agsfl.training.client import as_input
from experiments.benchmark.program import Program
from experiments.benchmark.work import Work


def _gradient(work):
  """The function (params, features, labels) -> gradient, and first weights."""
  network, (features, _) = work.network, work.batches()
  params = network.init(jax.random.key(0), as_input(features[0]))

  def loss(params, features, labels):
    logits = network.apply(params, as_input(features))
    if logits.ndim == 3:
      logits = logits[:, -1]  # of the last token, for a sample has one label
    return jnp.mean(cross_entropy(logits, labels))

  return jax.grad(loss), params


def _on_first_device(work):
  return jax.device_put(work.batches(), jax.devices()[0])


def loop(work: Work) -> Callable[[], list[jax.Array]]:
  """A Python loop over one jitted gradient.

  Args:
    work: the samples.

  Returns:
    A function that computes all clients' gradients, each [D], and waits.
  """
  gradient, params = _gradient(work)
  flat = jax.jit(lambda *batch: ravel_pytree(gradient(params, *batch))[0])
  batches = [
      jax.device_put(batch, jax.devices()[0])
      for batch in zip(*work.batches(), strict=True)
  ]
  return lambda: jax.block_until_ready([flat(*batch) for batch in batches])


def batched(work: Work) -> Program:
  """jit(vmap(grad)), whose result is a pytree of [N, ...]."""
  gradient, params = _gradient(work)
  gradients = jax.jit(jax.vmap(lambda *batch: gradient(params, *batch)))
  return Program(gradients, *_on_first_device(work))


def local_steps(work: Work, steps: int, rate: float) -> Program:
  """jit(vmap) of plain SGD at each client, its minibatch always the same.

  Args:
    work: the samples.
    steps: of each client.
    rate: eta.

  Returns:
    The program; it returns the sum of each client's gradients, a pytree of
    [N, ...].
  """
  gradient, start = _gradient(work)

  def train(features, labels):
    def step(_, total):
      params = jax.tree.map(lambda w, g: w - rate * g, start, total)
      new = gradient(params, features, labels)
      return jax.tree.map(jnp.add, total, new)

    return lax.fori_loop(0, steps, step, jax.tree.map(jnp.zeros_like, start))

  return Program(jax.jit(jax.vmap(train)), *_on_first_device(work))


def top_k(work: Work, accumulated: jax.Array, k: int) -> Program:
  """`lax.top_k` of all magnitudes [N, D]: each client's k largest."""
  largest = jax.jit(lambda a: lax.top_k(jnp.abs(a), k))
  return Program(largest, accumulated, mesh=work.mesh)
