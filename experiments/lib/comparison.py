"""Groups of runs in one figure and one table, at one point of time."""

from pathlib import Path

from agsfl.errors import require
from agsfl.records.fairness import SPREAD
from agsfl.records.moment import Moment, best_is, point_in_words
from agsfl.records.read import Run
from experiments.lib import groups, ranking
from experiments.lib.drawing import has, log_axis, plt, save, scale_y

_, _, _WORST, *_ = SPREAD

# Columns that most runs have, and their titles.
_TITLES = {
    "train_loss": "training loss",
    "test_loss": "test loss",
    "test_accuracy": "test accuracy",
    _WORST: "test accuracy, worst 10% of clients",
}
_LAST = {"round": "rounds", "time": "time", "seconds": "seconds",
         "bytes": "bytes sent"}


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
    runs: finished.
    fields: settings to group by.
    path: of the figure.
    kind: of `drawing.ENDINGS`, without its dot.
    lead_of: the label of a group. The table then says by how much its accuracy
      was ahead of each other group's, at the time when it was most.
    moment: where the values of the table are taken, which the figure marks; its
      axis is that of all panels. None for the end of each run, and for time.
    sorted_by: see `ranking.rank`; None for the order of the settings' values.

  Returns:
    A Markdown table of the groups, the best one in bold, and what it means.

  Raises:
    ConfigError: a field is no setting, or no group has the label.
  """
  by_label = groups.grouped(runs, fields)
  if lead_of is not None:
    allowed = f"of {'; '.join(by_label)}"
    require(lead_of in by_label, "lead_of", lead_of, allowed)
  if sorted_by is not None:
    of = lambda label: ranking.rank(by_label[label], sorted_by, moment)
    by_label = {label: by_label[label] for label in sorted(by_label, key=of)}
  _draw(by_label, path, kind, moment)
  return _table(by_label, lead_of, moment, sorted_by)


def _draw(by_label, path, kind, moment):
  runs = [run for group in by_label.values() for run in group]
  shown = {
      name: title for name, title in _TITLES.items()
      if name != "test_loss" and any(has(run, name) for run in runs)
  }
  if any(map(_k_moves, runs)):
    shown["k"] = "k: elements per message"
  shown |= {name: groups.title_of(name) for name in groups.metrics(runs)}
  against = "time" if moment is None else moment.against
  figure, (every,) = plt.subplots(
      1, len(shown), figsize=(2 + 5 * len(shown), 4.5), layout="constrained",
      squeeze=False,
  )
  for axes, (key, title) in zip(every, shown.items(), strict=True):
    draw = groups.draw_smooth if key == "k" else groups.draw_spread
    for label, group in by_label.items():
      draw(axes, group, key, label, against=against)
    axes.set(xlabel=groups.AXIS_TITLES[against], title=title)
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
  worst = any(has(run, _WORST) for run in runs)
  columns = {
      **{name: _TITLES[name] for name in _TITLES if worst or name != _WORST},
      **{name: groups.title_of(name) for name in groups.metrics(runs)},
      **{name: _LAST[name] for name in ends},
  }
  best_by = ranking.best_by(runs, sorted_by)
  best = _best(by_label, best_by, moment)
  lines = []
  for label, group in by_label.items():
    values = [ranking.values_at(group, key, moment) for key in columns]
    there, count = len(ranking.values_at(group, "round", moment)), len(group)
    lines.append([
        f"**{label}**" if label == best else label,
        str(count) if there == count else f"{there} of {count}",
        *(groups.over_seeds(some) if some else groups.NONE for some in values),
    ])
    if lead_of is not None:
      lines[-1].append(_lead(by_label[lead_of], group))
  what = ["group", _mean_over(groups.averaged_over(by_label))]
  if moment is not None:
    what.append(point_in_words(moment))
  header = [", ".join(filter(None, what)), "runs", *columns.values()]
  if lead_of is not None:
    header.append(f"largest lead of {lead_of} in test accuracy")
  return "\n".join([
      groups.table(header, lines),
      *_notes(runs, moment, best, best_by),
  ])


def _best(by_label, key, moment):
  """The label of the best group; None if there is nothing to compare."""
  if key is None or len(by_label) == 1:
    return None
  of = lambda label: ranking.rank(by_label[label], key, moment)
  best = min(by_label, key=of)
  return best if ranking.values_at(by_label[best], key, moment) else None


def _notes(runs, moment, best, key):
  """What stands below the table."""
  notes = []
  if best is not None:
    most = "largest" if best_is(key) == "max" else "smallest"
    title = _TITLES.get(key) or _LAST.get(key) or groups.title_of(key)
    notes.append(f"In bold: {best}, which has the {most} {title}.")
  missing = len(runs) - len(ranking.values_at(runs, "round", moment))
  if moment is not None and missing:
    notes.append(
        f"{missing} of {len(runs)} runs do not come so far and have no values "
        "here."
    )
  return ["", *notes] if notes else []


def _k_moves(run):
  """Whether k is not the same in all rounds."""
  k = run.series("k")[1]
  return len(k) > 0 and k.min() < k.max()


def _lead(leader, group):
  """The largest lead over a group, and when it was; a dash over itself."""
  found = None if group is leader else groups.largest_lead(leader, group)
  if found is None:
    return groups.NONE
  lead, time = found
  return f"{lead:+.3f} at time {time:.0f}"
