"""Writes one HTML page about runs: results, curves, settings, bytes, clients.

    python -m experiments.report WORKDIR... [--out=report.html]

A WORKDIR is the folder of a run, or one with runs anywhere below it: a study.
Runs that differ only in the seed are shown together. The page is one file that
loads nothing else. Unfinished runs are shown as far as they went.

--at_time=common shows the results of all runs at the time of the run that ended
first; --at_rounds, --at_seconds and --at_bytes do so on another axis. The best
setting is marked: that of the greatest accuracy, or of the column --sort_by.
"""

from pathlib import Path

from absl import flags

from experiments.lib import groups, out, plugins, points, ranking, scripts
from experiments.report import page, runs

flags.adopt_module_key_flags(points)
flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def write(place: Path, text: str):
  """Writes a file whole or not at all, and makes its folder.

  Raises:
    ConfigError: it cannot be written.
  """
  with out.written(place) as path:
    path.write_text(text, encoding="utf-8")


def main(argv):
  scripts.start(argv[:1])
  with scripts.one_line_errors():
    plugins.load()
    where, shown = runs.read_all(argv[1:])
    path = out.path("report.html")
    every = [one.run for one in shown]
    groups.warn_of_copies(every)
    at, sort_by = points.asked(every), points.sort_by(every)
    best_by = ranking.best_by(every, sort_by)
    write(path, page.page(where, shown, at, sort_by, best_by))
    print(f"report: {path}")


if __name__ == "__main__":
  scripts.run(main)
