"""Draws any runs in one figure: a line for each group, a band over its seeds.

    python -m experiments.plot WORKDIR... [--group_by=k] [--out=plot.png]

A WORKDIR is the folder of a run, or one with runs anywhere below it.
"""

import datetime

from absl import app, flags

from experiments.lib import drawing, out, scripts
from experiments.lib import groups as results

_GROUP_BY = flags.DEFINE_list(
    "group_by",
    None,
    "Settings whose values make a group. Default: all that differ but the "
    "seed.",
)
flags.adopt_module_key_flags(out)


def main(argv):
  scripts.start(argv[:1])
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  with scripts.one_line_errors():
    path = out.path(f"runs/plot-{stamp}.png", drawing.ENDINGS)
    runs = results.read_all(argv[1:])
    fields = _GROUP_BY.value or results.differing(runs)
    with out.written(path) as temporary:
      print(drawing.compare(runs, fields, temporary, path.suffix[1:]))
  print(f"figure: {path}")


if __name__ == "__main__":
  app.run(main)
