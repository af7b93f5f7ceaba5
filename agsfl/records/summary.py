"""The summary of a run at its end."""

import re
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from agsfl.data.federated import FederatedData
from agsfl.records.client_evaluations import OfClients
from agsfl.records.strict_json import finite

# The columns that `summarize` adds to a row.
ADDED = frozenset((
    "first_round_seconds", "median_round_seconds", "peak_memory_mb",
    "least_contributed", "most_contributed",
))


def by_client(
    data: FederatedData,
    totals: Mapping[str, np.ndarray],
    evaluation: OfClients,
) -> dict[str, list]:
  """The columns of clients.csv.

  Args:
    data: whose clients they are.
    totals: [N] i64 each, over all rounds: `rounds` in which the client took
      part, and elements that it `contributed`, which the server used.
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
      "rounds": totals["rounds"],
      "contributed": totals["contributed"],
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
    The row, wall times, memory, and contributions. A number that is not
    finite becomes None, because JSON cannot express it.
  """
  contributed = clients["contributed"]
  summary = {
      **row,
      "first_round_seconds": seconds[0] if seconds else None,
      "median_round_seconds": float(np.median(seconds)) if seconds else None,
      "peak_memory_mb": _peak_memory() / 1e6,
      "least_contributed": min(contributed),
      "most_contributed": max(contributed),
  }
  return {name: finite(value) for name, value in summary.items()}
