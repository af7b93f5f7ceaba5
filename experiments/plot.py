"""Draws any runs in one figure: a line for each group, a band over its seeds.

    python -m experiments.plot WORKDIR... [--group_by=k] [--at_time=common]

A WORKDIR is the folder of a run, or one with runs anywhere below it. The table
compares the runs where each of them ended, or with --at_time, --at_rounds,
--at_seconds or --at_bytes all at one point. Unfinished runs are left out unless
they have come to that point.
"""

import sys

from absl import flags

from agsfl import frame
from agsfl.errors import ConfigError
from agsfl.records.moment import Moment, point_in_words, value_at
from agsfl.records.read import Run, read_all
from experiments.lib import (
    comparison,
    drawing,
    groups,
    out,
    plugins,
    points,
    scripts,
)

_GROUP_BY = flags.DEFINE_list(
    "group_by",
    None,
    "Settings that make the groups. Default: all settings that differ, except "
    "the seed. If it is empty, all runs are one group.",
)
_LEAD_OF = flags.DEFINE_string(
    "lead_of",
    None,
    "A group, as the table names it. The table then has its largest lead over "
    "each other group: the difference of their test accuracies at equal time.",
)
flags.adopt_module_key_flags(points)
flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def compared(runs: list[Run]) -> tuple[list[Run], Moment | None]:
  """The runs to compare, and the point that the flags ask for.

  Says on one line of stderr how many unfinished runs are left out.

  Args:
    runs: finished or not.

  Returns:
    The finished runs, and those of the others that have come to the point. What
    is common to all is up to the finished ones, if there are any.

  Raises:
    ConfigError: there is none; see also `points.asked`.
  """
  at = points.asked([run for run in runs if run.finished] or runs)
  ready = lambda run: run.finished or (
      at is not None and value_at(run, "round", at) is not None
  )
  chosen = [run for run in runs if ready(run)]
  if not chosen:
    so_far = "" if at is None else f" or has values {point_in_words(at)}"
    raise ConfigError(
        f"no run here is finished{so_far}; report and export show runs so far"
    )
  if left := len(runs) - len(chosen):
    late = "" if at is None else " and do not come so far"
    print(
        f"warning: {left} of {len(runs)} runs are left out, because they are "
        f"not finished{late}",
        file=sys.stderr,
    )
  return chosen, at


def warn(averaged: list[str], fields: list[str]):
  """Says on one line of stderr that a mean is over more than seeds.

  Args:
    averaged: from `groups.averaged_over`.
    fields: of --group_by.
  """
  others = [name for name in averaged if name != "seed"]
  if others:
    print(
        f"warning: the runs of a group differ in {', '.join(others)} too, and "
        "the figure and the table show their mean; "
        f"--group_by={','.join([*fields, *others])} tells them apart",
        file=sys.stderr,
    )


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    plugins.load()
    path = out.path(f"runs/plot-{out.new_name()}.png", drawing.ENDINGS)
    runs, at = compared(read_all(*argv[1:]))
    groups.warn_of_copies(runs)
    by, fields = points.sort_by(runs), _GROUP_BY.value
    if fields is None:
      fields = frame.differing(runs)
    warn(groups.averaged_over(groups.grouped(runs, fields)), fields)
    with out.written(path) as temporary:
      text = comparison.compare(
          runs, fields, temporary, path.suffix[1:], _LEAD_OF.value, at, by
      )
    print(text)
    print(f"figure: {path}")


if __name__ == "__main__":
  scripts.run(main)
