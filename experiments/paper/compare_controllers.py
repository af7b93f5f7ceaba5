"""All ways to move k: loss, accuracy and k against normalised time.

Beside them a k that stays, for what learning it is worth; `fixed=1000` is one.

Source: Han, Wang, Leung, ICDCS 2020, the comparison of online learning methods.
"""

import dataclasses

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from agsfl import config as settings
from experiments.lib import groups as results
from experiments.paper import study

flags.adopt_module_key_flags(study)
_LEARNED = ("sign", "sign_interval", "value", "exp3", "bandit")
flags.DEFINE_list(
    "controllers",
    [*_LEARNED, "fixed=1000", "fixed=10000"],
    "Controllers to compare, and any number of fixed=K.",
)


def _config_of(base, label):
  """The settings of one line.

  Raises:
    ConfigError: it is none.
  """
  name, _, k = label.partition("=")
  if name == "fixed" and k.isdecimal():
    return dataclasses.replace(base, controller=name, k=float(k))
  if label in _LEARNED:
    return dataclasses.replace(base, controller=name)
  raise settings.ConfigError(
      f"--controllers={label}: must be of {', '.join(_LEARNED)}, or fixed=K"
  )


def _settled(runs):
  """k over the last tenth of the rounds, mean and spread within a run."""
  tails = [run.series("k")[1][-max(1, len(run.rows) // 10) :] for run in runs]
  mean = np.mean([tail.mean() for tail in tails])
  spread = np.mean([tail.std() for tail in tails])
  return f"{mean:.0f} ± {spread:.0f}"


def compare(base: settings.Config):
  """Runs, draws and tabulates."""
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
    results.draw_spread(loss, runs, "train_loss", name)
    results.draw_spread(accuracy, runs, "test_accuracy", name)
    ks.plot(*runs[0].series("k"), label=name, lw=0.8)
    lines.append([
        name,
        results.final(runs, "train_loss"),
        results.final(runs, "test_accuracy"),
        _settled(runs),
        results.final(runs, "round"),
        results.final(runs, "time"),
    ])
  time = "normalised time (rounds of computation)"
  loss.set(xlabel=time, ylabel="training loss")
  accuracy.set(xlabel=time, ylabel="test accuracy")
  ks.set(xlabel=time, ylabel="$k_m$, first seed", yscale="log")
  for axes in (loss, accuracy, ks):
    axes.grid(alpha=0.3)
  figure.legend(
      *loss.get_legend_handles_labels(), loc="outside right center"
  )
  header = [
      "controller", "training loss", "test accuracy",
      "k at the end ± its spread within a run", "rounds", "time",
  ]
  study.finish(figure, results.table(header, lines))


if __name__ == "__main__":
  app.run(study.main(compare))
