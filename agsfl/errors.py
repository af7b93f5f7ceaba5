"""What a user can put right; scripts print these as one line."""


class ConfigError(ValueError):
  """A setting that cannot be used; the text names it and what is allowed."""


class DivergedError(RuntimeError):
  """A gradient or the loss was not finite; the text names the round."""


class StoppedError(RuntimeError):
  """A run was asked to stop, and can be taken up; the text names the round."""
