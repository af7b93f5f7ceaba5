"""The charts of a report: losses, accuracy, k, fairness."""

import numpy as np

from agsfl.records.fairness import SPREAD
from experiments.lib.groups import TIME, band, metrics, over_seeds, title_of
from experiments.report import svg as report_svg
from experiments.report.markup import escape
from experiments.report.runs import Group

_BYTES = "bytes sent up and down, all clients"
_LEGEND_IN_CHART = 10  # more lines have one legend for all charts
_LOG_FROM = 12  # an axis whose ends differ by this factor is logarithmic


def _lines(group, style, key, against, label=None):
  """A group's line with its band; or a line per run if they share no x."""
  every = [run.series(key, against) for run in group.runs]
  drawn = [one for one in every if len(one[0])]
  if not drawn:
    return []
  label = label or group.label
  stopped = not group.finished
  shared = band(every) if len(group.runs) > 1 else None
  if shared is None:
    return [
        report_svg.Line(label, style, *one, stopped=stopped) for one in drawn
    ]
  return [
      report_svg.Line(
          label,
          style,
          shared.x,
          shared.mean,
          (shared.x, shared.least),
          (shared.x, shared.greatest),
      )
  ]


def _far_apart(values):
  """Whether these numbers need a logarithmic axis."""
  return min(values) > 0 and max(values) > _LOG_FROM * min(values)


def _figure(title, lines, xlabel, ylabel, *, shared_legend, note="", **how):
  """A chart with its heading and legend; a sentence where it has no lines."""
  if not lines:
    return (
        f"<figure><h3>{escape(title)}</h3><p class=\"soft\">No run has come "
        "this far yet.</p></figure>\n"
    )
  chart = report_svg.chart(
      lines, title=title, xlabel=xlabel, ylabel=ylabel, **how
  )
  legend = ""
  if not shared_legend:
    legend = report_svg.legend(_each_once(lines))
  caption = f"<figcaption>{escape(note)}</figcaption>" if note else ""
  return f"<figure><h3>{escape(title)}</h3>{chart}{legend}{caption}</figure>\n"


def _each_once(lines):
  return list({line.label: line for line in lines}.values())


def _is_shared(groups):
  return len(groups) > _LEGEND_IN_CHART


def _shared_legend(groups):
  if not _is_shared(groups):
    return ""
  none = np.empty(0)
  return report_svg.legend([
      report_svg.Line(group.label, style, none, none)
      for style, group in enumerate(groups)
  ])


def _plan(groups):
  """What the charts show: title, x label, y label, [(key, label)], against."""
  runs = [one.run for group in groups for one in group.runs]
  # Labels that are real numbers have no accuracy.
  unknown = any(run.evaluated for run in runs) and not any(
      len(run.series("test_accuracy")[0]) for run in runs
  )
  return [
      chart for chart in _charts(groups, runs)
      if not (unknown and chart[3][0][0] == "test_accuracy")
  ]


def _charts(groups, runs):
  both = [("train_loss", "training loss"), ("test_loss", "test loss")]
  own = [
      (f"{called} against time", TIME, called, [(name, label)], "time")
      for name in metrics(runs)
      for called in [title_of(name)]
      for label in [called if len(groups) == 1 else None]
  ]
  accuracy = [("test_accuracy", "test accuracy")]
  if len(groups) == 1:
    return [
        ("Loss against time", TIME, "loss", both, "time"),
        ("Accuracy against time", TIME, "share right", accuracy, "time"),
        ("Loss against bytes", _BYTES, "loss", both, "bytes"),
        ("Accuracy against bytes", _BYTES, "share right", accuracy, "bytes"),
        *own,
    ]
  (train, test) = ([(key, None)] for key, _ in both)
  accuracy = [("test_accuracy", None)]
  return [
      ("Training loss against time", TIME, "loss", train, "time"),
      ("Test loss against time", TIME, "loss", test, "time"),
      ("Test accuracy against time", TIME, "share right", accuracy, "time"),
      ("Training loss against bytes", _BYTES, "loss", train, "bytes"),
      ("Test loss against bytes", _BYTES, "loss", test, "bytes"),
      *own,
  ]


def curves(groups: list[Group]) -> str:
  """The charts of losses, accuracy and k."""
  how = {"shared_legend": _is_shared(groups)}
  figures = []
  for title, xlabel, ylabel, keys, against in _plan(groups):
    lines = [
        line
        for number, group in enumerate(groups)
        for style, (key, label) in enumerate(keys, number)
        for line in _lines(group, style, key, against, label)
    ]
    ends = [line.x[-1] for line in lines]
    values = [y for line in lines for y in line.y]
    figures.append(
        _figure(
            title,
            lines,
            xlabel,
            ylabel,
            log_x=bool(lines) and _far_apart(ends),
            log_y=bool(lines) and "loss" in keys[0][0] and _far_apart(values),
            **how,
        )
    )
  figures.append(_k_figure(groups, **how))
  several = any(len(group.runs) > 1 for group in groups)
  notes = []
  if several:
    notes.append(
        "A line is the mean over the runs that differ only in the seed. Its "
        "band goes from the least to the greatest value. Both cover the range "
        "that all of these runs have reached."
    )
  if not all(group.finished for group in groups):
    notes.append("An open circle marks where an unfinished run is.")
  if len(groups) > report_svg.COLORS * report_svg.DASHES:
    notes.append("There are more lines than styles, so some lines look alike.")
  note = f'<p class="soft">{" ".join(notes)}</p>\n' if notes else ""
  return (
      f"{note}{_shared_legend(groups)}"
      f'<div class="charts">\n{"".join(figures)}</div>\n'
  )


