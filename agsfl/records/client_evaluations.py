"""Each client's test loss and accuracy over time: client_evaluations.npy.

The file has a record for each evaluation. It grows by one record at a time: an
evaluation adds 8 bytes for each client.
"""

import io
from pathlib import Path
from typing import Protocol

import numpy as np

from agsfl.records import npy

NAME = "client_evaluations.npy"


class OfClients(Protocol):
  """What an evaluation says of each client.

  Attributes:
    client_test_loss: [N] mean losses on the client's own test samples, nats;
      NaN if it has none.
    client_test_accuracy: [N] shares of them that are classified correctly.
  """

  client_test_loss: np.ndarray
  client_test_accuracy: np.ndarray


def _dtype(num_clients):
  numbers = ("<f4", (num_clients,))
  return np.dtype([
      ("round", "<i4"), ("test_loss", *numbers), ("test_accuracy", *numbers)
  ])


def record(round_index: int, evaluation: OfClients) -> np.ndarray:
  """An evaluation as a record.

  Args:
    round_index: the round after which it was made; 0 for the first weights.
    evaluation: of N clients.

  Returns:
    [] of the fields `round` i32, `test_loss` [N] f32, `test_accuracy` [N] f32.
  """
  one = np.empty((), _dtype(len(evaluation.client_test_loss)))
  one["round"] = round_index
  with np.errstate(over="ignore"):
    one["test_loss"] = evaluation.client_test_loss
    one["test_accuracy"] = evaluation.client_test_accuracy
  return one


def read(
    path: Path, num_clients: int, rounds: list[int], *, may_have_more: bool
) -> np.ndarray:
  """The records of some rounds.

  Args:
    path: of the file.
    num_clients: N.
    rounds: [E], those with an evaluation, in order.
    may_have_more: whether other records, or a piece of one, may follow, as in
      the folder of an unfinished run.

  Returns:
    [E] records, see `record`.

  Raises:
    OSError: the file cannot be read.
    ValueError: the file does not hold these records.
  """
  dtype, count = _dtype(num_clients), len(rounds)
  size = count * dtype.itemsize
  # A run that was stopped at its start may not have the file.
  if may_have_more and not rounds and not path.exists():
    return np.empty(0, dtype)
  with path.open("rb") as file:
    shape, found = npy.read_header(file)
    if len(shape) != 1 or found != dtype:
      raise ValueError(f"must hold records of {num_clients} clients")
    content = bytearray(file.read(size if may_have_more else -1))
  (held,) = shape
  if held < count or (held > count and not may_have_more):
    raise ValueError(f"has {held} evaluations, metrics.jsonl has {count}")
  if len(content) != size:
    raise ValueError(f"must hold {count} whole records, not more or less")
  records = np.ndarray(count, dtype, content)
  if records["round"].tolist() != rounds:
    raise ValueError("its rounds are not those of metrics.jsonl")
  accuracies = records["test_accuracy"]
  if not (np.isnan(accuracies) | ((accuracies >= 0) & (accuracies <= 1))).all():
    raise ValueError("test_accuracy must be from 0 to 1")
  return records


class Writer:
  """The file of a run that is going on.

  Attributes:
    file: open for writing.
  """

  def __init__(self, path: Path, num_clients: int, rounds: list[int]):
    """Opens the file, and removes all records but those of some rounds.

    Args:
      path: of the file; it is new if there are no such rounds.
      num_clients: N.
      rounds: [E], of the first records, as `read` has checked.
    """
    self._dtype = _dtype(num_clients)
    self._rounds = list(rounds)
    self.file = path.open("rb+") if rounds else path.open("wb+")
    self._write_count()
    self.file.truncate(self._end())

  def append(self, record: np.ndarray):
    """Adds a record; one of the same round is replaced.

    The number of records is written after it. So a killed process leaves no
    piece of a record that counts.
    """
    round_index = int(record["round"])
    if self._rounds[-1:] == [round_index]:
      self._rounds.pop()
    self.file.seek(self._end())
    self.file.write(record.tobytes())
    self.file.flush()
    self._rounds.append(round_index)
    self._write_count()

  def _write_count(self):
    self.file.seek(0)
    self.file.write(self._header())
    self.file.flush()

  def _header(self):
    """The beginning of the file. NumPy gives it one length for all counts."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {
        "descr": np.lib.format.dtype_to_descr(self._dtype),
        "fortran_order": False,
        "shape": (len(self._rounds),),
    })
    return header.getvalue()

  def _end(self):
    """Where the next record goes."""
    return len(self._header()) + len(self._rounds) * self._dtype.itemsize
