"""What each k would have cost in the rounds of a real run.

The run trains with k fixed at --k. In each round a grid of k is tried on the
same residuals and minibatches, and tau_m(k) = theta(k) fall_m(--k) / fall_m(k),
where fall_m(k) is the fall of the loss on those minibatches. What is assumed
for that:

- The loss falls in proportion within a round: half the fall needed is half the
  time. The paper's estimate assumes the same.
- A round's fall may stand for its progress. The residual that a smaller k
  leaves behind does good in later rounds, which no single round shows, and the
  whole minibatch's loss takes the place of one sample's.
- The costs do not depend on the k played: they are those of the recorded run,
  while another k would have led to other weights and residuals.

Rounds with some fall that is not positive have no cost and are left out, which
favours k that always work.

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
from agsfl.types import KProposal
from experiments.paper import study


def costs_of(
    times: np.ndarray, falls: np.ndarray, wanted: float
) -> np.ndarray:
  """tau_m(k): the time that each k needs for one and the same fall.

  Args:
    times: [K] theta(k).
    falls: [K] positive, what the loss falls by in that time.
    wanted: the fall to pay for.

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
    costs: [R, K] tau_m(k) of rounds whose loss falls for all of these k.
    left_out: other rounds.
  """

  k: float
  interval: tuple[float, float]
  grid: np.ndarray
  costs: np.ndarray
  left_out: int


def build_recorder(step: RoundStep, batch_size: int) -> Callable:
  """A round in which other k are tried beside the one that is played.

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

  The rounds are those of the run of these settings with the controller
  `fixed`, to the order of sums.

  Args:
    config: `k` is played; the grid is spaced evenly in log k over its interval.
    grid_size: values of k, fewer where they round to the same.

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
  played = compose(config, Parts(), model, numbers_of(config, model.dim))
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
  """`record`, or what it gave before, from a file.

  Args:
    config, grid_size: see `record`.
    path: of the file; written if it is not there.

  Raises:
    ConfigError: it is of other settings; see also `record`.
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
    order: [R] which of them stands for each recorded round.
  """

  grid: np.ndarray
  costs: np.ndarray
  order: np.ndarray


def average(recorded: Recorded, window: int) -> Averaged:
  """Means over about `window` of the rounds that have a cost."""
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
