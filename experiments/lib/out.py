"""The flag --out of scripts that write one file."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from agsfl import files
from agsfl.errors import ConfigError

_OUT = flags.DEFINE_string("out", None, "The file to write.")


def path(default: str = "", endings: tuple[str, ...] = ()) -> Path:
  """What --out names.

  Args:
    default: used where it is not given; none if empty.
    endings: that the name may have, such as ".png"; empty for any.

  Raises:
    ConfigError: nothing, a folder, or a name of another ending.
  """
  asked = Path(_OUT.value or default)
  if not asked.name or asked.is_dir():
    raise ConfigError(f"--out={_OUT.value or ''}: must name a file to write")
  if endings and asked.suffix not in endings:
    raise ConfigError(f"--out={asked}: must end in {', '.join(endings)}")
  return asked


@contextlib.contextmanager
def written(place: Path) -> Iterator[Path]:
  """A temporary path, which becomes the file when all went well.

  Args:
    place: from `path`; its folder is made.

  Raises:
    ConfigError: it cannot be written.
  """
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(place) as temporary:
      yield temporary
  except OSError as error:
    raise ConfigError(
        f"--out={place}: cannot be written ({error.strerror})"
    ) from error
