"""k and loss for several beta: k settles lower if sending takes longer.

Source: Han, Wang, Leung, ICDCS 2020, the comparison of communication times.
"""

import dataclasses

from absl import flags

from agsfl.config import Config
from experiments.lib import curves, drawing, groups
from experiments.lib.drawing import plt
from experiments.paper import study

flags.adopt_module_key_flags(study)
COMM_TIMES = flags.DEFINE_list(
    "comm_times", ["0.1", "1", "10", "100"], "Values of beta."
)


def by_comm_time(base: Config) -> dict[str, Config]:
  """A Config for each beta, by its text in the flag.

  Raises:
    ConfigError: one is no number, or out of range.
  """
  comm_times = study.numbers("comm_times")
  return {
      text: dataclasses.replace(base, comm_time=comm_time)
      for text, comm_time in zip(COMM_TIMES.value, comm_times, strict=True)
  }


def label_of(comm_time: str) -> str:
  """The folder of one beta."""
  return f"beta{comm_time}"


def compare(base: Config):
  """Runs what is missing, draws the figure and writes the table."""
  configs = by_comm_time(base)
  done = study.run_all(
      {label_of(text): study.seeded(one) for text, one in configs.items()}
  )
  figure, (ks, loss) = plt.subplots(
      1, 2, figsize=(11, 4.2), layout="constrained"
  )
  lines = []
  for text in configs:
    runs = done[label_of(text)]
    rounds = [row["round"] for row in runs[0].rows]
    ks.plot(rounds, runs[0].series("k")[1], label=f"beta = {text}", lw=0.8)
    curves.draw_spread(loss, runs, "train_loss", f"beta = {text}")
    halves = [run.series("k")[1][len(run.rows) // 2 :] for run in runs]
    lines.append([
        text,
        groups.over_seeds([half.mean() for half in halves], ".0f", ".0f"),
        groups.final(runs, "train_loss"),
        groups.final(runs, "test_accuracy"),
        groups.final(runs, "time"),
    ])
  title = "elements per message, $k_m$, of the first seed"
  study.lay_out(ks, "k", title, "round m")
  drawing.log_axis(ks)
  study.lay_out(loss, "train_loss", "training loss")
  # The times differ by the factors of beta; time 0 stays on the axis.
  loss.set_xscale("symlog", linthresh=10)
  ks.legend(fontsize=8)
  header = [
      "beta", "mean k, second half", "training loss", "test accuracy", "time",
  ]
  study.finish(figure, groups.table(header, lines))


if __name__ == "__main__":
  study.run(compare)
