"""Whether the loss after a change of k depends on the k before it.

Each run trains with its own first k until the loss over all training samples
has fallen to --switch_loss. Then all runs train with --then_k. By Assumption 1
of the paper the loss after this switch depends on --then_k alone. So lines of
different first k should differ no more than seeds of one line do.

At the switch a run keeps all of its state. Its residuals do depend on the first
k: a small k leaves more gradient in them, and a larger k then sends it.
--nokeep_residuals empties them at the switch, to show how much this matters.
The switch comes at the first evaluation where the loss is low enough. So a
small --eval_every lets the lines begin closer together.

Source: Han, Wang, Leung, ICDCS 2020, the experiment on Assumption 1.
"""

import dataclasses

import numpy as np
from absl import flags

from agsfl import programs, recorder
from agsfl.config import Config
from agsfl.data import federated
from agsfl.errors import DivergedError, refuse, require
from agsfl.records.read import Run
from experiments.lib import curves, groups
from experiments.lib.drawing import plt
from experiments.paper import study

flags.adopt_module_key_flags(study)
FIRST_KS = flags.DEFINE_list(
    "first_ks",
    ["100", "1000", "10000", "100000"],
    "Values of k before the switch; each has its own run.",
)
THEN_K = flags.DEFINE_float("then_k", 1000.0, "k after the switch.")
SWITCH_LOSS = flags.DEFINE_float(
    "switch_loss", 1.5, "Training loss at which k is switched."
)
MAX_ROUNDS = flags.DEFINE_integer(
    "max_rounds", 2000, "Most rounds before the switch."
)
KEEP_RESIDUALS = flags.DEFINE_boolean(
    "keep_residuals", True, "Keep the residuals at the switch."
)


def _evaluations(config, simulation, state):
  """Trains; yields the state and the row of each evaluation."""
  done = 0
  while done < config.num_rounds:
    until = min(done + config.eval_every, config.num_rounds)
    while done < until:
      length = min(simulation.rounds_per_call, until - done)
      state, [infos] = simulation.advance(state, length)
      done += len(infos)
      if not infos[-1].finite:
        raise DivergedError(recorder.diverged(done, "a gradient", config))
    [evaluate] = simulation.evaluate
    yield state, recorder.as_row(infos[-1], evaluate(state.params))


def switched_run(
    before: Config,
    after: Config,
    loss: float,
    keep_residuals: bool = True,
) -> list[dict]:
  """Trains by `before` down to a loss, then by `after`.

  Args:
    before, after: settings that differ only in k, which is fixed, and in
      num_rounds.
    loss: over all training samples, at which `after` takes over.
    keep_residuals: if False, `after` begins with empty residuals.

  Returns:
    A row for the switch and one for each later evaluation; `since` counts
    rounds from the switch.

  Raises:
    ConfigError: the loss is not reached in the rounds of `before`.
    DivergedError: a gradient was not finite.
  """
  data = federated.load(before.dataset, before, before)
  first, then = (programs.build(config, data) for config in (before, after))
  steps = study.progress(_evaluations(before, first, first.state))
  found = next((step for step in steps if step[1]["train_loss"] <= loss), None)
  if found is None:
    refuse(
        f"--switch_loss={loss:g}",
        f"must be reached within --max_rounds={before.num_rounds} with "
        f"k = {before.k:g}",
    )
  state, row = found
  state = state.replace(
      controller=then.state.controller, proposal=then.state.proposal
  )
  if not keep_residuals:
    state = state.replace(residual=then.state.residual)  # zeros
  rows, start = [row], row["round"]
  steps = _evaluations(after, then, state)
  total = -(-after.num_rounds // after.eval_every)
  rows += [row for _, row in study.progress(steps, total)]
  return [{"since": row["round"] - start, **row} for row in rows]


def _recorded(base, first_k, path):
  """The rows of one run, from its file if there is one."""
  before, after = (
      dataclasses.replace(base, controller="fixed", k=k, num_rounds=rounds)
      for k, rounds in (
          (first_k, MAX_ROUNDS.value),
          (THEN_K.value, base.num_rounds),
      )
  )
  asked = {
      **dataclasses.asdict(base),
      "first_k": first_k,
      "then_k": THEN_K.value,
      "switch_loss": SWITCH_LOSS.value,
      "max_rounds": MAX_ROUNDS.value,
      "keep_residuals": KEEP_RESIDUALS.value,
  }
  for name in ("controller", "k"):  # They have no effect here.
    del asked[name]

  def make():
    study.say(f"first k {first_k:g}, seed {base.seed}")
    return switched_run(
        before, after, SWITCH_LOSS.value, KEEP_RESIDUALS.value
    )

  return study.cached(path, asked, make)


def _as_run(rows, path):
  """Rows as a run whose time is the number of rounds since the switch."""
  rows = [{**row, "time": row["since"]} for row in rows]
  return Run(rows, {}, rows[-1], {}, path.parent)


def greatest_gaps(lines: np.ndarray) -> np.ndarray:
  """The greatest distance of each line from any other one.

  Args:
    lines: [F, P] losses, the first of each at the switch.

  Returns:
    [F] as a share of the mean fall of all lines from the switch to the end; NaN
    if they did not fall.
  """
  distances = np.abs(lines[:, None] - lines[None]).max(axis=(1, 2))
  fall = np.mean(lines[:, 0] - lines[:, -1])
  return distances / (fall if fall > 0 else np.nan)


def compare(base: Config):
  """Runs, draws and tabulates."""
  require(
      base.time_budget is None,
      "time_budget",
      base.time_budget,
      "unset, because lines are compared over the same rounds",
  )
  folder = study.folder()
  done = {}
  first_ks = study.numbers("first_ks")
  for text, first_k in zip(FIRST_KS.value, first_ks, strict=True):
    done[text] = []
    for seed in study.seeds():
      path = folder / f"k{text}" / f"seed{seed}.json"
      rows = _recorded(study.seeded(base)(seed), first_k, path)
      done[text].append(_as_run(rows, path))
  # [F, S, P]; all have evaluations in the same rounds.
  losses = np.array([
      [run.series("train_loss")[1] for run in runs] for runs in done.values()
  ])
  since = next(iter(done.values()))[0].series("train_loss")[0]
  gaps = greatest_gaps(losses.mean(axis=1))
  figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
  lines = []
  for (text, runs), loss, gap in zip(done.items(), losses, gaps, strict=True):
    curves.draw_spread(axes, runs, "train_loss", f"k = {text} before")
    half = [np.interp(since[-1] / 2, since, one) for one in loss]
    lines.append([
        text,
        groups.over_seeds([run.rows[0]["round"] for run in runs]),
        groups.over_seeds(loss[:, 0]),
        groups.over_seeds(half),
        groups.over_seeds(loss[:, -1]),
        f"{gap:.1%}",
        f"{greatest_gaps(loss).max():.1%}" if len(runs) > 1 else "",
    ])
  study.lay_out(
      axes,
      "train_loss",
      "training loss after the same loss at the switch",
      f"rounds since the switch to k = {THEN_K.value:g}",
  )
  axes.legend(fontsize=8)
  header = [
      "k before", "rounds to the switch", "loss at the switch",
      "loss half-way", "loss at the end",
      "largest gap to another k, share of the fall",
      "largest gap between seeds, share of the fall",
  ]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
