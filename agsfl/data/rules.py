"""Rules that give training samples to clients, by the samples' labels.

Each is a function (labels [M] of the training samples, settings, rng) -> for
each client the positions of its samples. `settings` is a `Partition`.
"""

import math

import numpy as np

from agsfl.errors import refuse, require

_DEFAULT_CLIENTS = 10
# Draws of `dirichlet_split` until all clients have enough samples.
_TRIES = 1000


def _refuse_too_few(settings, num_samples, num_clients):
  """Refuses too many clients for these samples, and says how many fit."""
  least, name = settings.min_samples, settings.partition
  if num_samples < least:
    refuse(
        f"--min_samples={least}",
        f"must be at most {num_samples}, the number of training samples, with "
        f"--partition={name}",
    )
  most = num_samples // least
  if name == "shards":
    # All shards of one client may be of the smaller size.
    shards = settings.shards_per_client
    most = max(1, num_samples // (-(-least // shards) * shards))
  refuse(
      f"--num_clients={num_clients}",
      f"must be at most {most}, so that each has {least} samples (min_samples) "
      f"of the {num_samples} for training, with --partition={name}",
  )


def cuts(shares: np.ndarray, count: int) -> np.ndarray:
  """Where to cut a row of samples into parts.

  Args:
    shares: [P], one for each part; they sum to 1.
    count: number of samples.

  Returns:
    [P - 1] ints, the ends of all parts but the last.
  """
  return np.rint(np.cumsum(shares)[:-1] * count).astype(int)


def _num_clients(labels, settings):
  """N; refused if there are too few samples."""
  count = settings.num_clients or _DEFAULT_CLIENTS
  if count * settings.min_samples > len(labels):
    _refuse_too_few(settings, len(labels), count)
  return count


def iid(labels, settings, rng):
  """Equal parts of a random order."""
  count = _num_clients(labels, settings)
  return np.array_split(rng.permutation(len(labels)), count)


def one_class(labels, settings, rng):
  """One class for each client; the clients of a class share it equally."""
  classes, sizes = np.unique(labels, return_counts=True)
  count = settings.num_clients or max(_DEFAULT_CLIENTS, len(classes))
  require(
      count >= len(classes),
      "num_clients",
      count,
      f"at least {len(classes)}, one for each class of the data set, with "
      "--partition=one_class",
  )
  if settings.min_samples:
    _require_large_classes(classes, sizes, count, settings.min_samples)
  rows = [np.zeros(0, np.intp)] * count
  for position, label in enumerate(classes):
    members = rng.permutation(np.flatnonzero(labels == label))
    owners = range(position, count, len(classes))
    parts = np.array_split(members, len(owners))
    for owner, part in zip(owners, parts, strict=True):
      rows[owner] = part
  return rows


def _require_large_classes(classes, sizes, count, least):
  """Refuses more clients of a class than it has samples for."""
  rarest = sizes.argmin()
  require(
      sizes[rarest] >= least,
      "min_samples",
      least,
      f"at most {sizes[rarest]}, the training samples of class "
      f"{classes[rarest]}, with --partition=one_class",
  )
  # Class p of L belongs to the clients p, p + L, ...
  most = np.arange(len(classes)) + len(classes) * (sizes // least)
  first = most.argmin()
  sharing = len(range(first, count, len(classes)))
  require(
      count <= most[first],
      "num_clients",
      count,
      f"at most {most[first]} with --partition=one_class: class "
      f"{classes[first]} has {sizes[first]} training samples for {sharing} "
      f"clients, {least} each (min_samples)",
  )


def shards(labels, settings, rng):
  """Samples sorted by label and cut into equal shards, s for each client.

  Source: McMahan et al., "Communication-Efficient Learning of Deep Networks
  from Decentralized Data", AISTATS 2017, Sec. 3.
  """
  count = _num_clients(labels, settings)
  num_shards = count * settings.shards_per_client
  require(
      num_shards <= len(labels),
      "shards_per_client",
      settings.shards_per_client,
      f"at most {len(labels) // count} with {count} clients (num_clients): "
      f"each shard needs one of the {len(labels)} training samples",
  )
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind="stable")]
  parts = np.array_split(order, num_shards)
  mine = rng.permutation(num_shards).reshape(count, -1)
  rows = [np.concatenate([parts[s] for s in of_one]) for of_one in mine]
  # Shards differ by one sample, so a client may have few of them.
  if min(map(len, rows)) < settings.min_samples:
    _refuse_too_few(settings, len(labels), count)
  return rows


