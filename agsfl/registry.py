"""Parts by name: models, methods, controllers, partitions, data sources.

A registered part is known everywhere at once: in `Config`, in the flags of
every command, and in reports.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from agsfl.errors import require

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry], Generic[Entry]):
  """The parts of one kind by name.

  Attributes:
    kind: what the parts are, for messages, such as "method".
  """

  def __init__(self, kind: str, built_in: Mapping[str, Entry]) -> None:
    """Begins with the package's own parts.

    Args:
      kind: see the class.
      built_in: the package's parts, which `add` never replaces.
    """
    self.kind = kind
    self._built_in = dict(built_in)
    self._added: dict[str, Entry] = {}

  def add(self, name: str, entry: Entry) -> None:
    """Adds a part, or replaces an added part of the same name.

    Args:
      name: letters, digits and underscores.
      entry: the part.

    Raises:
      ConfigError: the name cannot be used, or is one of the package's.
    """
    allowed = f"letters, digits and _, and not a {self.kind} of the package"
    fits = isinstance(name, str) and re.fullmatch(r"\w+", name)
    require(fits and name not in self._built_in, self.kind, name, allowed)
    self._added[name] = entry

  def is_added(self, name: str) -> bool:
    """Whether the part of this name was added by the user."""
    return name in self._added

  def __getitem__(self, name: str) -> Entry:
    return self._added[name] if name in self._added else self._built_in[name]

  def __iter__(self) -> Iterator[str]:
    yield from self._built_in
    yield from self._added

  def __len__(self) -> int:
    return len(self._built_in) + len(self._added)
