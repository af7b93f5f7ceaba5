"""Prints which samples go to which client, and draws labels by client.

Takes the flags of a run; those of data and partition are read.
"""

import datetime
from pathlib import Path

import numpy as np
from absl import app, flags

from agsfl import errors, files
from agsfl.data import federated as data
from experiments.lib import drawing, plugins, runner, scripts
from experiments.lib import flags as run_flags
from experiments.lib.drawing import plt

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(plugins)
flags.declare_key_flag("workdir")


def histograms(
    federated: data.FederatedData,
) -> tuple[np.ndarray, np.ndarray]:
  """Which labels there are, [L], and how many of each client, [2, N, L].

  Training samples are first, test samples second.
  """
  clients = federated.clients
  num_clients = len(clients.counts)
  present, labels = np.unique(clients.labels, return_inverse=True)
  held = np.zeros((2, num_clients, len(present)), np.int64)
  owners = np.repeat(np.arange(num_clients), clients.counts)
  np.add.at(held[0], (owners, labels[clients.order]), 1)
  known = federated.test_clients >= 0
  tested = labels[federated.test_rows[known]]
  np.add.at(held[1], (federated.test_clients[known], tested), 1)
  return present, held


def table(names: np.ndarray, present: np.ndarray, held: np.ndarray) -> str:
  """A line per client: sizes, and how many training samples of each label."""
  rows = [("client", "train", "test", "training samples of each label")]
  for name, train, test in zip(names, *held, strict=True):
    labels = [f"{present[i]}:{train[i]}" for i in np.flatnonzero(train)]
    sizes = str(train.sum()), str(test.sum())
    rows.append((errors.printable(name), *sizes, " ".join(labels)))
  widths = [max(len(row[column]) for row in rows) for column in range(3)]
  return "\n".join(
      "  ".join(
          [row[column].rjust(widths[column]) for column in range(3)] + [row[3]]
      )
      for row in rows
  )


def draw(
    names: np.ndarray,
    present: np.ndarray,
    held: np.ndarray,
    title: str,
    path: Path,
):
  """Draws sizes above and labels by client below, as a PNG.

  Raises:
    ConfigError: the folder of `path` cannot be written.
  """
  train = held[0]
  figure, (sizes, labels) = plt.subplots(
      2,
      1,
      figsize=(9, 5.5),
      height_ratios=(1, 3),
      sharex=True,
      layout="constrained",
  )
  places = np.arange(len(train))
  sizes.bar(places, train.sum(axis=1), width=0.9, label="training")
  sizes.bar(
      places,
      held[1].sum(axis=1),
      width=0.9,
      bottom=train.sum(axis=1),
      label="test",
  )
  sizes.set(ylabel="samples")
  sizes.set_title(title, parse_math=False)
  sizes.set_ylim(0, 1.35 * held.sum(axis=(0, 2)).max())
  sizes.legend(loc="upper right", ncols=2, frameon=False)
  shown = labels.imshow(
      np.ma.masked_equal(train.T, 0),
      aspect="auto",
      origin="lower",
      cmap="Blues",
      vmin=0,
      interpolation="nearest",
  )
  labels.set(xlabel="client", ylabel="label", facecolor="white")
  if len(places) <= 20:
    rotation = 45 if max(map(len, names)) > 4 else 0
    labels.set_xticks(places, names, rotation=rotation, parse_math=False)
  if len(present) <= 20:
    labels.set_yticks(range(len(present)), present)
  else:
    few = np.linspace(0, len(present) - 1, 10).round().astype(int)
    labels.set_yticks(few, present[few])
  figure.colorbar(shown, ax=labels, label="training samples", pad=0.01)
  with files.usable(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(path) as temporary:
      drawing.save(figure, temporary)


def main(argv):
  scripts.start(argv)
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  workdir = runner.workdir(f"runs/data-{stamp}")
  with scripts.one_line_errors():
    plugins.load()
    config = run_flags.config_from_flags()
    federated = data.load(config.dataset, config, config)
    names = federated.client_names
    present, held = histograms(federated)
    print(table(names, present, held))
    of_all, features = held[0].sum(axis=0), federated.clients.features
    print(
        f"{len(held[0])} clients, {held[0].sum()} training and "
        f"{len(federated.test_rows)} test samples, of these {held[1].sum()} of "
        f"a client; {np.count_nonzero(of_all)} labels; samples of shape "
        f"{'x'.join(map(str, features.shape[1:]))} {features.dtype}"
    )
    path = workdir / "labels.png"
    title = f"{config.dataset}, {config.partition}"
    draw(names, present, held, title, path)
    print(f"figure: {path}")


if __name__ == "__main__":
  app.run(main)
