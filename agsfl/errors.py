"""Errors that a user can correct; commands print each as one line."""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn

from agsfl.words import whole


class ConfigError(ValueError):
  """A setting that cannot be used; the text names it and what is allowed."""


class DivergedError(RuntimeError):
  """A gradient or the loss was not finite; the text names the round."""


class StoppedError(RuntimeError):
  """A run has stopped on request and can go on; the text names the round."""


def printable(text: str) -> str:
  """The text on one line, with control characters escaped."""
  line = " ".join(text.split())
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def refuse(setting: str, problem: str) -> NoReturn:
  """Refuses a setting, such as "--dataset=npz:a", in one line."""
  raise ConfigError(f"{printable(setting)}: {printable(problem)}")


def require(fits: Any, name: str, value: Any, allowed: str) -> None:
  """Refuses the value of a setting if it does not fit.

  Args:
    fits: whether the value fits.
    name: of the setting, a flag without its dashes.
    value: as the user gave it.
    allowed: the end of the sentence "must be ...".

  Raises:
    ConfigError: the value does not fit.
  """
  if not fits:
    refuse(f"--{name}={whole(value)}", f"must be {allowed}")


@contextlib.contextmanager
def refused(
    setting: str,
    problem: str,
    errors: type[Exception] | tuple[type[Exception], ...] = OSError,
) -> Iterator[None]:
  """A context that turns other libraries' errors into one line.

  Args:
    setting: begins the line, such as "--workdir=runs/a".
    problem: what is wrong; the error's own words follow in brackets.
    errors: their types.

  Raises:
    ConfigError: one of these errors was raised inside.
  """
  try:
    yield
  except ConfigError:
    raise
  except errors as error:
    reason = getattr(error, "strerror", None) or error
    raise ConfigError(
        f"{printable(setting)}: {printable(f'{problem} ({reason})')}"
    ) from error
