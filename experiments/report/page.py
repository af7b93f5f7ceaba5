"""The page of a report: its data, put into the template."""

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import altair
import jinja2
import vl_convert

import agsfl
from agsfl.records.moment import Moment, point_in_words
from experiments.lib.groups import PARTLY
from experiments.lib.ranking import order
from experiments.report import charts, runs, tables
from experiments.report.runs import Shown

_HERE = Path(__file__).parent


def data(
    shown: list[Shown],
    at: Moment | None = None,
    sort_by: str | None = None,
    best_by: str | None = None,
) -> dict[str, Any]:
  """All that the page shows, as plain data.

  Args:
    shown: from `runs.read_all`.
    at: where the runs are compared; None for the end of each run.
    sort_by: a setting or a column that orders the settings, or None.
    best_by: the column that decides which setting is best, or None.
  """
  groups = runs.group(shown)
  if sort_by:
    ordered = order([group.runs for group in groups], sort_by, at)
    groups = [groups[number] for number in ordered]
  every = [one.run for one in shown]
  made = charts.charts(groups)
  # Of several settings each has a number, which may have no line yet.
  labels = [group.label for group in groups if len(groups) > 1]
  labels += [line["label"] for chart in made for line in chart["lines"]]
  labels = list(dict.fromkeys(labels))
  results = tables.results(groups, at, best_by)
  # Only a mean that is not over all runs says over how many it is.
  partly = any(
      isinstance(cell, list) and len(cell) > 3
      for table in results for row in table["rows"] for cell in row
  )
  for chart in made:
    for line in chart["lines"]:
      line["style"] = labels.index(line.pop("label"))
  return {
      "title": runs.title(groups),
      "runs": len(shown),
      "unfinished": sum(not run.finished for run in every),
      "seeds": any(len(group.runs) > 1 for group in groups),
      "partly": PARTLY if partly else "",
      "when": point_in_words(at),
      "moment": at and at._asdict(),
      "lines": [
          {"name": name, "dash": charts.look(style)}
          for style, name in enumerate(labels)
      ],
      "axes": charts.axes(every),
      "axis": at.against if at else "time",
      "specification": charts.specification(len(labels)),
      "charts": made,
      "tables": [
          *results,
          *tables.settings(groups),
          *tables.sent(groups),
          *tables.clients(groups),
      ],
      "all_count": any(
          not run.finished and run.config.get("min_samples") == 0
          for run in every
      ),
  }


def page(where: str, shown: list[Shown], *how: Any) -> str:
  """The page about some runs, as one HTML document.

  Args:
    where, shown: from `runs.read_all`.
    *how: as `data` takes them.
  """
  names = ("page.js", "tables.js", "charts.js")
  script = "\n".join([_bundle(), *map(_text, names)])
  digest = hashlib.sha256(script.encode()).digest()
  environment = jinja2.Environment(
      loader=jinja2.FileSystemLoader(_HERE), autoescape=True,
      undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
  )
  environment.policies["json.dumps_kwargs"] = {
      "allow_nan": False, "separators": (",", ":")
  }
  return environment.get_template("page.html.jinja").render(
      printable({"report": data(shown, *how), "where": where}),
      style=_text("style.css"), script=script, version=agsfl.__version__,
      script_hash=f"sha256-{base64.b64encode(digest).decode()}",
      looks=charts.LOOKS,
  )


def printable(value: Any) -> Any:
  """Data whose text has a mark in place of what cannot be printed."""
  if isinstance(value, str):
    return "".join(c if c.isprintable() else "\ufffd" for c in value)
  if isinstance(value, dict):
    return {printable(name): printable(inner) for name, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [printable(inner) for inner in value]
  return value


def _text(name):
  return (_HERE / name).read_text(encoding="utf-8")


@functools.cache
def _bundle():
  """The JavaScript of Vega, of the version that Altair's charts are for."""
  version = ".".join(altair.SCHEMA_VERSION.split(".")[:2])
  return vl_convert.javascript_bundle(vl_version=version)
