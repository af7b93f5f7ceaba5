"""All methods at one k: loss, accuracy and fairness against normalised time.

Source: Han, Wang, Leung, ICDCS 2020, the comparison of sparsifiers.
"""

import dataclasses

import numpy as np
from absl import flags

from agsfl.config import Config
from agsfl.errors import require
from agsfl.records.fairness import jain_index
from agsfl.sparsifiers import METHODS
from experiments.lib import curves, groups
from experiments.lib.drawing import plt
from experiments.paper import study

flags.adopt_module_key_flags(study)
flags.DEFINE_list("methods", list(METHODS), "Methods to compare.")


def _draw_cdf(axes, runs, label):
  """Elements per client of all seeds, as a share of the mean."""
  counts = np.sort(np.concatenate([run.contributed for run in runs]))
  share = np.arange(1, len(counts) + 1) / len(counts)
  axes.step(counts / max(counts.mean(), 1), share, where="post", label=label)


def _with_method(base, name):
  """The settings of a method. A dense one has few rounds; all are evaluated."""
  dense = not METHODS[name].takes_k
  return dataclasses.replace(
      base,
      method=name,
      controller="fixed",
      per_layer=base.per_layer and not dense,
      eval_every=1 if dense else base.eval_every,
  )


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  names = study.items("methods")
  for name in names:
    require(name in METHODS, "methods", name, f"of {', '.join(METHODS)}")
  done = study.run_all(
      {name: study.seeded(_with_method(base, name)) for name in names}
  )
  figure, (loss, accuracy, fairness) = plt.subplots(
      1, 3, figsize=(17, 4.2), layout="constrained"
  )
  lines = []
  for name, runs in done.items():
    curves.draw_spread(loss, runs, "train_loss", name)
    curves.draw_spread(accuracy, runs, "test_accuracy", name)
    _draw_cdf(fairness, runs, name)
    jain = np.mean([jain_index(run.contributed) for run in runs])
    silent = np.mean([np.mean(run.contributed == 0) for run in runs])
    lines.append([
        name,
        groups.final(runs, "train_loss"),
        groups.final(runs, "test_accuracy"),
        f"{jain:.3f}",
        f"{silent:.0%}",
        groups.final(runs, "round"),
        groups.final(runs, "time"),
    ])
  study.lay_out(loss, "train_loss", "training loss")
  study.lay_out(accuracy, "test_accuracy", "test accuracy")
  fairness.set(
      title="elements of each client that the server used",
      xlabel="elements of a client / mean over clients",
      ylabel="share of clients (CDF)",
      ylim=(0, 1.02),
  )
  fairness.set_xlim(left=0)
  fairness.grid(alpha=0.3)
  figure.legend(
      *loss.get_legend_handles_labels(), loc="outside right center"
  )
  header = [
      "method", "training loss", "test accuracy", "Jain's index",
      "clients unheard", "rounds", "time",
  ]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
