"""The charts of a report: their specification, and the points of their lines.

All charts have one specification, which has no data. The page puts the points
of one x axis into it, so that all charts change their axis together.
"""

import functools
from typing import Any, NamedTuple

import altair as alt
import numpy as np

from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run
from agsfl.records.titles import title_of
from experiments.lib import curves
from experiments.lib.groups import metrics, over_seeds
from experiments.report.runs import Group, has_k

COLOURS, _DASHES = 8, ((1, 0), (7, 3), (2, 2.5), (9, 3, 2, 3))
LOOKS = COLOURS * len(_DASHES)

_CLOSE = 0.2  # shares within this range have an axis of their own
_POINTS = 4000  # of a chart, about
_LEAST, _MOST = 100, 600  # of a line of it

# Of a single setting: what its lines are called.
_OF_ONE = {
    "train_loss": "training", "k": "k", "k_probe": "probe k'",
    **dict.fromkeys(SPREAD, "clients"),
}


class Line(NamedTuple):
  """A line of a chart.

  Attributes:
    label: for the legend; the same label looks the same in every chart.
    points: by axis (x, y), or (x, y, low, high) with the edges of a band;
      [points] each, finite. An axis that the runs do not have is missing.
    stopped: whether an open circle marks its end.
  """

  label: str
  points: dict[str, tuple[np.ndarray, ...]]
  stopped: bool = False


