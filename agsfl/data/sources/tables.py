"""Tables in CSV files: a header, then a row for each sample."""

import csv
import math
import re
from typing import NamedTuple

import numpy as np

from agsfl import aligned
from agsfl.data.samples import Names, Samples, hold_out, in_order
from agsfl.data.sources.options import SourceOptions
from agsfl.errors import refuse, refused
from agsfl.tasks import REGRESSION

_IS_TRAIN = "is_train"
_BOOLS = {"0": False, "1": True, "false": False, "true": True}
_BLOCK = 1 << 12


class _Columns(NamedTuple):
  """The positions of the columns; None where the table has no such column."""

  header: list[str]
  label: int
  client: int | None
  is_train: int | None
  features: list[int]


class _Texts:
  """A column of texts that repeat.

  Attributes:
    codes: of each row, the number of its text.
    numbers: by text, its number.
    rows: by number, the first row with this text.
  """

  def __init__(self):
    self.codes: list[int] = []
    self.numbers: dict[str, int] = {}
    self.rows: list[int] = []

  def add(self, text, row):
    code = self.numbers.setdefault(text, len(self.numbers))
    if code == len(self.rows):
      self.rows.append(row)
    self.codes.append(code)


def read(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """A table in UTF-8 whose cells are divided by commas.

  The column `is_train` is optional and holds 0, 1, true or false. Without it a
  fifth of the samples is held out. All other columns that the options do not
  name are features, [C, F] numbers.

  Args:
    dataset: for messages.
    place: the file.
    options: `label_column` holds whole numbers, or texts, which become classes
      in sorted order; with the task regression numbers. `client_column` holds
      ids.
    seed: see `samples.hold_out`.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the row and the column. The header is row 1.
  """
  setting = f"--dataset={dataset}"
  errors = (OSError, UnicodeError, csv.Error)
  with refused(setting, "must be a CSV file in UTF-8", errors):
    # Some programs begin a file with a mark of UTF-8; utf-8-sig skips it.
    with open(place, encoding="utf-8-sig", newline="") as file:
      return _samples(setting, file, options, seed)


def _samples(setting, file, options, seed):
  reader = csv.reader(file, strict=True)
  columns = _columns(setting, next(reader, []), options)
  labels, clients = _Texts(), _Texts()
  marks: list[bool] = []

  # Cells become numbers block by block; text takes ten times the memory.
  blocks: list[np.ndarray] = []
  cells: list[list[str]] = []
  rows: list[int] = []
  for row, values in enumerate(reader, 2):
    if not values:  # an empty line
      continue
    if len(values) != len(columns.header):
      refuse(
          setting,
          f"row {row}: has {len(values)} cells, the header "
          f"{len(columns.header)}",
      )
    labels.add(values[columns.label].strip(), row)
    if columns.client is not None:
      clients.add(values[columns.client].strip(), row)
    if columns.is_train is not None:
      marks.append(_bool(setting, row, values[columns.is_train]))
    cells.append([values[column] for column in columns.features])
    rows.append(row)
    if len(cells) == _BLOCK:
      blocks.append(_numbers(setting, rows, columns, cells))
      cells, rows = [], []
  if cells:
    blocks.append(_numbers(setting, rows, columns, cells))

  # Labels and clients are coded when all of their names are known.
  count = len(labels.codes)
  owners = names = None
  if columns.client is not None and count:
    owners, names = _owners(setting, columns.header[columns.client], clients)
  is_train = np.array(marks, bool)
  if columns.is_train is None:
    is_train = hold_out(count, seed)
  return Samples(
      setting,
      _joined(blocks, count, len(columns.features)),
      _labels(
          setting,
          columns.header[columns.label],
          labels,
          options.task == REGRESSION,
      ),
      is_train,
      owners,
      names,
      Names(
          "features",
          options.label_column,
          _IS_TRAIN,
          options.client_column or "client",
      ),
  )


def _columns(setting, header, options):
  """Finds the columns by the header."""
  header = [name.strip() for name in header]
  if not header:
    refuse(setting, "must begin with a row of column names")
  twice = next((name for name in header if header.count(name) > 1), None)
  if twice is not None:
    refuse(setting, f"row 1: has the column {twice!r} twice")

  def find(flag, name):
    if name not in header:
      refuse(
          f"--{flag}={name}",
          f"must be a column of {setting}, one of {', '.join(header)}",
      )
    return header.index(name)

  label = find("label_column", options.label_column)
  client = None
  if options.client_column is not None:
    client = find("client_column", options.client_column)
  is_train = header.index(_IS_TRAIN) if _IS_TRAIN in header else None
  named = {label, client, is_train}
  features = [i for i in range(len(header)) if i not in named]
  return _Columns(header, label, client, is_train, features)


def _bool(setting, row, text):
  value = _BOOLS.get(text.strip().lower())
  if value is None:
    refuse(
        setting,
        f"row {row}, column {_IS_TRAIN!r}: must be 0, 1, true or false, not "
        f"{text!r}",
    )
  return value


def _numbers(setting, rows, columns, cells):
  """A block of features as float32."""
  try:
    with np.errstate(over="ignore"):
      block = np.array(
          [[float(cell) for cell in of_row] for of_row in cells], np.float64
      ).astype(np.float32)
    broken = [tuple(place) for place in np.argwhere(~np.isfinite(block))]
  except ValueError:
    broken = [
        (i, j)
        for i, of_row in enumerate(cells)
        for j, cell in enumerate(of_row)
        if _number(cell) is None
    ]
  if broken:
    i, j = broken[0]
    name = columns.header[columns.features[j]]
    refuse(
        setting,
        f"row {rows[i]}, column {name!r}: must be a finite number, not "
        f"{cells[i][j]!r}",
    )
  return block


def _number(text):
  """The text as a number, or None."""
  try:
    return float(text)
  except ValueError:
    return None


def _joined(blocks, count, width):
  """The blocks in one array; each is freed once it is copied."""
  features = aligned.empty((count, width), np.float32)
  filled = 0
  blocks.reverse()
  while blocks:
    block = blocks.pop()
    features[filled : filled + len(block)] = block
    filled += len(block)
  return features


def _labels(setting, name, texts, are_real):
  """Numbers as they are, texts as indices of their sorted names."""
  numbers = [_number(text) for text in texts.numbers]
  if are_real:
    values = [math.nan if number is None else number for number in numbers]
  elif None not in numbers:
    values = numbers
  else:
    places = {text: i for i, text in enumerate(sorted(texts.numbers))}
    values = [places[text] for text in texts.numbers]
  for text, value, row in zip(texts.numbers, values, texts.rows, strict=True):
    fits = text and math.isfinite(value) and (are_real or value == int(value))
    if not fits:
      what = "finite number" if are_real else "whole number or a name"
      also = "" if are_real else "; for real numbers set --task=regression"
      refuse(
          setting,
          f"row {row}, column {name!r}: must be a {what}, not {text!r}{also}",
      )
  return np.array(values, np.float64)[texts.codes]


def _owners(setting, name, texts):
  """Clients in the order of their ids; numbers, if all ids are numbers."""
  ids = list(texts.numbers)
  for text, row in zip(ids, texts.rows, strict=True):
    if not text or "\0" in text:
      refuse(
          setting, f"row {row}, column {name!r}: must be an id, not {text!r}"
      )
  if all(re.fullmatch("0|[1-9][0-9]{0,17}", text) for text in ids):
    ids = [int(text) for text in ids]
  codes = np.array(texts.codes, np.int32)
  return in_order(codes, ids)
