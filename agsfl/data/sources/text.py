"""Texts in files; a client is a file, or a section below its name."""

import re
from collections.abc import Iterable
from pathlib import Path

from agsfl.data.samples import Samples
from agsfl.data.sources import characters
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import refuse, refused

_LONGEST_NAME = 1000


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """Windows of text, see `characters.samples_of`.

  All files are UTF-8. In a folder the files *.txt are read, also those of its
  subfolders; hidden ones are passed over. Each file is a client, whose name is
  the path in the folder without ".txt". A file by itself has no clients.

  With `client_regex` the clients are sections of the files. A line whose
  beginning matches begins a section, and group 1 of the match, or else the
  whole match, names its client. In a folder the name of the file and "/" come
  before it. The section is all that follows the match; sections of one name
  are joined. Text before the first match is left out.

  Args:
    dataset: for messages.
    place: a file or a folder.
    options: `sequence_length` and `client_regex` are read.
    seed: not read; the end of each text is for testing.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file, or the option.
  """
  del seed
  setting, pattern = f"--dataset={dataset}", _pattern(options.client_regex)
  found = _files(setting, Path(place))
  documents: dict[str, str] = {}
  errors = (OSError, UnicodeError)
  for name, path in found.items():
    # Some programs begin a file with a mark of UTF-8; utf-8-sig skips it.
    with (
        refused(setting, f"{path}: must be a file of text in UTF-8", errors),
        path.open(encoding="utf-8-sig") as file,
    ):
      if pattern is None:
        documents[name] = file.read()
      else:
        prefix = f"{name}/" if name else ""
        for client, text in _sections(file, path, pattern).items():
          if prefix + client in documents:
            refuse(setting, f"has two texts of the name {prefix + client!r}")
          documents[prefix + client] = text
  if pattern is not None and not documents:
    refuse(f"--client_regex={pattern.pattern}", f"matches no line of {setting}")
  samples = characters.samples_of(setting, documents, options.sequence_length)
  if [*documents] == [""]:
    return samples._replace(owners=None, owner_names=None)
  return samples


def _pattern(regex):
  """The compiled pattern, or None."""
  if regex is None:
    return None
  errors = (re.error, OverflowError, RecursionError)
  with refused(
      f"--client_regex={regex}", "must be a regular expression", errors
  ):
    return re.compile(regex)


def _files(setting, place):
  """By name the files of a folder; a file by itself has the name ""."""
  with refused(setting, "must be a file or a folder that can be read"):
    if not place.is_dir():
      return {"": place}
    inside = sorted(path.relative_to(place) for path in place.rglob("*.txt"))
    found = {
        path.with_suffix("").as_posix(): place / path
        for path in inside
        if not any(part.startswith(".") for part in path.parts)
        and not (place / path).is_dir()
    }
  if not found:
    refuse(setting, "must hold files *.txt")
  return found


def _sections(
    lines: Iterable[str], path: Path, pattern: re.Pattern
) -> dict[str, str]:
  """By client the text that follows its lines."""
  pieces: dict[str, list[str]] = {}
  own: list[str] = []
  for line in lines:
    match = pattern.match(line)
    if match:
      name = (match[1 if pattern.groups else 0] or "").strip()
      if not 0 < len(name) <= _LONGEST_NAME or "\0" in name:
        refuse(
            f"--client_regex={pattern.pattern}",
            f"must match names of 1 to {_LONGEST_NAME} characters, not {name!r}"
            f" in {path}",
        )
      own = pieces.setdefault(name, [])
      line = line[match.end() :].removeprefix("\n")
    own.append(line)
  return {name: "".join(parts) for name, parts in pieces.items()}
