"""Prints which samples go to which client, and draws labels by client.

It takes all flags of a run, and reads those of data and partition.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import flags

from agsfl import errors, files
from agsfl.data import federated as data
from agsfl.data.samples import warn_of_range
from agsfl.tasks import NEXT_TOKEN, REGRESSION
from experiments.lib import columns, drawing, out, plugins, runner, scripts
from experiments.lib import flags as run_flags
from experiments.lib.drawing import plt

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(plugins)
flags.declare_key_flag("workdir")


class Seen(NamedTuple):
  """What clients have; training comes first, testing second.

  Attributes:
    sizes: [2, N], samples of each client.
    labels: [L], the different labels; none if labels are real numbers.
    counts: [2, N, L], how often each client has each label. A sample has one,
      or, where its labels are a sequence of tokens, many.
  """

  sizes: np.ndarray
  labels: np.ndarray
  counts: np.ndarray


def seen(federated: data.FederatedData) -> Seen:
  """Counts samples and labels of each client."""
  clients = federated.clients
  num_clients = len(clients.counts)
  known = federated.test_clients >= 0
  # Of each part: rows, and the client of each row.
  parts = (
      (clients.order, np.repeat(np.arange(num_clients), clients.counts)),
      (federated.test_rows[known], federated.test_clients[known]),
  )
  sizes = [np.bincount(owners, minlength=num_clients) for _, owners in parts]

  labels, codes = np.zeros(0, np.int32), np.zeros((len(clients.labels), 0), int)
  if federated.task != REGRESSION:
    labels, codes = np.unique(
        clients.labels.reshape(len(clients.labels), -1), return_inverse=True
    )
  counts = np.zeros((2, num_clients, len(labels)), np.int64)
  for of_part, (rows, owners) in zip(counts, parts, strict=True):
    np.add.at(of_part, (owners[:, None], codes[rows]), 1)
  real = labels >= 0  # -1 is no label
  return Seen(np.array(sizes), labels[real], counts[..., real])


def table(names: np.ndarray, found: Seen) -> str:
  """A line per client: sizes, and its training labels.

  Each label stands with its number of samples. If samples have many labels,
  there is the number of all labels and that of different ones.
  """
  train = found.counts[0]
  one_each = np.array_equal(train.sum(axis=1), found.sizes[0])
  heads = ["training samples of each label"]
  if not one_each:
    heads = ["training labels", "different ones"] if train.size else []
  lines = [["client", "train", "test", *heads]]
  for name, sizes, own in zip(names, found.sizes.T, train, strict=True):
    different = np.flatnonzero(own)
    cells = [str(own.sum()), str(len(different))][: len(heads)]
    if one_each:
      cells = [" ".join(f"{found.labels[i]}:{own[i]}" for i in different)]
    lines.append([errors.printable(name), *map(str, sizes), *cells])
  return columns.aligned(lines, ">>><" if one_each else ">" * len(lines[0]))


def draw(names: np.ndarray, found: Seen, title: str, path: Path):
  """Draws sizes above and labels by client below, as a PNG.

  Raises:
    ConfigError: the folder of `path` cannot be written.
  """
  with_labels = bool(found.labels.size)
  figure, panels = plt.subplots(
      1 + with_labels,
      1,
      figsize=(9, 5.5),
      height_ratios=(1, 3)[: 1 + with_labels],
      sharex=True,
      squeeze=False,
      layout="constrained",
  )
  sizes, last = panels[0, 0], panels[-1, 0]
  train, test = found.sizes
  places = np.arange(len(train))
  sizes.bar(places, train, width=0.9, label="training")
  sizes.bar(places, test, width=0.9, bottom=train, label="test")
  sizes.set(ylabel="samples")
  sizes.set_title(title, parse_math=False)
  sizes.set_ylim(0, 1.35 * (train + test).max())
  sizes.legend(loc="upper right", ncols=2, frameon=False)
  if with_labels:
    _draw_labels(figure, last, found)
  last.set(xlabel="client")
  if len(places) <= 20:
    rotation = 45 if max(map(len, names)) > 4 else 0
    last.set_xticks(places, names, rotation=rotation, parse_math=False)
  with files.usable(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.written_whole(path) as temporary:
      drawing.save(figure, temporary)


def _draw_labels(figure, axes, found):
  """How often each client has each label."""
  shown = axes.imshow(
      np.ma.masked_equal(found.counts[0].T, 0),
      aspect="auto",
      origin="lower",
      cmap="Blues",
      vmin=0,
      interpolation="nearest",
  )
  axes.set(ylabel="label", facecolor="white")
  present = found.labels
  if len(present) <= 20:
    axes.set_yticks(range(len(present)), present)
  else:
    few = np.linspace(0, len(present) - 1, 10).round().astype(int)
    axes.set_yticks(few, present[few])
  figure.colorbar(shown, ax=axes, label="training labels", pad=0.01)


def summary(federated: data.FederatedData, found: Seen) -> str:
  """The numbers of all clients together, and the form of a sample."""
  train, test = found.sizes.sum(axis=1)
  features, labels = federated.clients.features, federated.clients.labels
  form = federated.form
  parts = [
      f"{len(found.sizes[0])} clients",
      f"{train} training samples",
      f"{len(federated.test_rows)} test samples ({test} of them belong to a "
      "client)",
      f"{np.count_nonzero(found.counts[0].sum(axis=0))} different labels"
      if found.labels.size
      else f"labels of shape {_shape(labels) or 1}",
      f"samples of shape {_shape(features)} {features.dtype}",
  ]
  if federated.task == NEXT_TOKEN:
    parts.append(f"{form.vocabulary} different tokens")
  if labels.ndim > 1 and found.labels.size:
    parts.append(f"{labels.shape[1]} labels a sample")
  return f"{', '.join(parts)}, task {federated.task}"


def _shape(array):
  return "x".join(map(str, array.shape[1:]))


def main(argv):
  scripts.start(argv)
  workdir = runner.workdir(f"runs/data-{out.new_name()}")
  with scripts.one_line_errors():
    plugins.load()
    config = run_flags.config_from_flags()
    federated = data.load(*config.data_settings())
    if not config.standardize and federated.task != NEXT_TOKEN:
      warn_of_range(federated.clients.features)
    found = seen(federated)
    print(table(federated.client_names, found))
    print(summary(federated, found))
    path = workdir / "labels.png"
    title = f"{config.dataset}, {config.partition}"
    draw(federated.client_names, found, title, path)
    print(f"figure: {path}")


if __name__ == "__main__":
  scripts.run(main)