def look(style: int) -> list[float]:
  """The dashes of a line; the page has `COLOURS` colours, used in turn."""
  return list(_DASHES[(style + style // COLOURS) % len(_DASHES)])


@functools.cache
def specification(styles: int) -> dict[str, Any]:
  """What all charts have in common, without data; the page sets the titles.

  Args:
    styles: how many kinds of lines there are, numbered from 0.
  """
  numbers = list(range(styles))
  x, y, low = (
      channel(f"{name}:Q", axis=alt.Axis(tickCount=6, labelOverlap=True))
      for channel, name in ((alt.X, "x"), (alt.Y, "y"), (alt.Y, "low"))
  )
  zoom = alt.selection_interval(name="zoom", bind="scales")
  hover = alt.selection_point(
      name="hover", on="pointerover", clear="pointerout", nearest=True,
      fields=["line", "x"],
  )
  base = alt.Chart().encode(
      x=x, color=alt.Color("line:N", legend=None).scale(domain=numbers)
  )
  dash = alt.StrokeDash("line:N", legend=None).scale(
      domain=numbers, range=list(map(look, numbers))
  )
  layers = (
      base.mark_area(clip=True, opacity=0.18)
      .encode(y=low, y2="high:Q")
      .transform_filter("isValid(datum.low)"),
      base.mark_line(clip=True, strokeWidth=1.8)
      .encode(y=y, strokeDash=dash)
      .properties(name="lines")
      .add_params(zoom),
      base.mark_point(clip=True, size=45, strokeWidth=1.8)
      .encode(y=y)
      .transform_filter("datum.open"),
      base.mark_point(clip=True, size=45, filled=True, opacity=1)
      .encode(y=y)
      .transform_filter("datum.dot"),
      alt.Chart(alt.NamedData("moment"))
      .mark_rule(clip=True, strokeDash=[4, 4])
      .encode(x=x),
      # Only the point that is nearest to the pointer is seen.
      base.mark_point(clip=True, size=55, filled=True, tooltip=True)
      .encode(
          y=y,
          opacity=alt.condition(hover, alt.value(1), alt.value(0), empty=False),
      )
      .properties(name="near")
      .add_params(hover),
  )
  return (
      alt.layer(*layers, data=alt.NamedData("points"))
      .transform_filter("indexof(hidden, datum.line) < 0")
      .add_params(alt.param(name="hidden", value=[]))
      .properties(width="container", height=230)
      .to_dict()
  )


def axes(runs: list[Run]) -> dict[str, str]:
  """The titles of the x axes that any of the runs has."""
  has = lambda axis: any(len(run.series("round", axis)[0]) for run in runs)
  return {
      axis: title
      for axis, title in curves.AXIS_TITLES.items()
      if axis != "seconds" or has(axis)
  }


def thin(most: int, x: np.ndarray, *ys: np.ndarray) -> tuple[np.ndarray, ...]:
  """Some points of a long line, with the extremes of each stretch.

  Args:
    most: how many points there may be, about.
    x, *ys: [points] each.

  Returns:
    x and ys at these points.
  """
  if len(x) > most:
    picked = {0, len(x) - 1}
    for part in np.array_split(np.arange(len(x)), most // (2 * len(ys))):
      for y in ys:
        picked |= {part[np.argmin(y[part])], part[np.argmax(y[part])]}
    x, *ys = (values[sorted(picked)] for values in (x, *ys))
  return (x, *ys)


def shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The share of values at or below x, as a line of steps.

  >>> shares(np.array([3, 1, 7, 3]))
  (array([1, 1, 3, 7]), array([0.  , 0.25, 0.75, 1.  ]))
  """
  x, counts = np.unique(values, return_counts=True)
  return np.append(x[:1], x), np.append(0, np.cumsum(counts) / len(values))


def _rounded(values):
  """Numbers of six digits; whole ones without a point."""
  numbers = (float(f"{value:.6g}") for value in values)
  return [int(x) if x.is_integer() else x for x in numbers]


def chart(
    section: str,
    title: str,
    y_title: str,
    lines: list[Line],
    *,
    share: bool = False,
    x_title: str | None = None,
    **text: str,
) -> dict[str, Any]:
  """A chart as data for the page.

  Args:
    section: "Curves" or "Fairness".
    title, y_title: the heading, and what y is.
    lines: none for a chart to which no run has come yet.
    share: whether y is a share from 0 to 1, never on a logarithmic axis.
    x_title: of a chart of steps, whose x is no axis of the page.
    **text: `note`, a sentence below; `empty`, which stands in place of a chart
      without lines; `band`, what the edges of a band are.
  """
  made: dict[str, Any] = {
      "section": section, "title": title[:1].upper() + title[1:],
      "x_title": x_title, "y_title": y_title, "note": "", "band": "over seeds",
      "empty": "No run has come this far yet.", "can_log": False, **text,
  }
  most = min(max(_POINTS // max(len(lines), 1), _LEAST), _MOST)
  made["lines"] = [
      {
          "label": line.label, "stopped": line.stopped,
          "points": {
              axis: [_rounded(values) for values in thin(most, *points)]
              for axis, points in line.points.items()
          },
      }
      for line in lines
  ]
  if not lines:
    return made
  values = np.concatenate([
      y for line in lines for _, *ys in line.points.values() for y in ys
  ])
  low, high = float(values.min()), float(values.max())
  # A share goes from 0 to 1, unless all values are close to each other.
  whole = share and (high - low >= _CLOSE or low == high)
  ends = [
      f"{line.label}: from {y[0]:.4g} to {y[-1]:.4g}"
      for line in lines
      for _, y, *_ in [next(iter(line.points.values()))]
  ]
  return made | {
      "y_scale": {"domain": [0, 1]} if whole
      else {"zero": not share and low < high / 2},
      "can_log": not share and low > 0,
      "log": not share and curves.spans_decades(values),
      "words": f"{made['title']}. {'; '.join(ends)}.",
  }


def _lines(group, label, key, edges=()):
  """A group's line with its band; or a line per run if they share no x.

  A single run may have two other columns as the edges of its band.
  """
  series = lambda run, axis: (
      *run.series(key, axis), *(run.series(edge, axis)[1] for edge in edges)
  )
  by_axis = {
      axis: [s for run in group.runs if len((s := series(run, axis))[0])]
      for axis in axes(group.runs)
  }
  count = len(by_axis["round"])
  bands = {}
  if count == len(group.runs) > 1:
    bands = {
        axis: curves.band(lines) for axis, lines in by_axis.items() if lines
    }
  if bands and None not in bands.values():
    return [Line(label, bands)]
  return [
      Line(
          label,
          {axis: lines[i] for axis, lines in by_axis.items() if lines},
          stopped=not group.finished,
      )
      for i in range(count)
  ]


def charts(groups: list[Group]) -> list[dict[str, Any]]:
  """The charts of losses, accuracy, metrics, k, and fairness.

  Args:
    groups: one or more. Of several, each has a line in every chart. Of one, its
      numbers of a kind are lines of one chart.
  """
  several = len(groups) > 1
  runs = [run for group in groups for run in group.runs]

  def lines(*keys, edges=()):
    of_one = lambda key: _OF_ONE.get(
        key, "test" if key.startswith("test_") else key
    )
    return [
        line
        for group in groups
        for key in keys
        if key != "k" or has_k(group.runs[0])
        for line in _lines(
            group, group.label if several else of_one(key), key, edges
        )
    ]

  curve = functools.partial(chart, "Curves")
  made = [
      curve("Training loss", "training loss", lines("train_loss")),
      curve("Test loss", "test loss", lines("test_loss")),
  ] if several else [
      curve("Loss", "loss", lines("train_loss", "test_loss"))
  ]
  # Labels that are real numbers have no accuracy.
  accuracy = lines("test_accuracy")
  if accuracy or not any(run.evaluated for run in runs):
    y_title = "share classified correctly"
    made.append(curve("Test accuracy", y_title, accuracy, share=True))
  for name in metrics(runs):
    made.append(curve(title_of(name), title_of(name), lines(name)))

  # Of a single setting also the probe, if that ever differs.
  without = [run.config["method"] for run in runs if not has_k(run)]
  note = f"Without k: {', '.join(dict.fromkeys(without))}." if without else ""
  probes = not several and any(
      row["k"] != row["k_probe"] for run in runs for row in run.rows
  )
  if len(without) < len(runs):
    drawn = lines("k", "k_probe") if probes else lines("k")
    made.append(curve("Elements per message k", "k", drawn, note=note))
  return [*made, *_accuracies(lines, len(runs) == 1), _contributions(groups)]


def _accuracies(lines, alone):
  """The clients' accuracies, and how equal they are."""
  mean, _, worst, best, jain = SPREAD
  if alone:
    drawn = lines(mean, edges=(worst, best))
    title = "Test accuracy of clients, each on its own samples"
    how = {
        "note": "Line: mean. Band: from the worst 10% to the best 10%.",
        "band": "worst to best 10%",
    }
  else:
    drawn, how = lines(worst), {}
    title = "Test accuracy of the worst 10% of clients"
  if not drawn:
    return []
  index = "Jain's index of the clients' accuracies"
  of_clients = functools.partial(chart, "Fairness", share=True)
  return [
      of_clients(title, "share classified correctly", drawn, **how),
      of_clients(index, "Jain's index", lines(jain)),
  ]


def _contributions(groups):
  """The share of clients by what they contributed."""
  one = len(groups) == 1 and len(groups[0].runs) == 1
  lines = []
  notes = [
      "Elements of each client's messages that the server used, over the whole "
      "run."
      if one
      else "Elements of each client's messages that the server used, divided "
      "by the mean of the run. The clients of all seeds are taken together."
  ]
  for group in groups:
    if not group.finished:
      continue
    of_runs = [run.contributed for run in group.runs]
    silent = [np.mean(counts == 0) for counts in of_runs]
    if not one:
      of_runs = [counts / max(counts.mean(), 1) for counts in of_runs]
    label = group.label if len(groups) > 1 else _OF_ONE[SPREAD[0]]
    lines.append(Line(label, {"own": shares(np.concatenate(of_runs))}))
    if max(silent):
      whose = "" if one else f"{group.label}: "
      alike = max(silent) == min(silent)
      share = over_seeds(silent[:1] if alike else silent, ".1%", ".1%")
      notes.append(f"{whose}{share} of the clients contributed nothing.")
  return chart(
      "Fairness",
      "Share of clients that contributed this much or less",
      "share of clients",
      lines,
      share=True,
      x_title="elements contributed by a client" + ("" if one else " / mean"),
      note=" ".join(notes) if lines else "",
      empty="No run is finished; what clients contributed is not known.",
  )
