"""CSV files, and the table of clients of a run."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

# A spreadsheet runs a cell with such a beginning as a formula.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_COUNT = re.compile(r"[0-9]{1,18}")
_NUMBER = re.compile(
    r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?|nan|-?inf"
)


def as_cell(value: Any) -> Any:
  """A value of a CSV file that no spreadsheet runs as a formula.

  Args:
    value: text or a number.

  Returns:
    The value; text that begins like a formula has an apostrophe before it.

  >>> as_cell("=1+1"), as_cell("ann"), as_cell(-1.5)
  ("'=1+1", 'ann', -1.5)
  """
  if isinstance(value, str) and _FORMULA.match(value):
    return f"'{value}"
  return value


def write_csv(path: Path, lines: Iterable[Iterable[Any]]):
  """Writes a CSV file without formulas; see `as_cell`.

  Args:
    path: of the file, which is replaced.
    lines: the cells of each line.
  """
  # A name that is not valid Unicode must not stop a run at its end.
  with path.open(
      "w", newline="", encoding="utf-8", errors="backslashreplace"
  ) as file:
    csv.writer(file).writerows(map(as_cell, line) for line in lines)


def write_clients(path: Path, columns: Mapping[str, Sequence]):
  """Writes a line for each client.

  Args:
    path: of the file, which is replaced.
    columns: [N] each; `client` has the clients' names, all others numbers.
  """
  write_csv(path, [columns, *zip(*columns.values(), strict=True)])


def read_clients(path: Path) -> dict[str, list]:
  """The columns that `write_clients` wrote.

  Args:
    path: of the file.

  Returns:
    By name [N] each: `client` as text, whole numbers as int, others as float.

  Raises:
    OSError: the file cannot be read.
    ValueError, csv.Error: the file has no such table; the text names the line.
  """
  with path.open(newline="", encoding="utf-8") as file:
    rows = csv.reader(file, strict=True)
    header = next(rows, [])
    if "client" not in header or len(set(header)) < len(header):
      raise ValueError("line 1: must name each column once, client among them")
    columns: dict[str, list] = {name: [] for name in header}
    for row in rows:
      if len(row) != len(header):
        raise ValueError(
            f"line {rows.line_num}: must have {len(header)} values"
        )
      for name, text in zip(header, row, strict=True):
        value = _as_name(text) if name == "client" else _as_number(text)
        if value is None:
          raise ValueError(f"line {rows.line_num}: {name} must be a number")
        columns[name].append(value)
  return columns


def _as_name(text):
  """Undoes `as_cell`."""
  escaped = text.startswith("'") and _FORMULA.match(text)
  return text[1:] if escaped else text


def _as_number(text):
  """An int or a float; None for other text."""
  if _COUNT.fullmatch(text):
    return int(text)
  return float(text) if _NUMBER.fullmatch(text) else None
