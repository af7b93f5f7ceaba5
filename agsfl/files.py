"""Files that are there whole or not at all, and folders that take them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agsfl.errors import ConfigError


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """A temporary path, which becomes `path` when all went well.

  Args:
    path: replaced if it is there.

  Yields:
    Where to write; removed if an error or a signal comes between.
  """
  temporary = path.parent / f"{path.name}.{os.getpid()}.tmp"
  try:
    yield temporary
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def usable(workdir: str | Path):
  """Refuses a --workdir in one line where an OSError comes within."""
  try:
    yield
  except OSError as error:
    raise ConfigError(
        f"--workdir={workdir}: must be a folder that can be written "
        f"({error.strerror or error})"
    ) from error
