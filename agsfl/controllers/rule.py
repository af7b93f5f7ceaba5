"""A rule for k as a run's settings name it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import jax

from agsfl.types import KController


class RunSettings(Protocol):
  """What a rule may ask of a run's settings, beside k and its interval."""

  @property
  def num_rounds(self) -> int:
    """T, rounds of the run."""

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
    """Takes the first k, perhaps traced, and the interval; in elements."""


class Rule(NamedTuple):
  """A rule by name.

  Attributes:
    build: makes the controller.
    learns: whether k moves in the interval; without, the interval is ignored.
    uses_horizon: whether `build` looks at the number of rounds. Such a run
      cannot go on with more rounds than it was begun with.
  """

  build: Build
  learns: bool = True
  uses_horizon: bool = False
