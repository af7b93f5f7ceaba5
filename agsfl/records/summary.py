"""The summary of a run at its end."""

import re
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agsfl.data.federated import FederatedData
from agsfl.records.strict_json import finite

# The columns that `summarize` adds to a row.
ADDED = frozenset((
    "first_round_seconds", "median_round_seconds", "peak_memory_mb",
    "least_contributed", "most_contributed", "client_test_accuracy_min",
    "client_test_accuracy_p10", "client_test_accuracy_median",
))


class OfClients(Protocol):
  """What an evaluation says of each client.

  Attributes:
    client_test_loss: [N] mean losses on the client's own test samples, nats;
      NaN if it has none.
    client_test_accuracy: [N] shares of them that are classified correctly.
  """

  client_test_loss: np.ndarray
  client_test_accuracy: np.ndarray


def by_client(
    data: FederatedData, contributed: np.ndarray, evaluation: OfClients
) -> dict[str, list]:
  """The columns of clients.csv.

  Args:
    data: whose clients they are.
    contributed: [N] i64, elements that the server used, over all rounds.
    evaluation: of the final weights.

  Returns:
    [N] each, by name.
  """
  owners, counts = data.test_clients, data.clients.counts
  columns = {
      "client": data.client_names,
      "samples": counts,
      "test_samples": np.bincount(owners[owners >= 0], minlength=len(counts)),
      "test_loss": evaluation.client_test_loss,
      "test_accuracy": evaluation.client_test_accuracy,
      "contributed": contributed,
  }
  return {name: np.asarray(x).tolist() for name, x in columns.items()}


def _peak_memory():
  """The most bytes of memory that this process has used."""
  try:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
  except OSError:
    status = ""
  if found := re.search(r"VmHWM:\s+(\d+) kB", status):
    return 1024 * int(found.group(1))
  # On macOS in bytes. On Linux this would start from the parent's memory.
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def summarize(
    row: Mapping[str, Any],
    seconds: list[float],
    clients: dict[str, list],
) -> dict[str, Any]:
  """The content of summary.json.

  Args:
    row: the last row.
    seconds: wall time of each round of this process; empty if an earlier
      process ran all of them.
    clients: from `by_client`.

  Returns:
    The row, wall times, memory, and results by client. A number that is not
    finite becomes None, because JSON cannot express it.
  """
  contributed = clients["contributed"]
  tested = np.array(clients["test_samples"]) > 0
  own = np.array(clients["test_accuracy"])[tested]
  summary = {
      **row,
      "first_round_seconds": seconds[0] if seconds else None,
      "median_round_seconds": float(np.median(seconds)) if seconds else None,
      "peak_memory_mb": _peak_memory() / 1e6,
      "least_contributed": min(contributed),
      "most_contributed": max(contributed),
  }
  if len(own):
    for name, share in (("min", 0), ("p10", 10), ("median", 50)):
      summary[f"client_test_accuracy_{name}"] = float(np.percentile(own, share))
  return {name: finite(value) for name, value in summary.items()}


def jain_index(contributed: np.ndarray) -> float:
  """Jain's fairness index, from 1 / N (only one client) to 1 (all equal).

  Args:
    contributed: [N], at least 0; if all are 0, the index is 1.

  Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
  Discrimination", DEC TR-301, 1984.

  >>> jain_index(np.array([0, 7, 0, 0]))
  0.25
  """
  contributed = np.asarray(contributed, float)
  squares = len(contributed) * np.sum(contributed**2)
  return float(np.sum(contributed) ** 2 / squares) if squares else 1.0
