"""Accuracy against simulated seconds: learned k, constant k, and dense FedAvg.

Few of many clients take part in a round, on devices and links of their own. A
round lasts as long as its slowest client.
"""

import dataclasses

from absl import flags

from agsfl.config import Config
from agsfl.errors import require
from experiments.lib import curves, groups
from experiments.lib.drawing import plt
from experiments.paper import study

flags.adopt_module_key_flags(study)
KS = flags.DEFINE_list(
    "ks", ["1000", "10000"], "Constant k to compare with the learned one."
)
flags.DEFINE_list(
    "learned",
    ["balance", "sign_interval"],
    "Controllers that learn k; --controller is not used.",
)
flags.DEFINE_integer(
    "fedavg_steps", 10, "Local steps of FedAvg.", lower_bound=1
)


def settings_of(base: Config) -> dict[str, Config]:
  """The settings to compare, by label.

  Raises:
    ConfigError: there is no clock, a k is no number, or a controller does not
      learn.
  """
  require(
      base.clock is not None, "clock", base.clock, "set, such as phones"
  )
  require(
      base.clients_per_round is not None,
      "clients_per_round",
      base.clients_per_round,
      "set, such as 10%",
  )
  found = {
      f"learned_k_{name}": dataclasses.replace(base, controller=name)
      for name in study.rules("learned")
  }
  for text, k in zip(KS.value, study.numbers("ks"), strict=True):
    found[f"k{text}"] = dataclasses.replace(base, controller="fixed", k=k)
  found["fedavg"] = dataclasses.replace(
      base,
      method="fedavg",
      controller=None,
      k=None,
      per_layer=False,
      local_steps=flags.FLAGS.fedavg_steps,
  )
  return found


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  done = study.run_all({
      label: study.seeded(config)
      for label, config in settings_of(base).items()
  })
  figure, (accuracy, loss, spread) = plt.subplots(
      1, 3, figsize=(15, 4.2), layout="constrained"
  )
  lines, worst = [], "client_test_accuracy_worst10"
  for label, runs in done.items():
    for axes, key in (
        (accuracy, "test_accuracy"), (loss, "train_loss"), (spread, worst)
    ):
      curves.draw_spread(axes, runs, key, label, against="seconds")
    lines.append([
        label,
        *(
            groups.final(runs, key)
            for key in (
                "test_accuracy", worst, "train_loss", "round", "seconds",
            )
        ),
        _megabytes(runs, "all_bytes_up"),
        _megabytes(runs, "all_bytes_down"),
    ])
  for axes, key, title in (
      (accuracy, "test_accuracy", "test accuracy"),
      (loss, "train_loss", "training loss"),
      (spread, worst, "mean test accuracy of the worst 10% of clients"),
  ):
    study.lay_out(axes, key, title, "simulated seconds")
  accuracy.legend(fontsize=8)
  header = [
      "setting", "test accuracy", "worst 10%", "training loss", "rounds",
      "seconds", "MB up", "MB down",
  ]
  study.finish(figure, groups.table(header, lines))


def _megabytes(runs, column):
  """Of all clients in all rounds."""
  return groups.over_seeds(
      [sum(run.series(column)[1]) / 1e6 for run in runs], ".1f", ".1f"
  )


if __name__ == "__main__":
  study.run(compare)
