"""Search spaces: the settings of --search, and the values they may have."""

import dataclasses
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from agsfl.config import Config
from agsfl.errors import refuse, require
from agsfl.records.folder import Extent
from agsfl.settings import checked, kinds_of
from agsfl.words import whole
from experiments.lib import values

if TYPE_CHECKING:
  import optuna

# Settings that cannot be searched, and why.
_REFUSED = {
    **dict.fromkeys(Extent._fields, "all trials need the same budget"),
    "eval_every": "all trials need evaluations at the same rounds",
    **dict.fromkeys(("seed", "data_seed"), "the best seed is only good luck"),
}
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
# The ends of a number's range: on a log scale after "log:", shares of D in %.
_RANGE = re.compile(r"(log:)?([^%,]+?)(%?)\.\.([^%,]+)(%?)")


class Range(NamedTuple):
  """Numbers from one end to another.

  Attributes:
    name: of the setting.
    low, high: the ends, both possible; whole numbers if all values are.
    log: whether each factor is as likely as another, not each difference.
    unit: "%" for shares of D, else empty.
  """

  name: str
  low: float
  high: float
  log: bool
  unit: str

  @property
  def identity(self) -> str:
    """What tells it from other ranges, for tune.json."""
    ends = f"{whole(self.low)}{self.unit}..{whole(self.high)}{self.unit}"
    return f"log:{ends}" if self.log else ends

  def value_of(self, trial: "optuna.Trial") -> Any:
    """The value that a trial has; it gets one at the first call."""
    suggest = trial.suggest_float
    if isinstance(self.low, int):
      suggest = trial.suggest_int
    number = suggest(self.name, self.low, self.high, log=self.log)
    return checked(_FIELDS[self.name], _with_unit(number, self.unit))


class Choices(NamedTuple):
  """Some values.

  Attributes:
    name: of the setting.
    texts: the values as text; "None" leaves the setting unset.
  """

  name: str
  texts: tuple[str, ...]

  @property
  def identity(self) -> list[str]:
    """What tells it from other choices, for tune.json."""
    return list(self.texts)

  @property
  def first(self) -> Any:
    """The value that was named first."""
    return _parsed(self.name, self.texts[0])

  def value_of(self, trial: "optuna.Trial") -> Any:
    """The value that a trial has; it gets one at the first call."""
    return _parsed(self.name, trial.suggest_categorical(self.name, self.texts))


Dimension = Range | Choices


def _parsed(name, text):
  return checked(_FIELDS[name], values.parsed("search", name, text))


def _with_unit(number, unit):
  return f"{number:.6g}%" if unit else number


def dimensions_of(texts: list[str]) -> list[Dimension]:
  """The search space that some --search flags name.

  Args:
    texts: their values, such as "k=log:10..10000" or "method=fab_top_k,gtop_k".

  Raises:
    ConfigError: there is none, one cannot be read, a setting is named twice or
      cannot be searched, or it cannot have one of the values.
  """
  require(texts, "search", "", "given, such as learning_rate=log:1e-3..1")
  dimensions = [_dimension_of(text) for text in texts]
  names = [dimension.name for dimension in dimensions]
  for name in names:
    require(names.count(name) == 1, "search", name, "named once")
  return dimensions


def _dimension_of(text):
  name, rest = values.split("search", text)
  if name in _REFUSED:
    refuse(
        f"--search={text}",
        f"must be of another setting, because {_REFUSED[name]}",
    )
  if float in kinds_of(_FIELDS[name]) or int in kinds_of(_FIELDS[name]):
    if match := _RANGE.fullmatch(rest):
      return _range_of(f"--search={text}", name, *match.groups())
  example = f"{name}=0.1..1, {name}=log:0.1..1 or {name}=1,2"
  texts = values.listed("search", name, rest, example)
  for one in texts:
    _parsed(name, one)
  return Choices(name, tuple(texts))


def _range_of(given, name, log, first, first_unit, last, last_unit):
  """A Range of the parts that the pattern has found."""
  try:
    low, high = float(first), float(last)
  except ValueError:
    refuse(given, f"must have numbers around .., such as {name}=1..10")
  kinds = kinds_of(_FIELDS[name])
  if first_unit != last_unit or (first_unit and str not in kinds):
    refuse(given, "must have % at both ends or at none; k can be a share of D")
  # Elements are whole numbers too.
  if float not in kinds or (str in kinds and not first_unit):
    if not (low.is_integer() and high.is_integer()):
      refuse(given, "must have whole numbers around ..")
    low, high = int(low), int(high)
  for number in (low, high):
    checked(_FIELDS[name], _with_unit(number, first_unit))
  if low >= high or (log and low <= 0):
    more = ", and a number above 0, for a log scale" if log else ""
    refuse(given, f"must have the smaller number first{more}")
  return Range(name, low, high, bool(log), first_unit)
