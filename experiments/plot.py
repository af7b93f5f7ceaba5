"""Draws any runs in one figure: a line for each group, a band over its seeds.

    python -m experiments.plot WORKDIR... [--group_by=k] [--out=plot.png]

A WORKDIR is the folder of a run, or one with runs anywhere below it. Unfinished
runs are left out.
"""

from absl import flags

from agsfl import frame
from experiments.lib import drawing, groups, out, plugins, scripts

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
flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    plugins.load()
    path = out.path(f"runs/plot-{out.new_name()}.png", drawing.ENDINGS)
    runs = groups.read_finished(argv[1:])
    fields = _GROUP_BY.value or frame.differing(runs)
    with out.written(path) as temporary:
      kind = path.suffix[1:]
      print(drawing.compare(runs, fields, temporary, kind, _LEAD_OF.value))
    print(f"figure: {path}")


if __name__ == "__main__":
  scripts.run(main)
