"""Prints which samples go to which client, and draws labels by client.

Takes the flags of a run; those of data and partition are read.
"""

import datetime
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import app, flags

from agsfl import config as settings
from agsfl import data
from experiments import flags as run_flags
from experiments import run

flags.adopt_module_key_flags(run_flags)
flags.declare_key_flag("workdir")


def histograms(federated: data.FederatedData) -> np.ndarray:
  """[2, N, L] training and test samples of each label at each client."""
  clients = federated.clients
  num_clients = len(clients.counts)
  held = np.zeros((2, num_clients, federated.num_classes), np.int64)
  owners = np.repeat(np.arange(num_clients), clients.counts)
  np.add.at(held[0], (owners, clients.labels[clients.order]), 1)
  known = federated.test_clients >= 0
  labels = clients.labels[federated.test_rows[known]]
  np.add.at(held[1], (federated.test_clients[known], labels), 1)
  return held


def table(federated: data.FederatedData, held: np.ndarray) -> str:
  """A line per client: sizes, and how many training samples of each label."""
  rows = [("client", "train", "test", "training samples of each label")]
  for name, train, test in zip(federated.client_names, *held, strict=True):
    labels = [f"{label}:{train[label]}" for label in np.flatnonzero(train)]
    rows.append((name, str(train.sum()), str(test.sum()), " ".join(labels)))
  widths = [max(len(row[column]) for row in rows) for column in range(3)]
  return "\n".join(
      "  ".join(
          [row[column].rjust(widths[column]) for column in range(3)] + [row[3]]
      )
      for row in rows
  )


def draw(held: np.ndarray, names: np.ndarray, title: str, path: Path):
  """Sizes above, labels by client below, as a PNG."""
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
  sizes.set(ylabel="samples", title=title)
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
    labels.set_xticks(places, names, rotation=rotation)
  figure.colorbar(shown, ax=labels, label="training samples", pad=0.01)
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=120)
  plt.close(figure)


def main(argv):
  run.start(argv)
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  workdir = Path(run.WORKDIR.value or f"runs/data-{stamp}")
  with run.one_line_errors():
    config: settings.Config = run_flags.config_from_flags()
    federated = data.load(config.dataset, config.as_partition())
    held = histograms(federated)
    print(table(federated, held))
    of_all = held[0].sum(axis=0)
    print(
        f"{len(held[0])} clients, {held[0].sum()} training and "
        f"{len(federated.test_rows)} test samples, of these {held[1].sum()} of "
        f"a client; {np.count_nonzero(of_all)} labels; images "
        f"{'x'.join(map(str, federated.clients.images.shape[1:]))} "
        f"{federated.clients.images.dtype}"
    )
    path = workdir / "labels.png"
    title = f"{config.dataset}, {config.partition}"
    try:
      draw(held, federated.client_names, title, path)
    except OSError as error:
      raise settings.ConfigError(
          f"--workdir={workdir}: must be a folder that can be written "
          f"({error.strerror})"
      ) from error
  print(f"figure: {path}")


if __name__ == "__main__":
  app.run(main)
