"""Settings with several values, such as k=100,1000, as flags name them."""

import csv
import difflib
from typing import Any

from agsfl import errors
from agsfl.errors import refuse
from experiments.lib import flags as run_flags


def split(flag: str, text: str) -> tuple[str, str]:
  """The setting, and the text of its values.

  Args:
    flag: its name, "sweep" or "search".
    text: its value, such as "k=100,1000".

  Raises:
    ConfigError: it does not begin with a setting.
  """
  name, equals, rest = text.partition("=")
  if name not in run_flags.NAMES or not equals:
    like = difflib.get_close_matches(name, run_flags.NAMES)
    such = f", such as {', '.join(f'{one}=' for one in like)}" if like else ""
    refuse(f"--{flag}={text}", f"must begin with a setting and ={such}")
  return name, rest


def listed(flag: str, name: str, rest: str, example: str) -> list[str]:
  """The values that commas separate; quoted ones may have commas.

  >>> listed("sweep", "dataset", "'npz:a,b.npz',digits", "")
  ['npz:a,b.npz', 'digits']

  Args:
    flag: its name.
    name: of the setting.
    rest: from `split`.
    example: of what the flag's value may be.

  Raises:
    ConfigError: a value is missing or named twice, or a quote is open.
  """
  given = f"--{flag}={name}={rest}"
  with errors.refused(given, "must close each quote", csv.Error):
    values = next(csv.reader([rest], quotechar="'", strict=True), [])
  if not values or not all(values):
    refuse(given, f"must name values, such as {example}")
  if len(set(values)) < len(values):
    refuse(given, "must name each value once")
  return values


def parsed(flag: str, name: str, text: str) -> Any:
  """The value that a text stands for, as on the command line.

  Args:
    flag: its name.
    name: of the setting.
    text: of one value; None leaves a setting unset.

  Raises:
    ConfigError: it is of another type.
  """
  with errors.refused(
      f"--{flag}={name}={text}", f"must be a value of --{name}", ValueError
  ):
    return run_flags.parse(name, text)
