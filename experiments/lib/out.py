"""The flag --out of commands that write a file or pages, and default names."""

import contextlib
import datetime
import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from agsfl import files
from agsfl.errors import refuse, refused
from agsfl.files import expanded

_OUT = flags.DEFINE_string(
    "out", None, "The file to write; of a command that writes pages, a folder."
)


def new_name() -> str:
  """A name that no other process gives: the time and this process."""
  return f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}"


def path(default: str = "", endings: tuple[str, ...] = ()) -> Path:
  """The path that --out names.

  Args:
    default: the path if the flag is not given; empty means none.
    endings: allowed endings of the name, such as ".png"; empty means any.

  Raises:
    ConfigError: there is no name, or it is a folder or has another ending.
  """
  asked = expanded(_OUT.value or default)
  if not asked.name or asked.is_dir():
    refuse(f"--out={_OUT.value or ''}", "must name a file to write")
  if endings and asked.suffix not in endings:
    refuse(f"--out={asked}", f"must end in {', '.join(endings)}")
  return asked


def folder(default: str) -> Path:
  """The folder that --out names.

  Args:
    default: the folder if the flag is not given.

  Raises:
    ConfigError: there is a file of this name.
  """
  asked = expanded(_OUT.value or default)
  if asked.exists() and not asked.is_dir():
    refuse(f"--out={asked}", "must name a folder")
  return asked


@contextlib.contextmanager
def written(place: Path) -> Iterator[Path]:
  """A temporary path, which becomes the file if all goes well.

  Args:
    place: from `path`; its folder is made if needed.

  Raises:
    ConfigError: it cannot be written.
  """
  with refused(f"--out={place}", "cannot be written"):
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(place) as temporary:
      yield temporary
