"""Groups of runs in one figure and one table, at one point of time."""

from pathlib import Path

from agsfl.errors import require
from agsfl.records.moment import (
    Moment,
    best_is,
    point_in_words,
)
from agsfl.records.read import Run
from agsfl.records.titles import WORST, title_of
from experiments.lib import curves, groups, ranking
from experiments.lib.drawing import log_axis, plt, save, scale_y

# Columns that most runs have.
_COLUMNS = ("train_loss", "test_loss", "test_accuracy")


def compare(
    runs: list[Run],
    fields: list[str],
    path: Path,
    kind: str = "png",
    lead_of: str | None = None,
    moment: Moment | None = None,
    sorted_by: str | None = None,
) -> str:
  """Draws groups of runs with their spread over seeds, and makes a table.

  The panels are loss, accuracy, that of the worst 10% of clients if the runs
  have it, k if it moves, and the metrics of tasks and users.

  Args:
    runs: finished, or those that have come to the point.
    fields: settings to group by.
    path: of the figure.
    kind: of `drawing.ENDINGS`, without its dot.
    lead_of: the label of a group. The table then has its largest lead in test
      accuracy over each other group, and the time of that.
    moment: where the values of the table are taken, which the figure marks; its
      axis is that of all panels. None for the end of each run, and for time.
    sorted_by: see `ranking.order`; None for the order of the settings' values.

  Returns:
    A Markdown table of the groups, the best in bold, and what it means.

  Raises:
    ConfigError: a field is no setting, or no group has the label.
  """
  by_label = groups.grouped(runs, fields)
  if lead_of is not None:
    allowed = f"one of {'; '.join(by_label)}"
    require(lead_of in by_label, "lead_of", lead_of, allowed)
  if sorted_by is not None:
    labels = list(by_label)
    order = ranking.order(list(by_label.values()), sorted_by, moment)
    by_label = {labels[i]: by_label[labels[i]] for i in order}
  _draw(by_label, path, kind, moment)
  return _table(by_label, lead_of, moment, sorted_by)


def _draw(by_label, path, kind, moment):
  runs = [run for group in by_label.values() for run in group]
  shown = {
      name: title_of(name) for name in ("train_loss", "test_accuracy", WORST)
      if any(groups.has(run, name) for run in runs)
  }
  if any(map(_k_moves, runs)):
    shown["k"] = "k: elements per message"
  shown |= {name: title_of(name) for name in groups.metrics(runs)}
  against = "time" if moment is None else moment.against
  figure, (every,) = plt.subplots(
      1, len(shown), figsize=(2 + 5 * len(shown), 4.5), layout="constrained",
      squeeze=False,
  )
  for axes, (key, title) in zip(every, shown.items(), strict=True):
    draw = curves.draw_smooth if key == "k" else curves.draw_spread
    for label, group in by_label.items():
      draw(axes, group, key, label, against=against)
    axes.set(xlabel=curves.AXIS_TITLES[against], title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    if key == "k":
      log_axis(axes)
    else:
      scale_y(axes, key)
    if moment is not None:
      axes.axvline(moment.value, color="0.4", lw=1, ls="--")
  averaged = groups.averaged_over(by_label)
  figure.legend(
      *every[0].get_legend_handles_labels(),
      loc="outside right center",
      fontsize=9,
      title=_mean_over(averaged).capitalize(),
  )
  if averaged:
    figure.suptitle(
        "lines: mean of the runs; bands: from the least to the greatest run",
        fontsize=9,
    )
  save(figure, path, kind)


def _mean_over(averaged):
  return f"mean over {', '.join(averaged)}" if averaged else ""


def _table(by_label, lead_of, moment, sorted_by):
  runs = [run for group in by_label.values() for run in group]
  ends = ["round", "time"]
  if moment is not None and moment.against not in ends:
    ends.append(moment.against)
  worst = [WORST] if any(groups.has(run, WORST) for run in runs) else []
  keys = [*_COLUMNS, *worst, *groups.metrics(runs), *ends]
  best_by = ranking.best_by(runs, sorted_by)
  best = ranking.best_of(list(by_label.values()), best_by, moment)
  bold = [label for number, label in enumerate(by_label) if number in best]
  lines, partly = [], False
  for label, group in by_label.items():
    values = [ranking.values_at(group, key, moment) for key in keys]
    partly |= any(0 < some.count(None) < len(group) for some in values)
    lines.append([
        f"**{label}**" if label in bold else label,
        str(len(group)),
        *map(groups.over_seeds, values),
    ])
    if lead_of is not None:
      lines[-1].append(_lead(by_label[lead_of], group))
  what = ["group", _mean_over(groups.averaged_over(by_label))]
  if moment is not None:
    what.append(point_in_words(moment))
  header = [", ".join(filter(None, what)), "runs", *map(title_of, keys)]
  if lead_of is not None:
    header.append(f"largest lead of {lead_of} in test accuracy")
  notes = [
      *([groups.SPREAD] if any(len(x) > 1 for x in by_label.values()) else []),
      *_about_best(bold, best_by),
      *([groups.PARTLY] if partly else []),
      *ranking.about_missing(runs, moment),
  ]
  table = groups.table(header, lines)
  return "\n".join([table, "", *notes]) if notes else table


def _about_best(bold, key):
  if not bold:
    return []
  has = "has" if len(bold) == 1 else "have"
  most = "largest" if best_is(key) == "max" else "smallest"
  names = "; ".join(bold)
  return [f"In bold: {names}, which {has} the {most} {title_of(key)}."]


def _k_moves(run):
  """Whether k is not the same in all rounds."""
  k = run.series("k")[1]
  return len(k) > 0 and k.min() < k.max()


def _lead(leader, group):
  """The largest lead over a group, and when it was; a dash over itself."""
  found = None if group is leader else curves.largest_lead(leader, group)
  if found is None:
    return groups.NONE
  lead, time = found
  return f"{lead:+.3f} at time {time:.0f}"
