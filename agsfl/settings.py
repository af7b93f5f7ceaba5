"""Every setting is defined once: type, default, help, bounds and choices.

`Config` and `Partition` are frozen dataclasses whose fields come from
`setting`. Their checks, the flags of all commands and the table of flags are
made from these fields.

The type of a field with a fixed list of names is a `Literal` of them, so that
editors know the names. Where users can register more names, the type is such a
`Literal` or `str`, and `choices` is the registry.
"""

import dataclasses
import fractions
import math
import numbers
import os
import types
import typing
from collections.abc import Collection
from typing import Any

import numpy as np

from agsfl.errors import refused, require

# JAX computes in float32: a larger number would become infinite.
LARGEST = 1e30

# k may be a number of elements, or text such as "1%": a share of D.
Amount = float | str

# By a field's type: the types of values that it takes, and these in words.
_KINDS: dict[type, tuple[tuple[type, ...], str]] = {
    bool: ((bool, np.bool_), "True or False"),
    int: ((numbers.Integral,), "a whole number"),
    float: ((numbers.Real,), "a number"),
    str: ((str, os.PathLike), "text"),
}


@dataclasses.dataclass(frozen=True)
class Setting:
  """The properties of a setting beside its name, type and default.

  Attributes:
    help: one or two sentences.
    least, most: bounds, both allowed.
    choices: values that are allowed; a registry grows later.
  """

  help: str
  least: float | None = None
  most: float | None = None
  choices: Collection[Any] | None = None


def setting(
    default: Any,
    help: str,
    *,
    least: float | None = None,
    most: float | None = None,
    choices: Collection[str] | None = None,
) -> Any:
  """A field of a dataclass of settings; see `Setting`."""
  said = Setting(help, least, most, choices)
  return dataclasses.field(default=default, metadata={"setting": said})


def said_of(field: dataclasses.Field[Any]) -> Setting:
  """The `Setting` of a field; its choices may be in the field's type."""
  said = field.metadata["setting"]
  members = _members(field)
  if str in members:  # the names of a Literal beside it are not all
    return said
  values = [v for member in members for v in typing.get_args(member)]
  return dataclasses.replace(said, choices=tuple(values)) if values else said


def kinds_of(field: dataclasses.Field[Any]) -> tuple[type, ...]:
  """The types of a field's value without None, such as (float, str) for k."""
  kinds = (
      type(values[0]) if (values := typing.get_args(member)) else member
      for member in _members(field)
  )
  # Each once: the type may be a Literal of names, or any other text.
  return tuple(dict.fromkeys(k for k in kinds if k is not type(None)))


def is_optional(field: dataclasses.Field[Any]) -> bool:
  """Whether the value may be None."""
  return type(None) in _members(field)


def _members(field):
  """The types of which a field's type is the union; or the type alone."""
  is_union = typing.get_origin(field.type) in (types.UnionType, typing.Union)
  return typing.get_args(field.type) if is_union else (field.type,)


def check(settings: Any) -> None:
  """Checks every field and brings its value to the field's own type.

  Args:
    settings: an instance of a frozen dataclass; called in `__post_init__`.

  Raises:
    ConfigError: a value has another type, is out of bounds or not a choice.
  """
  for field in dataclasses.fields(settings):
    value = checked(field, getattr(settings, field.name))
    object.__setattr__(settings, field.name, value)


def checked(field: dataclasses.Field, value: Any) -> Any:
  """The value in the field's own type.

  Raises:
    ConfigError: it has another type, is out of bounds or not a choice.
  """
  if value is None and is_optional(field):
    return None
  kinds = kinds_of(field)
  if kinds == typing.get_args(Amount):
    value = _amount(field.name, value)
  else:
    value = _typed(field.name, kinds[0], value)
  said = said_of(field)
  if said.choices is not None:
    allowed = f"one of {', '.join(map(str, said.choices))}"
    require(value in said.choices, field.name, value, allowed)
  if isinstance(value, (int, float)) and not isinstance(value, bool):
    _require_bounds(field.name, value, said)
  return value


def _typed(name, kind, value):
  """The value in the field's type; NumPy's numbers become Python's."""
  kinds, allowed = _KINDS[kind]
  # A bool is an integer to Python.
  fits = isinstance(value, kinds) and (
      kind is bool or not isinstance(value, bool)
  )
  require(fits, name, repr(value), allowed)
  with refused(f"--{name}={value}", f"must be {allowed}", OverflowError):
    value = kind(value)
  if isinstance(value, str):
    require_utf8(name, value)
  return value


def require_utf8(name: str, text: str) -> None:
  """Refuses text with surrogates, which no file and no output can hold.

  Python has them in place of bytes of a path that are not UTF-8.
  """
  is_text = text.encode("utf-8", "ignore").decode("utf-8") == text
  require(is_text, name, text, "text in UTF-8")


def _amount(name, value):
  """A number of elements as a float, a share as text such as "1%"."""
  if not isinstance(value, str):
    return _typed(name, float, value)
  allowed = "a number, or a share from above 0% to 100%, such as 1%"
  number, percent, rest = value.strip().partition("%")
  try:
    parsed = float(number)
  except ValueError:
    parsed = math.nan
  require(not rest and math.isfinite(parsed), name, value, allowed)
  if not percent:
    return parsed
  require(0 < parsed <= 100, name, value, allowed)
  return f"{parsed:g}%"


def elements(amount: Amount, dim: int) -> float:
  """The number of elements that an `Amount` means.

  Args:
    amount: as checked.
    dim: D.

  Returns:
    Elements; a share of D, but at least one.
  """
  if isinstance(amount, str):
    # Exact, so that 1% of 9,610 is 96.1 and not one bit more.
    share = fractions.Fraction(amount.removesuffix("%")) / 100
    return max(1.0, float(share * dim))
  return amount


def _require_bounds(name, value, said):
  require(math.isfinite(value), name, value, "a finite number")
  if isinstance(value, float):
    require(value <= LARGEST, name, value, f"at most {LARGEST:g}")
  if said.least is not None:
    require(value >= said.least, name, value, f"at least {said.least:g}")
  if said.most is not None:
    most = f"{said.most:,}" if isinstance(said.most, int) else f"{said.most:g}"
    require(value <= said.most, name, value, f"at most {most}")
