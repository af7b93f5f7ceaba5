"""What each k would have cost in the rounds of a real run.

The run trains with k fixed at --k. In each round a grid of k is tried on the
same residuals and minibatches. Then
tau_m(k) = theta(k) fall_m(--k) / fall_m(k), where fall_m(k) is the fall of the
loss on those minibatches. This assumes three things:

- The loss falls evenly within a round: half of the fall takes half of the time.
  The paper's estimate assumes this too.
- The fall of a round measures its progress. But a smaller k leaves a larger
  residual, which helps in later rounds; a single round does not show that. And
  the fall is that of the whole minibatch's loss, not of one sample's.
- The costs do not depend on the k that is played. They are those of the
  recorded run. Another k would have led to other weights and residuals.

If the loss does not fall for some k, the round has no cost and is left out.
This favours values of k that always work.

Source: Han, Wang, Leung, ICDCS 2020, the cost tau_m(k) of Sec. IV.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from agsfl.config import Config
from agsfl.data import federated
from agsfl.errors import DivergedError, require
from agsfl.parts import Parts, build_model, compose, numbers_of
from agsfl.recorder import diverged
from agsfl.rounds import RoundStep
from agsfl.tasks import TASKS
from agsfl.types import KProposal
from experiments.paper import study


def costs_of(
    times: np.ndarray, falls: np.ndarray, wanted: float
) -> np.ndarray:
  """tau_m(k): the time that each k needs for one and the same fall.

  Args:
    times: [K] theta(k).
    falls: [K] the fall of the loss in that time, positive.
    wanted: the fall that is needed.

  Returns:
    [K] time.
  """
  return times * wanted / falls


class Recorded(NamedTuple):
  """The costs of one run.

  Attributes:
    k: where a rule that learns k begins, in elements.
    interval: (k_min, k_max).
    grid: [K] k.
    costs: [R, K] tau_m(k) of the rounds whose loss falls for all of these k.
    left_out: the number of other rounds.
  """

  k: float
  interval: tuple[float, float]
  grid: np.ndarray
  costs: np.ndarray
  left_out: int


def build_recorder(step: RoundStep, batch_size: int) -> Callable:
  """A round that also tries other values of k.

  Args:
    step: of a `Round` whose k is fixed.
    batch_size: samples per minibatch.

  Returns:
    (ClientData, RoundState, ks [K] f32) -> (RoundState, RoundInfo,
    times [1 + K], falls [1 + K]). The state is that of the round's own k, whose
    time and fall come first.
  """

  def recorded(data, state, ks):

    def loss_at(params):
      """On the round's minibatches: their draw does not depend on weights."""
      there = state.replace(params=params)
      return step(data, there)[1].minibatch_loss

    def measure(k):
      tried = state.replace(
          proposal=KProposal(k, k),
          elapsed=jnp.float32(0.0),
          elapsed_rest=jnp.float32(0.0),
      )
      moved, info = step(data, tried)
      # As in online learning: one more sample per client.
      theta = info.elapsed + 1.0 / batch_size
      return theta, loss_before - loss_at(moved.params)

    after, info = step(data, state)
    loss_before = info.minibatch_loss
    times, falls = lax.map(measure, jnp.append(state.proposal.k, ks))
    return after, info, times, falls

  return recorded


def record(config: Config, grid_size: int) -> Recorded:
  """Trains with k fixed and measures the costs of a grid of k in each round.

  The rounds are those that a run of these settings has with the controller
  `fixed`, up to the order of sums.

  Args:
    config: `k` is played; the grid has even steps in log k over its interval.
    grid_size: values of k; there are fewer if some round to the same number.

  Returns:
    The costs.

  Raises:
    ConfigError: k is outside its interval, the interval holds fewer than three
      k, or no round has a cost.
    DivergedError: a loss was not finite.
  """
  data = federated.load(config.dataset, config, config)
  config = dataclasses.replace(config, controller="fixed")
  model = build_model(config, Parts(), data)
  # As a rule that learns k has them.
  learned = dataclasses.replace(config, controller="sign")
  k, *interval = learned.k_range(model.dim)
  grid = np.unique(np.geomspace(*interval, grid_size).round())
  require(
      len(grid) >= 3,
      "k_max",
      config.k_max,
      "large enough for three k from k_min on",
  )
  played = compose(
      config, Parts(), model, TASKS[data.task].loss,
      numbers_of(config, model.dim),
  )
  clients = jax.tree.map(jnp.asarray, data.clients)
  state = played.init(jax.random.key(config.seed), len(data.client_names))
  recorder = jax.jit(build_recorder(played.step, config.batch_size))
  costs = []
  for _ in study.progress(range(config.num_rounds)):
    state, info, *measured = recorder(clients, state, jnp.float32(grid))
    times, falls = np.asarray(measured, float)
    if not np.all(np.isfinite(falls)):
      raise DivergedError(
          diverged(int(info.round_index), "the loss", config)
      )
    if np.all(falls > 0):
      costs.append(costs_of(times[1:], falls[1:], falls[0]))
  require(
      costs,
      "num_rounds",
      config.num_rounds,
      "enough for a round in which the loss falls for every k of the grid; a "
      "larger --k_min may help",
  )
  left_out = config.num_rounds - len(costs)
  return Recorded(k, tuple(interval), grid, np.array(costs), left_out)


def cached(config: Config, grid_size: int, path: Path) -> Recorded:
  """Reads from a file what `record` gave earlier; else records and writes it.

  Args:
    config, grid_size: see `record`.
    path: of the file.

  Raises:
    ConfigError: the file is of other settings; see also `record`.
    DivergedError: a loss was not finite.
  """
  asked = {**dataclasses.asdict(config), "grid_size": grid_size}
  saved = study.cached(
      path,
      asked,
      lambda: {
          name: np.asarray(value).tolist()
          for name, value in record(config, grid_size)._asdict().items()
      },
  )
  return Recorded(
      k=saved["k"],
      interval=tuple(saved["interval"]),
      grid=np.array(saved["grid"]),
      costs=np.array(saved["costs"]),
      left_out=saved["left_out"],
  )


class Averaged(NamedTuple):
  """Recorded costs, averaged over rounds in a row.

  Attributes:
    grid: [K] k.
    costs: [W, K] averages.
    order: [R] the average that each recorded round belongs to.
  """

  grid: np.ndarray
  costs: np.ndarray
  order: np.ndarray


def average(recorded: Recorded, window: int) -> Averaged:
  """Means over about `window` rounds in a row, of those that have a cost."""
  parts = np.array_split(
      recorded.costs, -(-len(recorded.costs) // window)
  )
  return Averaged(
      recorded.grid,
      np.array([part.mean(axis=0) for part in parts]),
      np.repeat(np.arange(len(parts)), [len(part) for part in parts]),
  )


def slopes(grid: np.ndarray, costs: np.ndarray) -> np.ndarray:
  """[..., K - 1] slopes of piecewise linear costs [..., K]."""
  return np.diff(costs) / np.diff(grid)


def convex_share(grid: np.ndarray, costs: np.ndarray) -> float:
  """Share of inner grid points at which the slope does not fall."""
  return float(np.mean(np.diff(slopes(grid, costs)) >= 0))
