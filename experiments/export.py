"""Writes all rows of any number of runs as one CSV file.

    python -m experiments.export WORKDIR... --out=rows.csv

A WORKDIR is the folder of a run, or one with runs anywhere below it. Unfinished
runs are written as far as they went.
"""

from pathlib import Path

from absl import flags

from agsfl.records.read import Run, read_runs
from agsfl.records.tables import write_csv
from experiments.lib import groups, out, plugins, scripts

flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def export(runs: list[Run], path: Path):
  """Writes a line per round: the run's folder, what differs, and the row.

  Args:
    runs: finished or not.
    path: written whole or not at all.
  """
  fields = [*groups.differing(runs), "seed"]
  keys = dict.fromkeys(key for run in runs for row in run.rows for key in row)

  def lines():
    # A setting and a number of the row may have one name, as k has.
    yield ["workdir", *(f"asked_{name}" for name in fields), *keys]
    for run in runs:
      asked = [groups.value_of(run.asked, name) for name in fields]
      for row in run.rows:
        yield [str(run.workdir), *asked, *(row.get(key) for key in keys)]

  with out.written(path) as temporary:
    write_csv(temporary, lines())


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    plugins.load()
    path = out.path()
    export(read_runs(*argv[1:]), path)
    print(path)


if __name__ == "__main__":
  scripts.run(main)
