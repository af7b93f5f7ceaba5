"""The form of a source, and the settings of sources."""

import dataclasses
from typing import NamedTuple, Protocol

from agsfl.data.samples import Samples
from agsfl.names import TaskName
from agsfl.settings import check, setting


@dataclasses.dataclass(frozen=True)
class SourceOptions:
  """How sources read their files; each field has its own description.

  Raises:
    ConfigError: a value is of another type or out of range.
  """

  task: TaskName | None = setting(
      None,
      "What is learned. Default: next_token if the labels are the features "
      "moved by one token, otherwise classification.",
  )
  image_size: int | None = setting(
      None,
      "Side in pixels to which folder: resizes all images. Default: none is "
      "resized, and all must be of one size.",
      least=1,
      most=4096,
  )
  label_column: str = setting("label", "Column of csv: with the labels.")
  client_column: str | None = setting(
      None, "Column of csv: with the ids of clients. Default: none."
  )
  sequence_length: int = setting(
      80,
      "Characters of a sample that text: and topics give to a network.",
      least=1,
      most=65_536,
  )
  client_regex: str | None = setting(
      None,
      "Regular expression of text: a line whose beginning matches starts the "
      "text of a client; group 1, or the whole match, is the client's name. "
      "Default: none, and each file of a folder is a client.",
  )

  def __post_init__(self) -> None:
    check(self)


class Reader(Protocol):
  """Reads a data set; `sources.read` checks the samples."""

  def __call__(
      self, dataset: str, place: str, options: SourceOptions, seed: int, /
  ) -> Samples:
    """Reads `place`.

    Args:
      dataset: the whole name, for messages.
      place: what follows the colon, such as a path.
      options: those of the source are read.
      seed: of `samples.hold_out`.

    Raises:
      ConfigError: the text names the file and what is wrong in it.
    """


class Source(NamedTuple):
  """A source of data sets.

  Attributes:
    read: reads one.
    place: what follows the colon, for messages: PATH, DIR or NAME; empty if
      the source has only one data set.
  """

  read: Reader
  place: str = ""
