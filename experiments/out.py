"""The flag --out of scripts that write one file."""

from pathlib import Path

from absl import flags

from agsfl.errors import ConfigError

OUT = flags.DEFINE_string("out", None, "The file to write.")


def required() -> Path:
  """What --out names.

  Raises:
    ConfigError: nothing, or a folder.
  """
  path = Path(OUT.value or "")
  if not path.name or path.is_dir():
    raise ConfigError(f"--out={OUT.value or ''}: must name a file to write")
  return path
