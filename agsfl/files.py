"""Paths of users, files that are written whole, errors of their folders."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agsfl.errors import refused


def expanded(path: str | Path) -> Path:
  """A path as the user gave it; ~ is the home folder."""
  return Path(os.path.expanduser(path))


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
  """A context with a temporary path, which becomes `path` at the end.

  Args:
    path: replaced if it exists.

  Yields:
    Where to write. After an error or a signal this file is removed.
  """
  temporary = path.parent / f"{path.name}.{os.getpid()}.tmp"
  try:
    yield temporary
    # The content reaches the disk before the file gets its name. So no crash
    # leaves an empty file.
    with temporary.open("rb") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def usable(workdir: str | Path) -> contextlib.AbstractContextManager[None]:
  """A context that turns an OSError into one line about --workdir."""
  return refused(
      f"--workdir={workdir}", "must be a folder that can be written"
  )
