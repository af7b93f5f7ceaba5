"""The form of a rule for k that settings can name."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax

from agsfl.types import KController


class RunSettings(Protocol):
  """What a rule may read of a run's settings, beside k and its interval."""

  @property
  def num_rounds(self) -> int:
    """T, rounds of the run."""

  @property
  def budget(self) -> float | None:
    """Time after which the run ends, in the unit of `Observation.time`.

    None if no time ends it. Only rules with `uses_budget` are given it.
    """

  @property
  def stuck_rounds(self) -> int | None:
    """Rounds in a row without a slope after which k rises; None: never."""

  @property
  def exp3_arms(self) -> int | None:
    """Arms of EXP3; None: every whole k."""

  @property
  def bandit_radius(self) -> float | None:
    """Radius of the bandit, in halves of the interval; None: T^(-1/4)."""

  @property
  def bandit_step(self) -> float | None:
    """Step of the bandit, in halves of the interval; None: T^(-3/4)."""

  @property
  def recorded_ks(self) -> Sequence[float]:
    """[T] elements, k of each round of the run to replay."""


class Build(Protocol):
  """Makes a controller for one run."""

  def __call__(
      self,
      k: float | jax.Array,
      k_min: float,
      k_max: float,
      settings: RunSettings,
      /,
  ) -> KController:
    """Takes the first k, which may be traced, and the interval; in elements."""


class Rule(NamedTuple):
  """An entry of `CONTROLLERS`.

  Attributes:
    build: makes the controller.
    learns: whether k moves in the interval. If not, the interval is ignored.
    uses_horizon: whether `build` reads the number of rounds. If so, a run
      cannot go on with more rounds.
    uses_budget: whether `build` reads the budget. If so, a run cannot go on
      with more time.
  """

  build: Build
  learns: bool = True
  uses_horizon: bool = False
  uses_budget: bool = False
