"""Writes the records of any number of runs as one CSV file.

    python -m experiments.export WORKDIR... --out=rows.csv [--at_time=common]

A WORKDIR is the folder of a run, or one with runs anywhere below it. Unfinished
runs are written as far as they went. The file has a line for each round, or
with --at_time, --at_rounds, --at_seconds or --at_bytes one for each run. Its
columns are those of `agsfl.read_runs`.
"""

from absl import flags

from agsfl import frame
from agsfl.records.moment import point_in_words
from agsfl.records.read import read_all
from experiments.lib import out, plugins, points, ranking, scripts

flags.adopt_module_key_flags(points)
flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    plugins.load()
    path = out.path()
    runs = read_all(*argv[1:])
    at, by = points.asked(runs), points.sort_by(runs)
    if by is not None:
      ordered = ranking.order([[run] for run in runs], by, at)
      runs = [runs[number] for number in ordered]
    names = frame.names_of(runs, *argv[1:])
    if at is None:
      table = frame.by_round(runs, names)
    else:
      table = frame.by_run(runs, names, moment=at)
    with out.written(path) as temporary:
      frame.write(table, temporary)
    if at is not None:
      print(f"a line for each run, {point_in_words(at)}")
      for note in ranking.about_missing(runs, at):
        print(note)
    print(path)


if __name__ == "__main__":
  scripts.run(main)
