"""Files that are there whole or not at all, and folders that take them."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from agsfl.errors import refused


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
    # On the disk before it has its name: no crash leaves an empty file.
    with temporary.open("rb") as file:
      os.fsync(file.fileno())
    os.replace(temporary, path)
  finally:
    with contextlib.suppress(OSError):
      temporary.unlink(missing_ok=True)


def usable(workdir: str | Path) -> contextlib.AbstractContextManager[None]:
  """Refuses a --workdir in one line where an OSError comes within."""
  return refused(
      f"--workdir={workdir}", "must be a folder that can be written"
  )
