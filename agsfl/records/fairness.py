"""How equal clients are: Jain's index, and the spread of their accuracy."""

import numpy as np

# What `spread` adds to a row.
SPREAD = tuple(
    f"client_test_accuracy_{name}"
    for name in ("mean", "std", "worst10", "best10", "jain")
)


def jain_index(values: np.ndarray) -> float:
  """Jain's fairness index, from 1 / N (only one client) to 1 (all equal).

  Args:
    values: [N], at least 0; if all are 0, the index is 1.

  Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
  Discrimination", DEC TR-301, 1984.

  >>> jain_index(np.array([0, 7, 0, 0]))
  0.25
  """
  values = np.asarray(values, float)
  squares = len(values) * np.sum(values**2)
  # Rounding may bring it above 1.
  return min(1.0, float(np.sum(values) ** 2 / squares)) if squares else 1.0


def spread(accuracies: np.ndarray) -> dict[str, float]:
  """How the clients' test accuracies are spread; each client counts once.

  Args:
    accuracies: [N], NaN for a client without test samples, which is left out.

  Returns:
    By the names in `SPREAD`: the mean, the standard deviation, the mean of the
    worst and of the best tenth of the clients (at least one client), and Jain's
    index. All are NaN if no client has test samples.

  Source: the mean, the worst 10%, the best 10% and the variance are those of
  Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning",
  ICLR 2020.
  """
  known = np.sort(accuracies[~np.isnan(accuracies)])
  if not len(known):
    return dict.fromkeys(SPREAD, np.nan)
  tenth = -(-len(known) // 10)
  numbers = (
      known.mean(), known.std(), known[:tenth].mean(), known[-tenth:].mean(),
      jain_index(known),
  )
  return dict(zip(SPREAD, map(float, numbers), strict=True))
