"""What this package does, as programs that the benchmark times."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from agsfl import devices, platforms, programs, sweeps
from agsfl.config import Config
from agsfl.parts import Parts, build_model
from agsfl.sparsifiers import METHODS
from agsfl.tasks import TASKS
from agsfl.training import models
from agsfl.training.client import LocalTraining, build_client
from agsfl.types import KController, KProposal, Model
from experiments.benchmark.program import Program
from experiments.benchmark.work import BATCH, Work

METHOD = "fab_top_k"
# The probe k' as a share of k.
PROBE = 0.7
_BYTES_PER_FLOAT = 4


def gradients(
    work: Work,
    model: Model | None = None,
    training: LocalTraining | None = None,
    rate: float = 1.0,
) -> Program:
  """What all clients compute, `LocalResult.gradient` of each, [N, D].

  Args:
    work: the samples.
    model: None for the built-in network of this name.
    training: local steps; None for one gradient.
    rate: eta of the local steps.

  Returns:
    The program.
  """
  model = model or models.build(work.name, work.data().form)
  local_result = build_client(model, BATCH, training)
  params = model.init(jax.random.key(0))
  data = devices.place_clients(work.clients(), work.mesh)

  def one(key, params, data, rate, start, count):
    return local_result(key, params, data, start, count, rate).gradient

  @jax.jit
  def all_clients(key, params, data, rate):
    shared = data.replace(starts=None, counts=None)
    each = platforms.for_each_client()(one, (None, None, None, None, 0, 0))
    return each(key, params, shared, rate, data.starts, data.counts)

  return Program(
      all_clients, jax.random.key(1), params, data, jnp.float32(rate),
      mesh=work.mesh,
  )


def local_steps(work: Work, steps: int, rate: float) -> Program:
  """The sum of each client's gradients over some steps of plain SGD, [N, D]."""
  training = LocalTraining(steps, optax.sgd(1.0))
  return gradients(work, training=training, rate=rate)


class Selection(Program):
  """The choice of `METHOD` for k and for the probe, in one call.

  A call returns two of `types.Selection`, stacked.
  """

  def __init__(self, work: Work, accumulated: jax.Array):
    """Compiles, for all k.

    Args:
      work: whose clients have equal weights.
      accumulated: [N, D] f32.
    """
    sparsifier = METHODS[METHOD].build()
    num_rows, dim = accumulated.shape  # with rows that fill up the devices
    state = sparsifier.init(num_rows, dim)

    @jax.jit
    def for_both(accumulated, weights, ks):
      key = jax.random.key(0)
      of = lambda k: sparsifier.select(key, accumulated, weights, k, state)[0]
      return jax.vmap(of)(ks)

    weights = jnp.where(jnp.arange(num_rows) < work.num_clients, 1.0, 0.0)
    super().__init__(
        for_both, accumulated, weights / work.num_clients, _ks(1),
        mesh=work.mesh,
    )

  def at(self, k: int) -> "Selection":
    """The same program, with this k in the next calls."""
    self.arguments[2] = _ks(k)
    return self


def _ks(k):
  return jnp.array([k, int(PROBE * k)], jnp.int32)


def _unlearned():
  """The work of online learning, but k and the probe do not change."""
  first = KProposal(jnp.float32(1.0), jnp.float32(1.0))
  return KController(
      init=lambda key: (first, first),
      update=lambda key, observed, proposal: (proposal, proposal),
      observes=True,
      probes=True,
  )


def _config(work, **settings):
  return Config(
      method=METHOD,
      model=work.name,
      num_devices=work.num_devices,
      batch_size=BATCH,
      **settings,
  )


class Rounds(Program):
  """Whole rounds of `METHOD` with online learning, some in one program."""

  def __init__(self, work: Work, length: int = 1):
    """Compiles `length` rounds for each call, for all k."""
    config = _config(work, rounds_per_call=length, eval_every=length)
    parts = Parts.of(controller=_unlearned())
    data = work.data()
    model = build_model(config, parts, data)
    compiled = programs.Programs(
        config, parts, model, TASKS[data.task], work.num_clients
    )
    clients = devices.place_clients(work.clients(), compiled.mesh)
    self._init = lambda: compiled.init(config)
    super().__init__(
        compiled.run,
        clients,
        self._init(),
        jnp.int32(length),
        programs.budget_of(config),
        mesh=compiled.mesh,
    )
    self._num_devices = compiled.mesh.size
    self._num_floats = work.num_clients * model.dim

  @property
  def memory_in_nd_floats(self) -> float:
    """Memory of all devices beside the data, in units of N D floats."""
    data = sum(x.nbytes for x in jax.tree.leaves(self.arguments[0]))
    size = self.memory_bytes * self._num_devices - data
    return size / _BYTES_PER_FLOAT / self._num_floats

  def at(self, k: int) -> "Rounds":
    """The same program, which begins anew with this k."""
    proposal = lambda: KProposal(jnp.float32(k), jnp.float32(PROBE * k))
    self.arguments[1] = None  # before the new state, to save memory
    self.arguments[1] = self._init().replace(
        proposal=proposal(), controller=proposal()
    )
    return self

  def __call__(self) -> None:
    """Runs the next rounds."""
    self.arguments[1], _, _ = super().__call__()


def runs(
    work: Work, k: int, count: int, length: int, side_by_side: bool
) -> Callable[[], None]:
  """Several runs with a constant k.

  Args:
    work: the samples of all runs.
    k: elements.
    count: runs.
    length: rounds of each run in a call.
    side_by_side: whether all runs are lanes of one program. Else each is a
      call of one program.

  Returns:
    A function that runs `length` more rounds of each run, and waits.
  """
  data = work.data()
  config = _config(
      work, controller="fixed", k=k, rounds_per_call=length, eval_every=length
  )
  if side_by_side:
    configs = [dataclasses.replace(config, seed=seed) for seed in range(count)]
    simulation = sweeps.build_lanes(configs, [data] * count)
    calls = 1
  else:
    simulation, calls = programs.build(config, data), count
  state = simulation.state

  def run():
    nonlocal state
    for _ in range(calls):
      state, _ = simulation.advance(state, length)
    jax.block_until_ready(state)

  return run