def _k_figure(groups, *, shared_legend):
  """k against rounds; for a single setting also its probe."""
  lines = []
  for style, group in enumerate(groups):
    if not group.runs[0].has_k:
      continue
    if len(groups) > 1:
      lines += _lines(group, style, "k", "round")
      continue
    probes = any(
        row["k"] != row["k_probe"]
        for one in group.runs
        for row in one.run.rows
    )
    lines += _lines(group, 0, "k", "round", "k")
    if probes:
      lines += _lines(group, 1, "k_probe", "round", "probe k'")
  without = [group for group in groups if not group.runs[0].has_k]
  methods = dict.fromkeys(group.runs[0].config["method"] for group in without)
  note = f"Without k: {', '.join(methods)}." if without else ""
  if without and len(without) == len(groups):
    return ""
  values = [y for line in lines for y in line.y]
  return _figure(
      "k against rounds",
      lines,
      "round m",
      "k, elements per message",
      log_y=bool(values) and _far_apart(values),
      note=note,
      shared_legend=shared_legend,
  )


def _over_seeds(values, mean, spread=".2g"):
  """`over_seeds`, without a spread of 0."""
  alike = max(values) == min(values)
  return over_seeds(values[:1] if alike else values, mean, spread)


def fairness(groups: list[Group]) -> str:
  """How equal clients are: accuracies over time, and what they contributed."""
  return _accuracies(groups) + _contributions(groups)


def _accuracies(groups):
  """Charts of the clients' accuracies; nothing where no run has them."""
  mean, _, worst, best, jain = SPREAD
  each = lambda key, label=None: [
      line
      for style, group in enumerate(groups)
      for line in _lines(group, style, key, "time", label)
  ]
  title = "Test accuracy of the worst 10% of clients"
  if len(groups) == 1 and len(groups[0].runs) == 1:
    (run,) = groups[0].runs
    title = "Test accuracy of clients"
    label = "mean; band: worst 10% to best 10% of clients"
    edges = {"low": run.series(worst, "time"), "high": run.series(best, "time")}
    accuracies = [line._replace(**edges) for line in each(mean, label)]
  else:
    accuracies = each(worst)
  if not accuracies:
    return ""
  how = {"shared_legend": _is_shared(groups)}
  index = "Jain's index of the clients' accuracies"
  label = index if len(groups) == 1 else None
  figures = (
      _figure(title, accuracies, TIME, "share right", **how)
      + _figure(index, each(jain, label), TIME, "Jain's index", **how)
  )
  return f'{_shared_legend(groups)}<div class="charts">\n{figures}</div>\n'


def _contributions(groups):
  """The share of clients by what they contributed."""
  one = len(groups) == 1 and len(groups[0].runs) == 1
  lines, silence = [], []
  for style, group in enumerate(groups):
    if not group.finished:
      continue
    of_runs = [one.run.contributed for one in group.runs]
    if not one:
      of_runs = [counts / max(counts.mean(), 1) for counts in of_runs]
    jain = _over_seeds([run.jain() for run in group.runs], ".4f")
    label = f"Jain's index {jain}" if one else f"{group.label} ({jain})"
    x, y = report_svg.steps(np.concatenate(of_runs))
    lines.append(report_svg.Line(label, style, x, y))
    silent = [np.mean(counts == 0) for counts in of_runs]
    if max(silent):
      whose = "" if one else f"{group.label}: "
      share = _over_seeds(silent, ".1%", ".1%")
      silence.append(f"{whose}{share} of the clients contributed nothing.")
  if not lines:
    return "<p>No run is finished; what clients contributed is not known.</p>\n"
  counted = (
      "Elements of each client's messages that the server used, over the whole "
      "run"
  )
  if one:
    xlabel, note = "elements contributed by a client", f"{counted}."
  else:
    xlabel = "elements contributed by a client / mean"
    note = (
        f"{counted}, as a share of the run's mean; clients of all seeds "
        "together. Jain's index in brackets."
    )
  legend = report_svg.legend(lines) if _is_shared(groups) else ""
  figure = _figure(
      "Share of clients that contributed this much or less",
      lines,
      xlabel,
      "share of clients",
      shared_legend=_is_shared(groups),
      zero_x=True,
      steps=True,
      note=" ".join([note, *silence]),
  )
  return f'{legend}<div class="charts">\n{figure}</div>\n'
