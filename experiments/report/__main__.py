"""Writes one HTML page about runs: settings, results, curves, bytes, clients.

    python -m experiments.report WORKDIR... [--out=report.html]

A WORKDIR is the folder of a run, or one with runs anywhere below it: a study.
Runs that differ only in the seed are shown together. The page is one file that
loads nothing else. Unfinished runs are shown as far as they went.
"""

from pathlib import Path

from absl import flags

from experiments.lib import out, plugins, scripts
from experiments.lib.groups import in_words
from experiments.report import figures, tables
from experiments.report import runs as report_runs
from experiments.report import svg as report_svg
from experiments.report.markup import STYLE, escape
from experiments.report.runs import Shown

flags.adopt_module_key_flags(out)
flags.adopt_module_key_flags(plugins)


def _title(groups):
  runs = [run for group in groups for run in group.runs]
  if len(runs) == 1:
    config = runs[0].config
    name = lambda key: in_words(config.get(key))
    how = f" with {name('controller')}" if runs[0].has_k else ""
    return f"{name('method')}{how} on {name('dataset')}"
  if len(groups) == 1:
    return f"{len(runs)} runs: {groups[0].label}"
  if len(groups) == len(runs):
    return f"{len(runs)} runs"
  return f"{len(runs)} runs of {len(groups)} settings"


def page(where: str, runs: list[Shown]) -> str:
  """The page about some runs, as one HTML document.

  Args:
    where, runs: from `report_runs.read_all`.
  """
  groups = report_runs.group(runs)
  title = escape(_title(groups))
  unfinished = sum(not one.run.finished for one in runs)
  lead = f"Folder {escape(where)}."
  if unfinished:
    lead += (
        " This run is unfinished; the page shows its rounds so far."
        if len(runs) == 1
        else f" {tables.count(unfinished, 'run')} of {len(runs)} unfinished."
    )
  first, *others = (
      f"<section><h2>{name}</h2>\n{show(groups)}</section>\n"
      for name, show in (
          ("Settings", tables.settings),
          ("Results", tables.results),
          ("Curves", figures.curves),
          ("Fairness", figures.fairness),
          ("Bytes", tables.sent),
          ("Clients", tables.clients),
      )
  )
  if len(runs) == 1:
    first = f'<div class="beside">\n{first}{others.pop(0)}</div>\n'
  body = first + "".join(others)
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>agsfl: {title}</title>
<style>{STYLE}{report_svg.STYLE}</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="soft">{lead}</p>
{body}</main>
</body>
</html>
"""


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
    where, runs = report_runs.read_all(argv[1:])
    path = out.path("report.html")
    write(path, page(where, runs))
    print(f"report: {path}")


if __name__ == "__main__":
  scripts.run(main)
