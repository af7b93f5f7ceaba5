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

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from tqdm import tqdm

from agsfl import config as settings
from agsfl import data, simulation
from agsfl.client import build_client
from agsfl.cost import round_time
from agsfl.over_clients import CLIENT_CHUNK, map_clients


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
    interval: (k_min, k_max).
    grid: [K] k.
    costs: [R, K] tau_m(k) of rounds whose loss falls for all of these k.
    left_out: other rounds.
  """

  interval: tuple[float, float]
  grid: np.ndarray
  costs: np.ndarray
  left_out: int


def build_recorder(config, model):
  """A round with k fixed in which other k are tried beside it.

  Returns:
    init: (key, N) -> carry; step: (key, ClientData, carry, ks [K] i32) ->
    (carry, times [K], falls [K]), of which carry goes on with ks[0].
  """
  chunk = config.client_chunk or CLIENT_CHUNK.get(jax.default_backend())
  sparsifier = simulation.build_sparsifier(config, model, (), chunk)
  server = simulation.build_server(config, config.learning_rate)
  training = simulation.build_training(
      config, model.dim, config.learning_rate
  )
  local_result = build_client(model, config.batch_size, training)
  # As in online learning: one more sample per client.
  compute = config.used_local_steps(model.dim) + 1.0 / config.batch_size

  def init(key, num_clients):
    params = model.init(key)
    residual = jnp.zeros((num_clients, model.dim))
    state = sparsifier.init(num_clients, model.dim)
    return params, residual, state, server.init(params)

  def step(key, clients, carry, ks):
    params, residual, state, server_state = carry
    weights = clients.counts / clients.counts.sum()
    num_clients = len(clients.counts)
    keys = jax.random.split(key, num_clients + 1)
    samples = (keys[1:], clients.starts, clients.counts)

    def over_clients(function, *arguments):
      return map_clients(function, (*arguments, *samples), chunk)

    def accumulate(residual, key, *own):
      return residual + local_result(key, params, clients, *own).gradient

    def loss_at(params):
      """On the same minibatches: their draw depends on the key alone."""
      loss = lambda key, *own: local_result(key, params, clients, *own).loss
      return jnp.sum(weights * over_clients(loss))

    accumulated = over_clients(accumulate, residual)
    loss_before = loss_at(params)

    def attempt(k):
      chosen, new_state = sparsifier.select(
          keys[0], accumulated, weights, k, state
      )
      updates, new_server = server.update(
          chosen.aggregate, server_state, params
      )
      moved = optax.apply_updates(params, updates)
      return chosen, (moved, new_state, new_server)

    def measure(k):
      chosen, (moved, *_) = attempt(k)
      theta = round_time(
          chosen.volume_up,
          chosen.volume_down,
          dim=model.dim,
          comm_time=config.comm_time,
          compute=compute,
      )
      return theta, loss_before - loss_at(moved)

    times, falls = lax.map(measure, ks)
    chosen, (params, state, server_state) = attempt(ks[0])
    residual = map_clients(
        lambda *one: sparsifier.split(one[0], chosen.mask, one[1]).residual,
        (accumulated, chosen.clients),
        chunk,
    )
    return (params, residual, state, server_state), times, falls

  return init, step


def record(config: settings.Config, grid_size: int) -> Recorded:
  """Trains with k fixed and measures the costs of a grid of k in each round.

  Args:
    config: `k` is played; the grid is spaced evenly in log k over its interval.
    grid_size: values of k, fewer where they round to the same.

  Returns:
    The costs.

  Raises:
    ConfigError: the interval holds less than three k, or no round has a cost.
    DivergedError: a loss was not finite.
  """
  federated = data.load(config.dataset, config.as_partition())
  clients = jax.tree.map(jnp.asarray, federated.clients)
  model = simulation.build_model(config, federated)
  interval = config.k_interval(model.dim)
  grid = np.unique(np.geomspace(*interval, grid_size).round())
  if len(grid) < 3:
    raise settings.ConfigError(
        f"--k_max={config.k_max}: must leave room for three k from k_min on"
    )
  init, step = build_recorder(config, model)
  root = jax.random.key(config.seed)
  carry = init(jax.random.fold_in(root, 0), len(clients.counts))
  step = jax.jit(step)
  ks = jnp.asarray([round(config.k), *grid], jnp.int32)
  costs = []
  rounds = range(1, config.num_rounds + 1)
  for index in tqdm(rounds, unit="round", disable=None):
    key = jax.random.fold_in(root, index)
    carry, *measured = step(key, clients, carry, ks)
    times, falls = np.asarray(measured, float)
    if not np.all(np.isfinite(falls)):
      raise simulation.DivergedError(
          f"round {index}: the loss is not finite; a smaller --learning_rate "
          f"than {config.learning_rate} may help"
      )
    if np.all(falls > 0):
      costs.append(costs_of(times[1:], falls[1:], falls[0]))
  if not costs:
    raise settings.ConfigError(
        f"--num_rounds={config.num_rounds}: must have a round in which the "
        "loss falls for every k of the grid; a larger --k_min may help"
    )
  left_out = config.num_rounds - len(costs)
  return Recorded(interval, grid, np.array(costs), left_out)


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
