"""The charts of a report: Vega-Lite specifications, and the points of lines.

A specification has no data. The page puts the points of one x axis into it, so
that all charts can change their axis together.
"""

from typing import Any, NamedTuple

import altair as alt
import numpy as np

from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run
from experiments.lib.groups import (
    AXES,
    band,
    metrics,
    over_seeds,
    spans_decades,
    title_of,
)
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


def look(style: int) -> list[float]:
  """The dashes of a line; the page has `COLOURS` colours, used in turn."""
  return list(_DASHES[(style + style // COLOURS) % len(_DASHES)])


def axes(runs: list[Run]) -> dict[str, str]:
  """The titles of the x axes that any of the runs has."""
  return {
      axis: title
      for axis, title in AXES.items()
      if axis != "seconds" or any(len(r.series("round", axis)[0]) for r in runs)
  }


def log_x(runs: list[Run]) -> dict[str, bool]:
  """By axis, whether runs end so far apart that it is logarithmic."""
  ends = lambda axis: [
      x[-1] for run in runs if len(x := run.series("round", axis)[0])
  ]
  return {axis: spans_decades(ends(axis)) for axis in axes(runs)}


def _lines(group, key, label, edges=()):
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
    bands = {axis: band(lines) for axis, lines in by_axis.items() if lines}
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


def _spec(
    y_title, y_scale, styles, *, y_format, x_title, steps, bands
):
  """A chart of lines; the page replaces the title and the scale of x."""
  x = alt.X(
      "x:Q", title=x_title, scale=alt.Scale(nice=False, zero=True),
      axis=alt.Axis(tickCount=6, labelOverlap=True),
  )
  y = alt.Y(
      "y:Q", title=y_title, scale=y_scale,
      axis=alt.Axis(tickCount=6, labelOverlap=True, format=y_format),
  )
  colour = alt.Color(
      "line:N", scale=alt.Scale(domain=styles), legend=None
  )
  dash = alt.StrokeDash(
      "line:N", legend=None,
      scale=alt.Scale(domain=styles, range=[look(style) for style in styles]),
  )
  base = alt.Chart().encode(x=x, color=colour)
  zoom = alt.selection_interval(name="zoom", bind="scales")
  hover = alt.selection_point(
      name="hover", on="pointerover", clear="pointerout", nearest=True,
      fields=["line", "x"],
  )
  interpolate = "step-after" if steps else "linear"
  layers = [
      base.mark_line(clip=True, interpolate=interpolate, strokeWidth=1.8)
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
      base.mark_point(clip=True, size=55, filled=True, tooltip=True)
      .encode(
          y=y,
          opacity=alt.condition(hover, alt.value(1), alt.value(0), empty=False),
      )
      .properties(name="near")
      .add_params(hover),
  ]
  if bands:
    edges = base.mark_area(clip=True, opacity=0.18).encode(
        y=alt.Y("low:Q", title=y_title, scale=y_scale), y2="high:Q"
    )
    layers.insert(0, edges)
  return (
      alt.layer(*layers, data=alt.NamedData("points"))
      .transform_filter("indexof(hidden, datum.line) < 0")
      .add_params(alt.param(name="hidden", value=[]))
      .properties(width="container", height=230)
      .to_dict()
  )


def _scale(values, *, share):
  """The scale of y: from 0, unless all values are close to each other."""
  low, high = min(values), max(values)
  if share and (high - low >= _CLOSE or low == high):
    return alt.Scale(domain=[0, 1])
  return alt.Scale(zero=not share and low < high / 2)


def _rounded(values):
  """Numbers of six digits; whole ones without a point."""
  numbers = (float(f"{value:.6g}") for value in values)
  return [int(x) if x.is_integer() else x for x in numbers]


class Charts:
  """The charts of a page, and the lines of their common legend.

  Attributes:
    labels: of the lines, in order.
    charts: of the page, as data for it.
  """

  def __init__(self, labels: list[str]):
    """No charts yet; these labels come first in the legend."""
    self.labels = list(labels)
    self.charts: list[dict[str, Any]] = []

  def add(
      self,
      section: str,
      title: str,
      y_title: str,
      lines: list[Line],
      *,
      share: bool = False,
      x_title: str | None = None,
      note: str = "",
      empty: str = "No run has come this far yet.",
      band: str = "over seeds",
  ):
    """Adds a chart.

    Args:
      section: "Curves" or "Fairness".
      title, y_title: the heading, and what y is.
      lines: none for a chart to which no run has come yet.
      share: whether y is a share from 0 to 1, never on a logarithmic axis.
      x_title: of a chart of steps, whose x is not one of `AXES`.
      note: a sentence below.
      empty: what stands in place of a chart without lines.
      band: what the edges of a band are.
    """
    chart = {
        "section": section, "title": title[:1].upper() + title[1:],
        "note": note, "steps": x_title is not None, "empty": empty,
        "lines": [], "can_log": False, "band": band,
    }
    self.charts.append(chart)
    if not lines:
      return
    self.labels += dict.fromkeys(
        line.label for line in lines if line.label not in self.labels
    )
    most = min(max(_POINTS // len(lines), _LEAST), _MOST)
    every = [p for line in lines for p in line.points.values()]
    ends = [(min(y), max(y)) for _, *ys in every for y in ys]
    values = np.array(ends, float).ravel().tolist()
    styles = sorted({self.labels.index(line.label) for line in lines})
    spec = _spec(
        y_title, _scale(values, share=share), styles, x_title=x_title or "x",
        y_format="~s" if y_title == "k" else "", steps=x_title is not None,
        bands=any(len(points) > 2 for points in every),
    )
    words = [
        f"{line.label}: from {y[0]:.4g} to {y[-1]:.4g}"
        for line in lines
        for _, y, *_ in [next(iter(line.points.values()))]
    ]
    spec["description"] = f"{chart['title']}. {'; '.join(words)}."
    chart |= {
        "spec": spec,
        "can_log": not share and min(values) > 0,
        "log": not share and spans_decades(values),
        "lines": [
            {
                "style": self.labels.index(line.label),
                "stopped": line.stopped,
                "points": {
                    axis: [_rounded(v) for v in thin(most, *points)]
                    for axis, points in line.points.items()
                },
            }
            for line in lines
        ],
    }


def charts(groups: list[Group]) -> Charts:
  """The charts of losses, accuracy, metrics, k, and fairness.

  Args:
    groups: one or more. Of several, each has a line in every chart. Of one, its
      numbers of a kind are lines of one chart.
  """
  several = len(groups) > 1
  made = Charts([group.label for group in groups] if several else [])
  runs = [run for group in groups for run in group.runs]

  def lines(*keys):
    label = lambda group, key: group.label if several else _OF_ONE.get(
        key, "test" if key.startswith("test_") else key
    )
    return [
        line
        for group in groups
        for key in keys
        for line in _lines(group, key, label(group, key))
    ]

  add = lambda *words, **how: made.add("Curves", *words, **how)
  if several:
    add("Training loss", "training loss", lines("train_loss"))
    add("Test loss", "test loss", lines("test_loss"))
  else:
    add("Loss", "loss", lines("train_loss", "test_loss"))
  # Labels that are real numbers have no accuracy.
  accuracy = lines("test_accuracy")
  if accuracy or not any(run.evaluated for run in runs):
    add("Test accuracy", "share classified correctly", accuracy, share=True)
  for name in metrics(runs):
    add(title_of(name), title_of(name), lines(name))
  _add_k(groups, add, lines)
  _add_accuracies(groups, made, lines)
  _add_contributions(groups, made)
  return made


def _add_k(groups, add, lines):
  """k; for a single setting also its probe, if that ever differs."""
  without = [group for group in groups if not has_k(group.runs[0])]
  if len(without) == len(groups):
    return
  methods = dict.fromkeys(group.runs[0].config["method"] for group in without)
  note = f"Without k: {', '.join(methods)}." if without else ""
  drawn = lines("k")
  if len(groups) == 1 and any(
      row["k"] != row["k_probe"] for run in groups[0].runs for row in run.rows
  ):
    drawn += lines("k_probe")
  left_out = {group.label for group in without}
  drawn = [line for line in drawn if line.label not in left_out]
  add("Elements per message k", "k", drawn, note=note)


def _add_accuracies(groups, made, lines):
  """The clients' accuracies, and how equal they are."""
  mean, _, worst, best, jain = SPREAD
  accuracies = lines(worst)
  title, how = "Test accuracy of the worst 10% of clients", {}
  if len(groups) == 1 and len(groups[0].runs) == 1:
    accuracies = _lines(groups[0], mean, _OF_ONE[mean], (worst, best))
    title = "Test accuracy of clients, each on its own samples"
    how = {
        "note": "Line: mean. Band: from the worst 10% to the best 10%.",
        "band": "worst and best 10%",
    }
  if accuracies:
    add = lambda *words, **how: made.add("Fairness", *words, share=True, **how)
    add(title, "share classified correctly", accuracies, **how)
    add("Jain's index of the clients' accuracies", "Jain's index", lines(jain))


def _add_contributions(groups, made):
  """The share of clients by what they contributed."""
  one = len(groups) == 1 and len(groups[0].runs) == 1
  lines, silence = [], []
  for group in groups:
    if not group.finished:
      continue
    of_runs = [run.contributed for run in group.runs]
    if not one:
      of_runs = [counts / max(counts.mean(), 1) for counts in of_runs]
    label = group.label if len(groups) > 1 else _OF_ONE[SPREAD[0]]
    lines.append(Line(label, {"own": shares(np.concatenate(of_runs))}))
    silent = [np.mean(counts == 0) for counts in of_runs]
    if max(silent):
      whose = "" if one else f"{group.label}: "
      alike = max(silent) == min(silent)
      share = over_seeds(silent[:1] if alike else silent, ".1%", ".1%")
      silence.append(f"{whose}{share} of the clients contributed nothing.")
  counted = (
      "Elements of each client's messages that the server used, over the whole "
      "run"
  )
  note = f"{counted}." if one else (
      f"{counted}, divided by the run's mean. The clients of all seeds are "
      "taken together."
  )
  made.add(
      "Fairness",
      "Share of clients that contributed this much or less",
      "share of clients",
      lines,
      share=True,
      x_title="elements contributed by a client" + ("" if one else " / mean"),
      note=" ".join([note, *silence]) if lines else "",
      empty="No run is finished; what clients contributed is not known.",
  )


def shares(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The share of values at or below x, as a line of steps.

  >>> shares(np.array([3, 1, 7, 3]))
  (array([1, 1, 3, 7]), array([0.  , 0.25, 0.75, 1.  ]))
  """
  x, counts = np.unique(values, return_counts=True)
  return np.append(x[:1], x), np.append(0, np.cumsum(counts) / len(values))
