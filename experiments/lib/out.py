"""The flag --out of commands that write one file, and paths in flags."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from agsfl import files
from agsfl.errors import refuse, refused

_OUT = flags.DEFINE_string("out", None, "The file to write.")


def expanded(path: str) -> Path:
  """The path that a flag names; ~ is the home folder."""
  return Path(os.path.expanduser(path))


def path(default: str = "", endings: tuple[str, ...] = ()) -> Path:
  """The path that --out names.

  Args:
    default: used where the flag is not given; none if empty.
    endings: that the name may have, such as ".png"; empty for any.

  Raises:
    ConfigError: nothing, a folder, or a name of another ending.
  """
  asked = expanded(_OUT.value or default)
  if not asked.name or asked.is_dir():
    refuse(f"--out={_OUT.value or ''}", "must name a file to write")
  if endings and asked.suffix not in endings:
    refuse(f"--out={asked}", f"must end in {', '.join(endings)}")
  return asked


@contextlib.contextmanager
def written(place: Path) -> Iterator[Path]:
  """A temporary path, which becomes the file when all went well.

  Args:
    place: from `path`; its folder is made.

  Raises:
    ConfigError: it cannot be written.
  """
  with refused(f"--out={place}", "cannot be written"):
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(place) as temporary:
      yield temporary