def dirichlet(labels, settings, rng):
  """Equal sizes; each client has a mix of labels q_i ~ Dir(alpha p).

  p are the classes' shares of the samples, which sum to 1. So alpha here is the
  usual one (of each class) times the number of classes. Clients get samples in
  order. A class without samples left drops out of later mixes.

  Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
  Distribution for Federated Visual Classification", 2019.
  """
  count = _num_clients(labels, settings)
  classes, left = np.unique(labels, return_counts=True)
  mixes = rng.dirichlet(settings.dirichlet_alpha * left / left.sum(), count)
  members = [
      rng.permutation(np.flatnonzero(labels == label)) for label in classes
  ]
  rows = []
  for order, mix in zip(
      np.array_split(np.arange(len(labels)), count), mixes, strict=True
  ):
    taken = _take(left, len(order), mix, rng)
    rows.append(
        np.concatenate([
            of_class[rest - few : rest]
            for of_class, rest, few in zip(members, left, taken, strict=True)
        ])
    )
    left = left - taken
  return rows


def _take(left, wanted, mix, rng):
  """Samples of each class for one client, drawn from its mix."""
  taken = np.zeros_like(left)
  # A draw may ask for more of a class than there is; the rest is drawn again.
  while (missing := wanted - taken.sum()) > 0:
    rest = left - taken
    chances = np.where(rest > 0, mix, 0.0)
    if chances.sum() < 1e-12:  # every class of the mix is used up
      chances = rest.astype(float)
    drawn = rng.multinomial(missing, chances / chances.sum())
    taken += np.minimum(drawn, rest)
  return taken


def dirichlet_split(labels, settings, rng):
  """Each class is split over clients by shares ~ Dir(alpha); sizes differ.

  Shares are drawn again until every client has enough samples.

  Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of
  Neural Networks", ICML 2019.
  """
  count = _num_clients(labels, settings)
  classes, sizes = np.unique(labels, return_counts=True)
  alphas = np.full(count, settings.dirichlet_alpha)
  for _ in range(_TRIES):
    shares = rng.dirichlet(alphas, len(classes))
    ends = [cuts(*pair) for pair in zip(shares, sizes, strict=True)]
    of_classes = [
        np.diff(end, prepend=0, append=size)
        for end, size in zip(ends, sizes, strict=True)
    ]
    if np.sum(of_classes, axis=0).min() >= settings.min_samples:
      break
  else:
    refuse(
        f"--num_clients={count}",
        "must be less, or dirichlet_alpha more than "
        f"{settings.dirichlet_alpha}: none of {_TRIES} draws gives every "
        f"client {settings.min_samples} samples (min_samples), with "
        "--partition=dirichlet_split",
    )
  rows: list[list[np.ndarray]] = [[] for _ in range(count)]
  for label, end in zip(classes, ends, strict=True):
    members = rng.permutation(np.flatnonzero(labels == label))
    for own, part in zip(rows, np.split(members, end), strict=True):
      own.append(part)
  return [np.concatenate(own) for own in rows]


def quantity_dirichlet(labels, settings, rng):
  """min_samples for each client, the rest by shares ~ Dir(alpha); any label."""
  count = _num_clients(labels, settings)
  shares = rng.dirichlet(np.full(count, settings.dirichlet_alpha))
  return _by_size(len(labels), shares, settings.min_samples, rng)


def quantity_power_law(labels, settings, rng):
  """min_samples for each client, the rest by shares ~ i^-power; any label."""
  count = _num_clients(labels, settings)
  shares = np.arange(1.0, count + 1) ** -settings.power
  shares /= math.fsum(shares)
  return _by_size(len(labels), shares, settings.min_samples, rng)


def _by_size(num_samples, shares, least, rng):
  """A random order, cut so that each client gets `least` plus its share."""
  rest = num_samples - len(shares) * least
  sizes = np.floor(rest * shares).astype(int)
  # The samples left over by rounding down go to the largest remainders.
  order = np.argsort(sizes - rest * shares, kind="stable")
  sizes[order[: rest - sizes.sum()]] += 1
  ends = np.cumsum(sizes + least)[:-1]
  return np.split(rng.permutation(num_samples), ends)
