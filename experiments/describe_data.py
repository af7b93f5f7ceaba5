"""Prints which samples go to which client, and draws labels by client.

It takes all flags of a run, and reads those of data and partition.
"""

from pathlib import Path

import numpy as np
from absl import flags

from agsfl import errors, files
from agsfl.data import federated as data
from agsfl.data.samples import warn_of_range
from experiments.lib import columns, drawing, out, plugins, runner, scripts
from experiments.lib import flags as run_flags
from experiments.lib.drawing import plt

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(plugins)
flags.declare_key_flag("workdir")


def histograms(
    federated: data.FederatedData,
) -> tuple[np.ndarray, np.ndarray]:
  """The labels, [L], and the samples of each client and label, [2, N, L].

  Training samples come first, test samples second.
  """
  clients = federated.clients
  num_clients = len(clients.counts)
  present, labels = np.unique(clients.labels, return_inverse=True)
  counts = np.zeros((2, num_clients, len(present)), np.int64)
  owners = np.repeat(np.arange(num_clients), clients.counts)
  np.add.at(counts[0], (owners, labels[clients.order]), 1)
  known = federated.test_clients >= 0
  tested = labels[federated.test_rows[known]]
  np.add.at(counts[1], (federated.test_clients[known], tested), 1)
  return present, counts


def table(names: np.ndarray, present: np.ndarray, counts: np.ndarray) -> str:
  """A line per client: sizes, and how many training samples of each label."""
  lines = [["client", "train", "test", "training samples of each label"]]
  for name, train, test in zip(names, *counts, strict=True):
    labels = [f"{present[i]}:{train[i]}" for i in np.flatnonzero(train)]
    sizes = str(train.sum()), str(test.sum())
    lines.append([errors.printable(name), *sizes, " ".join(labels)])
  return columns.aligned(lines, ">>><")


def draw(
    names: np.ndarray,
    present: np.ndarray,
    counts: np.ndarray,
    title: str,
    path: Path,
):
  """Draws sizes above and labels by client below, as a PNG.

  Raises:
    ConfigError: the folder of `path` cannot be written.
  """
  train = counts[0]
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
      counts[1].sum(axis=1),
      width=0.9,
      bottom=train.sum(axis=1),
      label="test",
  )
  sizes.set(ylabel="samples")
  sizes.set_title(title, parse_math=False)
  sizes.set_ylim(0, 1.35 * counts.sum(axis=(0, 2)).max())
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
  workdir = runner.workdir(f"runs/data-{out.new_name()}")
  with scripts.one_line_errors():
    plugins.load()
    config = run_flags.config_from_flags()
    federated = data.load(*config.data_settings())
    names = federated.client_names
    present, counts = histograms(federated)
    train, test = counts
    features = federated.clients.features
    if not config.standardize:
      warn_of_range(features)
    print(table(names, present, counts))
    print(
        f"{len(train)} clients, {train.sum()} training samples, "
        f"{len(federated.test_rows)} test samples ({test.sum()} of them belong "
        f"to a client), {np.count_nonzero(train.sum(axis=0))} labels, samples "
        f"of shape {'x'.join(map(str, features.shape[1:]))} {features.dtype}"
    )
    path = workdir / "labels.png"
    title = f"{config.dataset}, {config.partition}"
    draw(names, present, counts, title, path)
    print(f"figure: {path}")


if __name__ == "__main__":
  scripts.run(main)
