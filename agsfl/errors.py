"""What a user can put right; scripts print these as one line."""

from typing import NoReturn


class ConfigError(ValueError):
  """A setting that cannot be used; the text names it and what is allowed."""


class DivergedError(RuntimeError):
  """A gradient or the loss was not finite; the text names the round."""


class StoppedError(RuntimeError):
  """A run was asked to stop, and can be taken up; the text names the round."""


def printable(text: str) -> str:
  """The text with escapes for control characters, which terminals obey."""
  return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def refuse(setting: str, problem: str) -> NoReturn:
  """Refuses a setting, such as "--dataset=npz:a", in one line."""
  raise ConfigError(f"{setting}: {printable(' '.join(problem.split()))}")
