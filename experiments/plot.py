"""Draws any runs in one figure: a line for each group, a band over its seeds.

    python -m experiments.plot WORKDIR... [--group_by=k] [--at_time=common]

A WORKDIR is the folder of a run, or one with runs anywhere below it. Unfinished
runs are left out. The table compares the runs where each of them ended, or with
--at_time, --at_rounds, --at_seconds or --at_bytes all at one point.
"""

import sys

from absl import flags

from agsfl import frame
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
    "the seed.",
)
_LEAD_OF = flags.DEFINE_string(
    "lead_of",
    None,
    "A group, as the table names it. The table then says by how much its test "
    "accuracy was ahead of each other group's at equal time, at most.",
)
flags.adopt_module_key_flags(points)
flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


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
    runs = groups.read_finished(argv[1:])
    at, by = points.asked(runs), points.sort_by(runs)
    fields = _GROUP_BY.value or frame.differing(runs)
    warn(groups.averaged_over(groups.grouped(runs, fields)), fields)
    with out.written(path) as temporary:
      text = comparison.compare(
          runs, fields, temporary, path.suffix[1:], _LEAD_OF.value, at, by
      )
    print(text)
    print(f"figure: {path}")


if __name__ == "__main__":
  scripts.run(main)
