"""Tables about clients in csv files: a header, then rows of numbers."""

import csv
import math
from collections.abc import Iterator
from typing import NamedTuple

from agsfl.errors import refuse, refused
from agsfl.files import expanded
from agsfl.settings import LARGEST

_CLIENT = "client"


class Row(NamedTuple):
  """A row of a table.

  Attributes:
    where: the row in messages, such as "row 2"; the header is row 1.
    client: its name.
    numbers: in the order of the columns that were asked for.
  """

  where: str
  client: str
  numbers: list[float]


def rows(setting: str, path: str, columns: tuple[str, ...]) -> Iterator[Row]:
  """The rows of a table of clients.

  Args:
    setting: begins messages, such as "--clock=file:a.csv".
    path: a csv file in UTF-8; ~ is the home folder.
    columns: of numbers. The header names these and `client`, in any order.

  Yields:
    Each row, with numbers that are finite and not negative.

  Raises:
    ConfigError: the text names the row and what is wrong in it.
  """
  problems = (OSError, UnicodeError, csv.Error)
  with (
      refused(setting, "must be a csv file in UTF-8", problems),
      expanded(path).open(encoding="utf-8-sig", newline="") as file,
  ):
    table = csv.reader(file, strict=True)
    header = [name.strip() for name in next(table, [])]
    wanted = (_CLIENT, *columns)
    if sorted(header) != sorted(wanted):
      refuse(
          setting,
          f"its header must be {','.join(wanted)}, not {','.join(header)}",
      )
    for number, cells in enumerate(table, 2):
      if cells:
        yield _row(setting, f"row {number}", columns, header, cells)


def _row(setting, where, columns, header, cells):
  if len(cells) != len(header):
    refuse(setting, f"{where}: must have {len(header)} cells, not {len(cells)}")
  texts = dict(zip(header, (cell.strip() for cell in cells), strict=True))
  if not texts[_CLIENT]:
    refuse(setting, f"{where}: must name a client")
  numbers = []
  for column in columns:
    try:
      value = float(texts[column])
    except ValueError:
      value = math.nan
    if not 0 <= value <= LARGEST:
      refuse(
          setting,
          f"{where}, column {column!r}: must be a number from 0 to "
          f"{LARGEST:g}, not {texts[column]!r}",
      )
    numbers.append(value)
  return Row(where, texts[_CLIENT], numbers)


def require_all(setting: str, found: set[str], client_names: list[str]):
  """Refuses a table that lacks a client of the run.

  Args:
    setting: begins the message.
    found: names of clients in the table; it may have more than the run.
    client_names: of the run.

  Raises:
    ConfigError: a client has no row.
  """
  for name in client_names:
    if name not in found:
      refuse(setting, f"must have a row for client {name!r}")
