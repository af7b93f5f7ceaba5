"""Draws any runs in one figure: a line for each group, a band over its seeds.

    python -m experiments.plot WORKDIR... [--group_by=k] [--out=plot.png]

A WORKDIR is the folder of a run, or one with runs anywhere below it.
"""

import datetime
from pathlib import Path

from absl import app, flags

from agsfl.errors import ConfigError
from experiments import drawing, out, results, scripts

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
  path = Path(out.OUT.value or f"runs/plot-{stamp}.png")
  with scripts.one_line_errors():
    runs = results.read_all(argv[1:])
    fields = _GROUP_BY.value or results.differing(runs)
    try:
      print(drawing.compare(runs, fields, path))
    except OSError as error:
      raise ConfigError(
          f"--out={path}: cannot be written ({error.strerror})"
      ) from error
  print(f"figure: {path}")


if __name__ == "__main__":
  app.run(main)
