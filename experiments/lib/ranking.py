"""Which of several runs or groups is best, and in which order they go."""

import numpy as np

from agsfl.frame import settings_of, value_of
from agsfl.records.moment import EVALUATED, Moment, best_is, value_at
from agsfl.records.read import Run
from experiments.lib.groups import in_order, metrics


def results_of(runs: list[Run]) -> list[str]:
  """The columns of results of which any of the runs has numbers."""
  names = (*EVALUATED, *metrics(runs), "round", "time", "seconds")
  has = lambda run, name: len(run.series(name, "round")[0])
  return [
      *(
          name
          for name in dict.fromkeys(names)
          if any(has(run, name) for run in runs)
      ),
      "bytes",
  ]


def best_by(runs: list[Run], sorted_by: str | None) -> str | None:
  """The column that decides which run or group is best; see `best_is`.

  Args:
    runs: those that are compared.
    sorted_by: a column of `results_of`, or a setting, which decides nothing.

  Returns:
    Its name: `sorted_by`, else the accuracy, else the loss; None if the runs
    have none of them.
  """
  has = {*results_of(runs)} - {*settings_of(runs)}
  wanted = (sorted_by, "test_accuracy", "test_loss")
  return next((name for name in wanted if name in has), None)


def values_at(runs: list[Run], key: str, moment: Moment | None) -> list[float]:
  """The values of those runs that have one; see `value_at`."""
  values = [value_at(run, key, moment) for run in runs]
  return [value for value in values if value is not None]


def rank(runs: list[Run], key: str, moment: Moment | None) -> tuple:
  """A key to sort groups by: results with the best first, settings by value.

  Args:
    runs: of one group; its mean counts, and without values it is last.
    key: a setting, or a column of `results_of`.
    moment: see `value_at`.
  """
  if key in runs[0].asked:
    return in_order(value_of(runs[0].asked, key))
  values = values_at(runs, key, moment)
  if not values:
    return (1,)
  mean = float(np.mean(values))
  return (0, -mean if best_is(key) == "max" else mean)
