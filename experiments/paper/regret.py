"""The measured regret of learning k, beside the bounds that the paper gives.

All values are in units of G B, where G is the greatest slope of a cost and B is
the width of the interval of k. In these units the bounds are sqrt(2 M) with the
exact sign and H sqrt(2 M) with an estimated sign. There are three parts:

1. Made-up costs that meet every assumption: convex, one minimiser, a known G,
   and the exact sign in each round. The figure shows the worst of several
   minimisers.
2. The same with signs that are right with probability --sign_accuracy = p in
   each round independently, so H = 1 / (2 p - 1). The figure shows the mean
   over --noise_seeds.
3. Costs of a real run, see `recorded_costs`. They need not meet any assumption.
   They are averaged over --average_over rounds and linear between grid points.
   The rules play them again and again. They see the cost at k and at their
   probe k', as in a real round, and not the exact sign. G is the greatest slope
   of the averages. The regret is relative to the k that is best over all rounds
   played. The averages are not all convex and have different minimisers. So the
   theorem does not apply, and the bound is drawn only for comparison.

The paper gives no bound for moving intervals (Alg. 3); they are drawn too.

Source: Han, Wang, Leung, ICDCS 2020, the theorems on Alg. 2.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from agsfl import controllers
from agsfl.config import Config
from agsfl.errors import require
from agsfl.sparsifiers import METHODS
from agsfl.types import KController, KProposal, Observation
from experiments.lib import groups
from experiments.lib.drawing import plt
from experiments.paper import recorded_costs, study
from experiments.paper.recorded_costs import Averaged, convex_share, slopes

flags.adopt_module_key_flags(study)
PLAY_ROUNDS = flags.DEFINE_integer(
    "play_rounds", 10_000, "M, rounds played against costs.", lower_bound=2
)
SIGN_ACCURACY = flags.DEFINE_float(
    "sign_accuracy", 0.75, "Chance that a noisy sign is right."
)
NOISE_SEEDS = flags.DEFINE_integer(
    "noise_seeds", 40, "Plays with noisy signs to average.", lower_bound=1
)
GRID_SIZE = flags.DEFINE_integer(
    "grid_size", 24, "Values of k tried in each recorded round.", lower_bound=3
)
AVERAGE_OVER = flags.DEFINE_integer(
    "average_over", 10, "Recorded rounds per average cost.", lower_bound=1
)

RULES = {
    "Alg. 2": controllers.sign_descent,
    "Alg. 3": controllers.sign_interval,
}

# Made-up costs are played on the interval of the paper's FEMNIST model.
_D = 444_062
_K_INIT, _K_MIN, _K_MAX = 1000.0, 0.002 * _D, float(_D)
_MINIMISERS = np.float32([_K_MIN, 5_000, 0.3 * _D, _K_MAX])

# Convex costs of the distance k - k*. The least is 0, the slope at most G = 1.
_ROUNDING = 0.05 * _D
SHAPES = {
    "kink": np.abs,
    "smooth": lambda d: np.sqrt(_ROUNDING**2 + d**2) - _ROUNDING,
    "lopsided": lambda d: np.where(d > 0, d, -d / 4),
}


def regret(
    cost: Callable[[np.ndarray], np.ndarray], ks: np.ndarray, best: float
) -> np.ndarray:
  """R(m) for every m: how much more k_1, ..., k_m cost than `best`, m times.

  Args:
    cost: of k, the same in all rounds.
    ks: [..., M].
    best: k*.

  Returns:
    [..., M] f64.
  """
  return np.cumsum(cost(np.asarray(ks, float)) - cost(best), axis=-1)


def bound(rounds: int, noise: float = 1.0) -> np.ndarray:
  """H sqrt(2 m) for m = 1..`rounds`: bounds on regret in units of G B.

  Args:
    rounds: M.
    noise: H; 1 with the exact sign.

  Returns:
    [M].
  """
  return noise * np.sqrt(2.0 * np.arange(1, rounds + 1))


def noise_of(accuracy: float) -> float:
  """H of signs that are right with probability p, and reversed otherwise.

  The mean of such a sign is p - (1 - p) times the exact sign; this is 1 / H.

  Args:
    accuracy: p.

  Returns:
    1 / (2 p - 1).

  Raises:
    ConfigError: p is at most 1/2, where signs say nothing, or above 1.
  """
  allowed = "above 0.5, at most 1"
  require(0.5 < accuracy <= 1, "sign_accuracy", accuracy, allowed)
  return 1.0 / (2.0 * accuracy - 1.0)


def interpolate(k: jax.Array, grid: jax.Array, cost: jax.Array) -> jax.Array:
  """A cost at any k: linear between the grid points, and beyond the ends.

  A probe k' may lie below the interval of k.

  Args:
    k: [] f32.
    grid: [K] rising.
    cost: [K].

  Returns:
    [] f32.
  """
  return jnp.interp(k, grid, cost, left="extrapolate", right="extrapolate")


def play(
    controller: KController,
    observe: Callable[[KProposal, jax.Array], Observation],
    inputs: jax.Array,
) -> jax.Array:
  """The k that a rule plays, one round for each of the inputs.

  Args:
    controller: a rule that draws nothing.
    observe: (KProposal, input) -> Observation.
    inputs: [M, ...].

  Returns:
    [M] f32.
  """
  key = jax.random.key(0)

  def step(carry, x):
    proposal, state = carry
    return controller.update(key, observe(proposal, x), state), proposal.k

  return lax.scan(step, controller.init(key), inputs)[1]


def _seen(proposal, time, time_probe):
  """A round whose loss falls by 1 for both k, so its times are the costs."""
  time, time_probe = jnp.float32(time), jnp.float32(time_probe)
  one, nothing = jnp.float32(1), jnp.float32(jnp.nan)
  return Observation(
      k=proposal.k,
      k_probe=proposal.k_probe,
      time=time,
      time_probe=time_probe,
      loss=one,
      fall=one,
      fall_probe=one,
      time_silent=nothing,
      elapsed=nothing,
      lag=nothing,
  )


def synthetic(
    rule: Callable[..., KController], accuracy: float, rounds: int, seeds: int
) -> dict[str, np.ndarray]:
  """Regret against made-up costs with one minimiser.

  Args:
    rule: (k_init, k_min, k_max) -> controller.
    accuracy: chance that a sign is right.
    rounds: M.
    seeds: plays to average over.

  Returns:
    For each shape [M] regret in units of G B: the mean over seeds, for the
    minimiser that is worst at m.
  """
  controller = rule(_K_INIT, _K_MIN, _K_MAX)

  def path(best, key):
    def observe(proposal, right):
      sign = jnp.sign(proposal.k - best)
      return _seen(proposal, 4.0 + jnp.where(right, sign, -sign), 4.0)

    rights = jax.random.bernoulli(key, accuracy, (rounds,))
    return play(controller, observe, rights)

  over_seeds = jax.vmap(path, (None, 0))
  keys = jax.random.split(jax.random.key(1), seeds)
  ks = jax.jit(jax.vmap(over_seeds, (0, None)))(_MINIMISERS, keys)
  distance = np.asarray(ks, float) - _MINIMISERS[:, None, None]
  return {
      name: regret(shape, distance, 0.0).mean(1).max(0) / (_K_MAX - _K_MIN)
      for name, shape in SHAPES.items()
  }


class Played(NamedTuple):
  """A rule against recorded costs.

  Attributes:
    regret: [M] R(m), time.
    best: k*, the k that is best over all rounds.
    least: the cost of k* over all rounds.
  """

  regret: np.ndarray
  best: float
  least: float


def play_recorded(
    controller: KController, averaged: Averaged, rounds: int
) -> Played:
  """Plays recorded costs over and over.

  Args:
    controller: the rule.
    averaged: the costs. They are linear between grid points, so the best k of
      all rounds is a grid point.
    rounds: M.

  Returns:
    The regret.
  """
  played = averaged.order[np.arange(rounds) % len(averaged.order)]
  grid, costs = jnp.float32(averaged.grid), jnp.float32(averaged.costs)

  def observe(proposal, index):
    at = lambda k: interpolate(k, grid, costs[index])
    return _seen(proposal, at(proposal.k), at(proposal.k_probe))

  def paid(index):
    ks = play(controller, observe, index)
    return jax.vmap(lambda k, i: interpolate(k, grid, costs[i]))(ks, index)

  of_rule = np.asarray(jax.jit(paid)(jnp.asarray(played)), float)
  of_grid = averaged.costs[played]
  best = of_grid.sum(axis=0).argmin()
  return Played(
      regret=np.cumsum(of_rule - of_grid[:, best]),
      best=float(averaged.grid[best]),
      least=float(of_grid[:, best].sum()),
  )


def _draw(axes, rounds, values, **style):
  """Draws a line from m = 1, with gaps where regret is not positive."""
  axes.plot(rounds, np.where(values > 0, values, np.nan), lw=1.2, **style)


def _line(costs, signs, name, values, limit):
  """A line of the table; only Alg. 2 has a bound."""
  claimed = name == "Alg. 2"
  return [
      costs,
      signs,
      name,
      f"{values[-1]:.3g}",
      f"{limit[-1]:.3g}" if claimed else "",
      f"{np.max(values / limit):.3f}" if claimed else "",
  ]


_STYLES = {"Alg. 2": "-", "Alg. 3": "--"}


def _draw_synthetic(axes, signs, accuracy, seeds):
  """Draws a panel; returns its lines of the table."""
  limit = bound(PLAY_ROUNDS.value, noise_of(accuracy))
  rounds = np.arange(1, len(limit) + 1)
  lines = []
  _draw(axes, rounds, limit, color="black", label="bound of Alg. 2")
  for name, rule in RULES.items():
    measured = synthetic(rule, accuracy, len(limit), seeds)
    for index, (shape, values) in enumerate(measured.items()):
      _draw(
          axes,
          rounds,
          values,
          color=f"C{index}",
          ls=_STYLES[name],
          label=f"{shape}, {name}",
      )
      lines.append(_line(shape, signs, name, values, limit))
  axes.set_title(f"regret with made-up costs, signs {signs}", fontsize=10)
  return sorted(lines, key=lambda line: list(SHAPES).index(line[0]))


def _draw_recorded(regrets, means, config, color):
  """Draws one seed in both panels; returns lines of the table, and a note."""
  config = dataclasses.replace(config, controller="sign", replay=None)
  recorded = recorded_costs.cached(
      config, GRID_SIZE.value, study.folder() / f"seed{config.seed}.json"
  )
  averaged = recorded_costs.average(recorded, AVERAGE_OVER.value)
  grid, costs, mean = averaged.grid, averaged.costs, recorded.costs.mean(axis=0)
  k_min, k_max = recorded.interval
  steepest = np.abs(slopes(grid, costs)).max()
  unit = steepest * (k_max - k_min)
  limit = bound(PLAY_ROUNDS.value)
  rounds = np.arange(1, len(limit) + 1)
  lines, more = [], []
  for name, rule in RULES.items():
    played = play_recorded(
        rule(recorded.k, k_min, k_max), averaged, len(limit)
    )
    values = played.regret / unit
    label = f"seed {config.seed}, {name}"
    _draw(regrets, rounds, values, color=color, ls=_STYLES[name], label=label)
    source = f"recorded, seed {config.seed}"
    lines.append(_line(source, "probe", name, values, limit))
    more.append(f"{name} {played.regret[-1] / played.least:.1%}")
  means.plot(grid, costs.T, color=color, lw=0.5, alpha=0.3)
  means.plot(grid, mean, color=color, label=f"seed {config.seed}, mean")
  least = grid[costs.argmin(axis=1)]
  note = (
      f"Recorded, seed {config.seed}: {len(recorded.costs)} rounds have a "
      f"cost, {recorded.left_out} are left out. Share of second differences "
      f"that are at least 0: {convex_share(grid, recorded.costs):.0%} in "
      f"single rounds, {convex_share(grid, costs):.0%} in the averages, "
      f"{convex_share(grid, mean):.0%} in the mean cost. "
      f"G = {steepest:.3g} time per element, G B = {unit:.3g}. Best k over all "
      f"rounds: {played.best:.0f}; of single averages: {least.min():.0f} to "
      f"{least.max():.0f}. Extra time beyond that of the best k: "
      f"{', '.join(more)}."
  )
  return lines, note


def compare(base: Config):
  """Plays, records, draws and tabulates."""
  takes_k = METHODS[base.method].takes_k
  require(takes_k, "method", base.method, "one with a k to learn")
  accuracy = SIGN_ACCURACY.value
  noise_of(accuracy)  # Refuses what is out of range before anything runs.
  figure, ((exact, noisy), (regrets, means)) = plt.subplots(
      2, 2, figsize=(11, 8.4), layout="constrained"
  )
  lines = _draw_synthetic(exact, "exact", 1.0, 1)
  lines += _draw_synthetic(
      noisy, f"{accuracy:.0%} right", accuracy, NOISE_SEEDS.value
  )
  limit, notes = bound(PLAY_ROUNDS.value), []
  _draw(
      regrets,
      np.arange(1, len(limit) + 1),
      limit,
      color="black",
      label="bound, for comparison",
  )
  for index, seed in enumerate(study.seeds()):
    more, note = _draw_recorded(
        regrets, means, study.seeded(base)(seed), f"C{index}"
    )
    lines += more
    notes.append(note)
  k_words = groups.value_in_words(base.k or 1000.0)
  regrets.set_title(
      f"regret with the costs of a run with k = {k_words}", fontsize=10
  )
  for axes in (exact, noisy, regrets):
    axes.set(xlabel="rounds M", ylabel="R(M) / (G B)")
  means.set_title(
      f"costs of this run, means over {AVERAGE_OVER.value} rounds and over all",
      fontsize=10,
  )
  means.set(xlabel="k", ylabel=r"cost $\tau(k)$, rounds of computation")
  for axes in (exact, noisy, regrets, means):
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
  header = [
      "costs", "signs", "rule", "R(M) / (G B)", "bound / (G B)",
      "greatest R(m) / bound",
  ]
  text = f"M = {len(limit)}.\n\n" + groups.table(header, lines)
  study.finish(figure, "\n\n".join([text, *notes]))


if __name__ == "__main__":
  # Each round tries many k, which would be slow with the CNN.
  flags.FLAGS.set_default("model", "mlp")
  study.run(compare)
