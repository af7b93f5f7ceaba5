"""Which of several runs or groups is best, and in which order they go."""

import statistics

from agsfl.frame import settings_of, value_of
from agsfl.records.columns import EVALUATED
from agsfl.records.moment import Moment, best_is, end, value_at
from agsfl.records.read import Run
from agsfl.records.titles import title_of
from experiments.lib.groups import has, in_order, metrics

_NOTHING = (2,)  # the rank of a group without any value


def results_of(runs: list[Run]) -> list[str]:
  """The columns of results of which any of the runs has numbers."""
  names = (*EVALUATED, *metrics(runs), "round", "time", "seconds")
  return [
      *(
          name
          for name in dict.fromkeys(names)
          if any(has(run, name) for run in runs)
      ),
      "bytes",
  ]


def best_by(runs: list[Run], sorted_by: str | None) -> str | None:
  """The column that decides which run or group is best; see `best_of`.

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


def values_at(
    runs: list[Run], key: str, moment: Moment | None
) -> list[float | None]:
  """The value of each run, None where it has none; see `value_at`."""
  return [value_at(run, key, moment) for run in runs]


def order(
    groups: list[list[Run]], key: str, moment: Moment | None
) -> list[int]:
  """The groups' numbers in order: the best result, or the least setting, first.

  Args:
    groups: runs of one setting each.
    key: a setting, or a column of `results_of`. Of a column the group's mean
      counts. Groups in which some runs have no value come after the others, and
      groups without any value last.
    moment: see `value_at`.
  """
  if key in settings_of([run for runs in groups for run in runs]):
    ranks = [in_order(value_of(runs[0].asked, key)) for runs in groups]
  else:
    ranks = _ranks(groups, key, moment)
  return sorted(range(len(groups)), key=lambda number: ranks[number])


def best_of(
    groups: list[list[Run]], key: str | None, moment: Moment | None
) -> list[int]:
  """The numbers of the groups whose mean is best, several if they are equal.

  Only a group in which every run has a value can be best: runs that have
  failed, or that end early, must not make the others' mean better.

  Args:
    groups: runs of one setting each.
    key: from `best_by`.
    moment: see `value_at`.

  Returns:
    Their numbers; none if fewer than two groups have values to compare.
  """
  ranks = [] if key is None else _ranks(groups, key, moment)
  if sum(rank != _NOTHING for rank in ranks) < 2:
    return []
  best = min(ranks)
  return [i for i, rank in enumerate(ranks) if rank == best and not rank[0]]


def _ranks(groups, key, moment):
  """Sort keys of groups: whether values are missing, then the mean."""
  sign = -1 if best_is(key) == "max" else 1
  ranks = []
  for runs in groups:
    every = values_at(runs, key, moment)
    there = [value for value in every if value is not None]
    if there:
      # This mean does not depend on the order of the runs.
      mean = statistics.fmean(there)
      ranks.append((len(there) < len(every), sign * mean))
    else:
      ranks.append(_NOTHING)
  return ranks


def about_missing(runs: list[Run], moment: Moment | None) -> list[str]:
  """Lines about the runs that have no values at the point.

  Args:
    runs: those that are compared.
    moment: the point; None for the end of each run, which all have.
  """
  if moment is None:
    return []
  missing = [run for run in runs if value_at(run, "round", moment) is None]
  without = sum(end(run, moment.against) is None for run in missing)
  reasons = {
      f"have no {title_of(moment.against)}": without,
      "do not come so far": len(missing) - without,
  }
  return [
      f"{count} of {len(runs)} runs {reason} and so have no values here."
      for reason, count in reasons.items() if count
  ]
