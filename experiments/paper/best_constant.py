"""What learning k is worth: rules that begin with several k, and constant k.

For each beta all runs have the same normalised time. The best of the constants
is known only after all of them have run, so a rule that ends close to it from
any first k has learned k.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from absl import flags

from agsfl.config import Config
from agsfl.errors import require
from agsfl.settings import Amount
from experiments.lib import curves, drawing, groups
from experiments.lib.drawing import plt
from experiments.paper import communication_times, study

flags.adopt_module_key_flags(study)
flags.adopt_module_key_flags(communication_times)
flags.DEFINE_list(
    "time_budgets",
    ["400", "400", "1000", "10000"],
    "For each beta the normalised time after which its runs end.",
)
flags.DEFINE_list(
    "constants",
    ["0.2%", "0.5%", "1%", "3%", "10%", "30%", "100%"],
    "Constant k, in elements or per cent of D.",
)
flags.DEFINE_list(
    "starts", ["0.2%", "50%", "100%"], "Values of the first k of each rule."
)
flags.DEFINE_list(
    "rules",
    ["balance", "sign_log", "sign_interval", "sign"],
    "Controllers that learn k.",
)


class Group(NamedTuple):
  """What a group of runs has in common, beside beta.

  Attributes:
    controller: its name.
    k: its k, or the first one, as the flags say it.
  """

  controller: str
  k: Amount

  def label(self, comm_time: str) -> str:
    """The folder of the runs, below the study's folder."""
    beta = communication_times.label_of(comm_time)
    return f"{beta}/{self.controller}/k{self.k}"


def _groups() -> list[Group]:
  """All groups that the flags ask for; the constants come first.

  Raises:
    ConfigError: a rule does not learn, or a list is empty.
  """
  starts = study.items("starts")
  return [
      *(Group("fixed", k) for k in study.items("constants")),
      *(Group(name, k) for name in study.rules("rules") for k in starts),
  ]


def _by_comm_time(base: Config) -> dict[str, Config]:
  """A Config for each beta, with its time, by its text in the flag.

  Raises:
    ConfigError: there are not as many times as values of beta.
  """
  configs = communication_times.by_comm_time(base)
  budgets = study.numbers("time_budgets", once=False)
  require(
      len(budgets) == len(configs),
      "time_budgets",
      ",".join(study.items("time_budgets")),
      f"{len(configs)} numbers with commas, one for each beta",
  )
  return {
      text: dataclasses.replace(config, time_budget=budget)
      for (text, config), budget in zip(configs.items(), budgets, strict=True)
  }


def _losses(runs):
  """[seeds] of training losses."""
  return np.array([run.summary["train_loss"] for run in runs])


def _late_k(run):
  """The median k of the second half of a run's time."""
  times, ks = run.series("k")
  return float(np.median(ks[times >= times[-1] / 2]))


def _draw(axes, constants, learned, dim):
  """Final loss against k: the constants as a line, each rule as points."""
  ks = np.array([run.config["k"] for runs in constants for run in runs[:1]])
  losses = np.array([_losses(runs) for runs in constants])
  order = np.argsort(ks)
  ks, losses = ks[order], losses[order]
  axes.plot(ks, losses.mean(1), "k.-", lw=1, label="constant k")
  axes.fill_between(ks, losses.min(1), losses.max(1), color="k", alpha=0.12)
  axes.axhline(losses.mean(1).min(), color="k", ls=":", lw=0.8)
  markers = {name: "os^Dvp*"[i % 7] for i, name in enumerate(learned)}
  for name, by_start in learned.items():
    axes.plot(
        [np.mean([_late_k(run) for run in runs]) for runs in by_start],
        [_losses(runs).mean() for runs in by_start],
        markers[name],
        ms=5,
        alpha=0.8,
        label=name,
    )
  axes.set(xscale="log", xlim=(0.0013 * dim, 1.5 * dim))
  drawing.log_axis(axes)
  axes.grid(alpha=0.3)


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  members, by_comm_time = _groups(), _by_comm_time(base)
  done = study.run_all({
      group.label(comm_time): study.seeded(dataclasses.replace(
          config, controller=group.controller, k=group.k
      ))
      for comm_time, config in by_comm_time.items()
      for group in members
  })
  figure, rows = plt.subplots(
      2,
      len(by_comm_time),
      figsize=(4.2 * len(by_comm_time), 7),
      layout="constrained",
      squeeze=False,
  )
  lines = []
  for (comm_time, config), (loss, ks) in zip(
      by_comm_time.items(), rows.T, strict=True
  ):
    budget = f"{config.time_budget:g}"
    of = {group: done[group.label(comm_time)] for group in members}
    constants = {g: runs for g, runs in of.items() if g.controller == "fixed"}
    least = min(_losses(runs).mean() for runs in constants.values())
    learned = {}
    for group, runs in of.items():
      if group not in constants:
        learned.setdefault(group.controller, []).append(runs)
      gap = _losses(runs).mean() / least - 1
      lines.append([
          comm_time,
          budget,
          group.controller,
          str(group.k),
          f"{np.mean([_late_k(run) for run in runs]):.0f}",
          groups.final(runs, "train_loss"),
          groups.final(runs, "test_accuracy"),
          groups.final(runs, "round"),
          f"{100 * gap:+.1f}%",
      ])
    first = next(iter(of.values()))[0]
    dim = first.config["num_weights"]
    _draw(loss, list(constants.values()), learned, dim)
    loss.set(
        title=f"training loss at the end\nbeta = {comm_time}, time {budget}",
        xlabel="k (of a rule: median of the second half)",
    )
    for index, (name, by_start) in enumerate(learned.items()):
      for number, runs in enumerate(by_start):
        label = None if number else name
        curves.draw_smooth(ks, runs, "k", label, f"C{index}")
    title = f"elements per message, $k_m$\nbeta = {comm_time}"
    study.lay_out(ks, "k", title)
    drawing.log_axis(ks)
  figure.legend(
      *rows[0, 0].get_legend_handles_labels(), loc="outside right center"
  )
  header = [
      "beta", "time", "controller", "first k", "k, second half",
      "training loss", "test accuracy", "rounds", "above the best constant",
  ]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
