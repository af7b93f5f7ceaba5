"""All rows of any number of runs as one CSV file."""

import csv
from pathlib import Path

from absl import app, flags

from experiments.lib import groups as results
from experiments.lib import out, scripts

flags.adopt_module_key_flags(out)


def export(runs: list[results.Run], path: Path):
  """A line per round: the run's folder, what differs of its settings, the row.

  Args:
    runs: finished.
    path: written whole or not at all.
  """
  fields = [*results.differing(runs), "seed"]
  keys = dict.fromkeys(key for run in runs for row in run.rows for key in row)
  with out.written(path) as temporary:
    with temporary.open("w", newline="") as file:
      # A setting may have a row's name, as k has.
      asked = [f"asked_{name}" for name in fields]
      rows = csv.DictWriter(file, ["workdir", *asked, *keys])
      rows.writeheader()
      for run in runs:
        told = [run.asked.get(name) for name in fields]
        common = dict(zip(asked, told, strict=True))
        for row in run.rows:
          rows.writerow({"workdir": run.workdir, **common, **row})


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    path = out.path()
    export(results.read_all(argv[1:]), path)
  print(path)


if __name__ == "__main__":
  app.run(main)
