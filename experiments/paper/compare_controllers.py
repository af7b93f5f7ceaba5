"""All controllers of k: loss, accuracy and k against normalised time.

Constant values of k are drawn too, to show what learning k is worth. A constant
k is given as a controller `fixed=K`.

Source: Han, Wang, Leung, ICDCS 2020, the comparison of online learning methods.
"""

import dataclasses

import numpy as np
from absl import flags

from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.errors import require
from experiments.lib import curves, drawing, groups
from experiments.lib.drawing import plt
from experiments.paper import study

flags.adopt_module_key_flags(study)
flags.DEFINE_list(
    "controllers",
    [
        "sign", "sign_interval", "value", "exp3", "bandit", "fixed=1000",
        "fixed=10000",
    ],
    "Controllers to compare, and any number of fixed=K.",
)


def _config_of(base, label):
  """The settings that a label stands for.

  Raises:
    ConfigError: it is neither a controller that learns nor fixed=K.
  """
  name, _, k = label.partition("=")
  if name == "fixed" and k:
    return dataclasses.replace(base, controller=name, k=k)
  learned = [name for name, rule in CONTROLLERS.items() if rule.learns]
  allowed = f"of {', '.join(learned)}, or fixed=K"
  require(label in learned, "controllers", label, allowed)
  return dataclasses.replace(base, controller=label)


def _settled(runs):
  """k in the last tenth of the rounds: mean ± deviation within a run."""
  tails = [run.series("k")[1][-max(1, len(run.rows) // 10) :] for run in runs]
  mean = np.mean([tail.mean() for tail in tails])
  spread = np.mean([tail.std() for tail in tails])
  return f"{mean:.0f} ± {spread:.0f}"


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  configs = {
      label: _config_of(base, label) for label in study.items("controllers")
  }
  done = study.run_all({
      label: study.seeded(config) for label, config in configs.items()
  })
  figure, (loss, accuracy, ks) = plt.subplots(
      1, 3, figsize=(17, 4.2), layout="constrained"
  )
  lines = []
  for name, runs in done.items():
    curves.draw_spread(loss, runs, "train_loss", name)
    curves.draw_spread(accuracy, runs, "test_accuracy", name)
    curves.draw_smooth(ks, runs, "k", name)
    lines.append([
        name,
        groups.final(runs, "train_loss"),
        groups.final(runs, "test_accuracy"),
        _settled(runs),
        groups.final(runs, "round"),
        groups.final(runs, "time"),
    ])
  study.lay_out(loss, "train_loss", "training loss")
  study.lay_out(accuracy, "test_accuracy", "test accuracy")
  study.lay_out(ks, "k", "elements per message, $k_m$")
  drawing.log_axis(ks)
  figure.legend(
      *loss.get_legend_handles_labels(), loc="outside right center"
  )
  header = [
      "controller", "training loss", "test accuracy",
      "k at the end ± its spread within a run", "rounds", "time",
  ]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
