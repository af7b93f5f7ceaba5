"""What a user can put right; commands print these as one line."""

import contextlib
from collections.abc import Iterator
from typing import Any, NoReturn


class ConfigError(ValueError):
  """A setting that cannot be used; the text names it and what is allowed."""


class DivergedError(RuntimeError):
  """A gradient or the loss was not finite; the text names the round."""


class StoppedError(RuntimeError):
  """A run was asked to stop, and can go on later; the text names the round."""


def printable(text: str) -> str:
  """The text on one line, with escapes for control characters."""
  line = " ".join(text.split())
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in line)


def refuse(setting: str, problem: str) -> NoReturn:
  """Refuses a setting, such as "--dataset=npz:a", in one line."""
  raise ConfigError(f"{printable(setting)}: {printable(problem)}")


def require(fits: Any, name: str, value: Any, allowed: str):
  """Refuses the value of a setting where it does not fit.

  Args:
    fits: whether it does.
    name: of the setting, a flag without its dashes.
    value: what was given.
    allowed: the end of the sentence "must be ...".

  Raises:
    ConfigError: it does not fit.
  """
  if not fits:
    refuse(f"--{name}={value}", f"must be {allowed}")


@contextlib.contextmanager
def refused(
    setting: str,
    problem: str,
    errors: type[Exception] | tuple[type[Exception], ...] = OSError,
) -> Iterator[None]:
  """Turns errors of other libraries into one line that names a setting.

  Args:
    setting: such as "--workdir=runs/a".
    problem: what must be otherwise; the error's own words follow in brackets.
    errors: which ones.
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
