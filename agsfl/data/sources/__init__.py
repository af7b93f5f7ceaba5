"""Data sets by name, such as "digits", or by scheme, such as "npz:a.npz"."""

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any

from agsfl.data.samples import Samples, checked
from agsfl.data.sources import (
    arrays,
    embedded,
    folder,
    leaf,
    npz,
    tables,
    text,
    tfds,
)
from agsfl.data.sources.options import Source, SourceOptions
from agsfl.errors import refuse, require
from agsfl.registry import Registry

__all__ = [
    "SOURCES",
    "SourceOptions",
    "is_known",
    "known_names",
    "read",
    "register_source",
    "require_known",
]

# place ("" without a colon) -> arguments of `agsfl.from_arrays` by name.
OwnReader = Callable[[str], Mapping[str, Any]]

SOURCES = Registry(
    "dataset",
    {
        "mnist_5k": Source(embedded.mnist_5k),
        "digits": Source(embedded.digits),
        "topics": Source(embedded.topics),
        "femnist": Source(tfds.femnist),
        "npz": Source(npz.read, "PATH"),
        "folder": Source(folder.read, "DIR"),
        "csv": Source(tables.read, "PATH"),
        "leaf": Source(leaf.read, "DIR"),
        "text": Source(text.read, "PATH"),
        "tfds": Source(tfds.read, "NAME"),
    },
)


def known_names() -> str:
  """What a data set may be called, for messages."""
  names = []
  for name, source in SOURCES.items():
    place = f":{source.place}" if source.place else ""
    names.append(f"{name}[:PLACE]" if SOURCES.is_added(name) else name + place)
  return f"{', '.join(names[:-1])} or {names[-1]}"


def is_known(dataset: str) -> bool:
  """Whether there is a source for a name or scheme."""
  name, colon, place = dataset.partition(":")
  if name not in SOURCES or "\0" in place:
    return False
  if SOURCES.is_added(name):
    return True
  return bool(place) if SOURCES[name].place else not colon


def require_known(dataset: str):
  """Refuses a data set that no source reads."""
  require(is_known(dataset), "dataset", dataset, known_names())


def read(dataset: str, options: SourceOptions, seed: int) -> Samples:
  """Reads a data set.

  Args:
    dataset: name, or scheme and place; ~ in a path is the home folder.
    options: how files are read.
    seed: decides which samples are held out for testing, if the source does
      not.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file and what is wrong in it.
  """
  require_known(dataset)
  name, _, place = dataset.partition(":")
  source = SOURCES[name]
  if source.place in ("PATH", "DIR"):
    place = os.path.expanduser(place)
  samples = source.read(dataset, place, options, seed)
  if options.task is not None:
    require(
        samples.task in (None, options.task),
        "task",
        options.task,
        f"{samples.task} with --dataset={dataset}",
    )
    samples = samples._replace(task=options.task)
  return checked(samples)


def register_source(name: str) -> Callable[[OwnReader], OwnReader]:
  """Registers a reader of your own: `--dataset=NAME` or `--dataset=NAME:PLACE`.

  >>> @register_source("coins")
  ... def coins(place):
  ...   return {"x": [[0.0], [1.0], [1.0]], "y": [0, 1, 1],
  ...           "is_train": [True, True, False]}

  Args:
    name: letters, digits and underscores.

  Returns:
    A decorator for functions of the place ("" without a colon). They return a
    dict with the arguments of `agsfl.from_arrays`: x, y, and perhaps clients
    and is_train. It is checked as files are. The place is as the user wrote it:
    use `agsfl.files.expanded` where "~" may stand for the home folder.

  Raises:
    ConfigError: the name cannot be used, or is one of the package's.
  """

  def register(reader: OwnReader) -> OwnReader:
    # It has the name and the source code of the user's function.
    @functools.wraps(reader)
    def read_own(dataset, place, options, seed):
      del options
      setting, given = f"--dataset={dataset}", reader(place)
      keys = list(map(str, given)) if isinstance(given, Mapping) else []
      if not {"x", "y"} <= set(keys) <= {"x", "y", "clients", "is_train"}:
        refuse(
            setting,
            "its reader must return a dict of x, y, and perhaps clients and "
            f"is_train, not {type(given).__name__}({', '.join(keys)})",
        )
      return arrays.samples_of(setting, **given, seed=seed)

    SOURCES.add(name, Source(read_own))
    return reader

  return register
