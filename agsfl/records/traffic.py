"""How much a run's clients and its server have sent, from the run's rows."""

from typing import TYPE_CHECKING

import numpy as np

from agsfl.sparsifiers import METHODS

if TYPE_CHECKING:
  from agsfl.records.read import Run

WAYS = ("up", "down")
BYTES_PER_NUMBER = 4
# Of a method that is not registered: an index and a value.
_NUMBERS_PER_ELEMENT = 2


def element_bytes(method: str) -> int:
  """Bytes of one element of a message.

  >>> element_bytes("fab_top_k"), element_bytes("fedavg"), element_bytes("mine")
  (8, 4, 8)
  """
  numbers = _NUMBERS_PER_ELEMENT
  if method in METHODS:
    numbers = METHODS[method].numbers_per_element
  return BYTES_PER_NUMBER * numbers


def senders(run: "Run") -> int:
  """How many clients have training samples, and so send messages.

  For an unfinished run of an earlier version it is not known; then all count.
  """
  if (count := run.config.get("num_clients_training")) is not None:
    return count
  if not run.finished:
    return run.config["num_clients_used"]
  return sum(count > 0 for count in run.clients["samples"])


def elements(run: "Run", way: str) -> np.ndarray:
  """[rounds] i64, elements of one client's messages until each round's end.

  Args:
    run: finished or not.
    way: of `WAYS`.
  """
  return np.cumsum([row[f"k_{way}"] for row in run.rows], dtype=np.int64)


def bytes_of_one(run: "Run", way: str) -> np.ndarray:
  """[rounds] f64, bytes of one client's messages until each round's end.

  Runs of version 0.1 recorded only elements. For them the method says how many
  bytes an element takes.

  Args:
    run: finished or not.
    way: of `WAYS`.
  """
  each = element_bytes(run.config["method"])
  counts = [
      row.get(f"bytes_{way}", each * row[f"k_{way}"]) for row in run.rows
  ]
  return np.cumsum(counts, dtype=np.float64)


def sent(run: "Run", way: str) -> np.ndarray:
  """[rounds] f64, bytes of all clients' messages until each round's end.

  Args:
    run: finished or not.
    way: of `WAYS`; "down" counts a message once for each client that gets it.
  """
  name = f"all_bytes_{way}"
  if run.rows and name in run.rows[0]:
    return np.cumsum([row[name] for row in run.rows], dtype=np.float64)
  return senders(run) * bytes_of_one(run, way)


def both_ways(run: "Run") -> np.ndarray:
  """[rounds] f64, bytes sent up and down until each round's end."""
  return np.sum([sent(run, way) for way in WAYS], axis=0)
