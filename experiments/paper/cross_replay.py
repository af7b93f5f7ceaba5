"""The k that was learned with one beta, used with the others: losses.

All runs with one beta have the time budget that learning with this beta took.
If a sequence of k ends earlier, its last k is used from then on. A replay
measures no losses, so its rounds are shorter by 1 / batch_size.

Source: Han, Wang, Leung, ICDCS 2020, the exchange of k sequences.
"""

import dataclasses
import math

import numpy as np
from absl import flags

from agsfl.config import Config
from experiments.lib import groups
from experiments.lib.drawing import plt
from experiments.paper import communication_times, study

flags.adopt_module_key_flags(study)
flags.adopt_module_key_flags(communication_times)


def _replayed(config, source, own):
  """For each seed, `config` with the k of a run in the folder `source`.

  Args:
    config: of the beta to play under.
    source: folder of the seeds whose k are played.
    own: seed -> the run that learned under this beta.
  """

  def config_of(seed):
    time = own[seed].summary["time"]
    return dataclasses.replace(
        config,
        seed=seed,
        controller="replay",
        replay=str(source / f"seed{seed}"),
        time_budget=time,
        num_rounds=math.ceil(time),  # a round takes at least 1
    )

  return config_of


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  configs = communication_times.by_comm_time(base)
  label = communication_times.label_of
  learned = study.run_all(
      {label(text): study.seeded(one) for text, one in configs.items()}
  )
  played = study.run_all({
      f"{label(source)}_under_{label(target)}": _replayed(
          configs[target],
          study.folder() / label(source),
          dict(zip(study.seeds(), learned[label(target)], strict=True)),
      )
      for source in configs
      for target in configs
  })
  cells = np.array(list(played)).reshape(len(configs), len(configs))
  loss = lambda name: np.mean(
      [run.summary["train_loss"] for run in played[name]]
  )
  losses = np.vectorize(loss)(cells)
  figure, axes = plt.subplots(figsize=(5.5, 4.5), layout="constrained")
  # Relative to the column: losses under different beta cannot be compared.
  ratios = losses / losses.min(axis=0)
  picture = axes.imshow(ratios, cmap="viridis_r")
  figure.colorbar(picture, label="training loss / least of its column")
  for (i, j), value in np.ndenumerate(losses):
    color = "w" if picture.norm(ratios[i, j]) > 0.5 else "k"
    axes.text(j, i, f"{value:.3f}", ha="center", va="center", color=color)
  axes.set(
      xticks=range(len(configs)),
      yticks=range(len(configs)),
      xticklabels=list(configs),
      yticklabels=list(configs),
      title="training loss at the end",
      xlabel="beta of the run",
      ylabel="beta at which k was learned",
  )
  lines = [
      [source, *[groups.final(played[name], "train_loss") for name in row]]
      for source, row in zip(configs, cells, strict=True)
  ]
  header = ["k learned at", *[f"beta = {text}" for text in configs]]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
