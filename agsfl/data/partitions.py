"""Which samples are whose."""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from agsfl.data.samples import Samples, fail, generator
from agsfl.errors import ConfigError

_DEFAULT_CLIENTS = 10
_MOST_CLIENTS = 2**20
# Times that shares are drawn until all clients have enough samples.
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Partition:
  """How samples go to clients.

  Attributes:
    partition: a key of `PARTITIONS`.
    num_clients: N; None means 10, one per class where one_class has more, and
      with natural every client of the data.
    min_samples: training samples of each client at least; natural leaves
      smaller ones out. With 0 others may deal a client none; it takes no part.
    shards_per_client: of shards.
    dirichlet_alpha: concentration of the Dirichlet draws; small is skewed.
    power: of quantity_power_law, how fast sizes fall.
    seed: of every draw.

  Raises:
    ConfigError: a value is out of range.
  """

  partition: str = "one_class"
  num_clients: int | None = None
  min_samples: int = 1
  shards_per_client: int = 2
  dirichlet_alpha: float = 0.5
  power: float = 1.0
  seed: int = 0

  def __post_init__(self):
    for field, fits, allowed in (
        ("partition", self.partition in PARTITIONS, " or ".join(PARTITIONS)),
        (
            "num_clients",
            self.num_clients is None or 1 <= self.num_clients <= _MOST_CLIENTS,
            "at least 1 and at most 2^20",
        ),
        ("min_samples", self.min_samples >= 0, "at least 0"),
        ("shards_per_client", self.shards_per_client >= 1, "at least 1"),
        (
            "dirichlet_alpha",
            1e-3 <= self.dirichlet_alpha <= 1e6,
            "from 0.001 to 1e6",
        ),
        ("power", 0 <= self.power <= 10, "from 0 to 10"),
        ("seed", 0 <= self.seed < 2**32, "at least 0, below 2^32"),
    ):
      if not fits:
        raise ConfigError(
            f"--{field}={getattr(self, field)}: must be {allowed}"
        )


class Dealt(NamedTuple):
  """The outcome, as rows of the data set.

  Attributes:
    train: for each client the training samples that it holds.
    test: the same of test samples. With natural its own; else the samples of a
      label go to clients in proportion to their training samples of it, and
      those of a label without training samples are nobody's.
    names: [N] str.
  """

  train: list[np.ndarray]
  test: list[np.ndarray]
  names: np.ndarray


def deal(samples: Samples, settings: Partition) -> Dealt:
  """Deals a data set to clients.

  Every training sample goes to one client, but for those of the clients that
  natural leaves out.

  Args:
    samples: the data set.
    settings: how.

  Returns:
    The clients' rows.

  Raises:
    ConfigError: the data cannot be dealt so.
  """
  train, test = (
      np.flatnonzero(rows) for rows in (samples.is_train, ~samples.is_train)
  )
  if settings.partition == "natural":
    owners = _natural_clients(samples, settings)
    mine, tested = (
        _of_owners(samples.owners[rows], owners) for rows in (train, test)
    )
    names = samples.owner_names[owners]
  else:
    labels = samples.labels[train]
    rng = generator(settings.seed, settings.partition)
    mine = PARTITIONS[settings.partition](labels, settings, rng)
    if min(map(len, mine)) < settings.min_samples:
      raise _too_few(settings, len(labels), len(mine))
    names = range(len(mine))
    rng = generator(settings.seed, settings.partition + "/test")
    tested = _like_training(labels, mine, samples.labels[test], rng)
  return Dealt(
      [train[own] for own in mine],
      [test[own] for own in tested],
      np.array(names, str),
  )


def _like_training(labels, mine, test_labels, rng):
  """For each client test samples of the labels that it trains on."""
  tested = [[] for _ in mine]
  owner = np.zeros(len(labels), np.int64)
  for client, rows in enumerate(mine):
    owner[rows] = client
  for label in np.unique(labels):
    held = np.bincount(owner[labels == label], minlength=len(mine))
    members = rng.permutation(np.flatnonzero(test_labels == label))
    # In a random order, so that rounding favours nobody.
    order = rng.permutation(len(mine))
    cuts = _cuts(held[order] / held.sum(), len(members))
    for client, share in zip(order, np.split(members, cuts), strict=True):
      tested[client].append(share)
  return [np.concatenate(own) for own in tested]


def _cuts(shares, count):
  """Where to cut `count` samples into shares, which sum to 1."""
  return np.rint(np.cumsum(shares)[:-1] * count).astype(int)


def _too_few(settings, num_samples, num_clients):
  least, by = settings.min_samples, f"by --partition={settings.partition}"
  if num_samples < least:
    return ConfigError(
        f"--min_samples={least}: must be at most {num_samples}, the training "
        f"samples to deal {by}"
    )
  most = num_samples // least
  if settings.partition == "shards":
    # Of a client's shards all may be of the smaller size.
    shards = settings.shards_per_client
    most = max(1, num_samples // (-(-least // shards) * shards))
  return ConfigError(
      f"--num_clients={num_clients}: must be at most {most}, so that each has "
      f"{least} samples (min_samples) of the {num_samples} to deal {by}"
  )


def _num_clients(labels, settings):
  """N, where there are samples enough."""
  count = settings.num_clients or _DEFAULT_CLIENTS
  if count * settings.min_samples > len(labels):
    raise _too_few(settings, len(labels), count)
  return count


def _natural_clients(samples, settings):
  """Places of the data's own clients; the first `num_clients` of them."""
  if samples.owners is None:
    raise ConfigError(
        f"--partition=natural: {samples.dataset} carries no client ids; use "
        "another partition, or an npz file with the key 'client'"
    )
  names = samples.owner_names
  sizes, tests = (
      np.bincount(samples.owners[rows], minlength=len(names))
      for rows in (samples.is_train, ~samples.is_train)
  )
  strangers = names[(sizes == 0) & (tests > 0)]
  if len(strangers):
    fail(
        samples.dataset,
        f"{samples.owner_key} {strangers[0]} has test samples but no training "
        "samples, as --partition=natural needs",
    )
  large = np.flatnonzero(sizes >= settings.min_samples)
  if not len(large):
    raise ConfigError(
        f"--min_samples={settings.min_samples}: must be at most {sizes.max()}, "
        "the most training samples of a client, with --partition=natural"
    )
  count = settings.num_clients or len(large)
  if count > len(large):
    raise ConfigError(
        f"--num_clients={count}: must be at most {len(large)}, the clients "
        f"with {settings.min_samples} training samples or more (min_samples), "
        "with --partition=natural"
    )
  return large[:count]


def _of_owners(owners, wanted):
  """The positions that each of these owners has."""
  order = np.argsort(owners, kind="stable")
  starts = np.searchsorted(owners[order], wanted, "left")
  ends = np.searchsorted(owners[order], wanted, "right")
  return [order[a:b] for a, b in zip(starts, ends, strict=True)]


def _iid(labels, settings, rng):
  """Equal shares of a random order."""
  count = _num_clients(labels, settings)
  return np.array_split(rng.permutation(len(labels)), count)


def _one_class(labels, settings, rng):
  """One class per client; the clients of a class share it equally."""
  classes, sizes = np.unique(labels, return_counts=True)
  count = settings.num_clients or max(_DEFAULT_CLIENTS, len(classes))
  if count < len(classes):
    raise ConfigError(
        f"--num_clients={count}: must be at least {len(classes)}, one for each "
        "class of the data set, with --partition=one_class"
    )
  if settings.min_samples:
    _require_large_classes(classes, sizes, count, settings.min_samples)
  rows = [None] * count
  for position, label in enumerate(classes):
    members = rng.permutation(np.flatnonzero(labels == label))
    owners = range(position, count, len(classes))
    shares = np.array_split(members, len(owners))
    for owner, share in zip(owners, shares, strict=True):
      rows[owner] = share
  return rows


def _require_large_classes(classes, sizes, count, least):
  """Refuses more clients of a class than it has samples for."""
  rarest = sizes.argmin()
  if sizes[rarest] < least:
    raise ConfigError(
        f"--min_samples={least}: must be at most {sizes[rarest]}, the training "
        f"samples of class {classes[rarest]}, with --partition=one_class"
    )
  # Class p of L is of the clients p, p + L, ...
  most = np.arange(len(classes)) + len(classes) * (sizes // least)
  first = most.argmin()
  if count > most[first]:
    sharing = len(range(first, count, len(classes)))
    raise ConfigError(
        f"--num_clients={count}: must be at most {most[first]} with "
        f"--partition=one_class: class {classes[first]} has {sizes[first]} "
        f"training samples for {sharing} clients, {least} each (min_samples)"
    )


def _shards(labels, settings, rng):
  """Sorted by label, cut into equal shards, s of them to each client.

  Source: McMahan et al., "Communication-Efficient Learning of Deep Networks
  from Decentralized Data", AISTATS 2017, Sec. 3.
  """
  count = _num_clients(labels, settings)
  num_shards = count * settings.shards_per_client
  if num_shards > len(labels):
    raise ConfigError(
        f"--shards_per_client={settings.shards_per_client}: must be at most "
        f"{len(labels) // count} with {count} clients (num_clients), a sample "
        f"for each shard, of {len(labels)} to deal"
    )
  order = rng.permutation(len(labels))
  order = order[np.argsort(labels[order], kind="stable")]
  shards = np.array_split(order, num_shards)
  mine = rng.permutation(num_shards).reshape(count, -1)
  return [np.concatenate([shards[s] for s in of_one]) for of_one in mine]


def _dirichlet(labels, settings, rng):
  """Equal sizes, each client with a mix of labels q_i ~ Dir(alpha p).

  p are the classes' shares, which sum to 1: alpha here is that of Dir(alpha)
  per class, times the number of classes. Classes that run out leave a client's
  mix, in the order of clients.

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
  """Samples of each class for one client: draws from its mix until all fit."""
  taken = np.zeros_like(left)
  while (missing := wanted - taken.sum()) > 0:
    rest = left - taken
    chances = np.where(rest > 0, mix, 0.0)
    if chances.sum() < 1e-12:  # nothing is left of what the mix asks for
      chances = rest.astype(float)
    drawn = rng.multinomial(missing, chances / chances.sum())
    taken += np.minimum(drawn, rest)
  return taken


def _dirichlet_split(labels, settings, rng):
  """Each class is split by shares ~ Dir(alpha); sizes differ.

  Drawn again until every client has enough.

  Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of
  Neural Networks", ICML 2019.
  """
  count = _num_clients(labels, settings)
  classes, sizes = np.unique(labels, return_counts=True)
  alphas = np.full(count, settings.dirichlet_alpha)
  for _ in range(_TRIES):
    shares = rng.dirichlet(alphas, len(classes))
    cuts = [_cuts(*pair) for pair in zip(shares, sizes, strict=True)]
    held = sum(
        np.diff(cut, prepend=0, append=size)
        for cut, size in zip(cuts, sizes, strict=True)
    )
    if held.min() >= settings.min_samples:
      break
  else:
    raise ConfigError(
        f"--num_clients={count}: must be less, or dirichlet_alpha more than "
        f"{settings.dirichlet_alpha}: none of {_TRIES} draws leaves every "
        f"client {settings.min_samples} samples (min_samples), with "
        "--partition=dirichlet_split"
    )
  rows = [[] for _ in range(count)]
  for label, cut in zip(classes, cuts, strict=True):
    members = rng.permutation(np.flatnonzero(labels == label))
    for own, share in zip(rows, np.split(members, cut), strict=True):
      own.append(share)
  return [np.concatenate(own) for own in rows]


def _by_size(num_samples, shares, least, rng):
  """A random order cut into `least` each and the rest by shares."""
  rest = num_samples - len(shares) * least
  sizes = np.floor(rest * shares).astype(int)
  # The largest remainders get what rounding left.
  order = np.argsort(sizes - rest * shares, kind="stable")
  sizes[order[: rest - sizes.sum()]] += 1
  ends = np.cumsum(sizes + least)[:-1]
  return np.split(rng.permutation(num_samples), ends)


def _quantity_dirichlet(labels, settings, rng):
  """min_samples each, the rest by sizes ~ Dir(alpha); labels as they come."""
  count = _num_clients(labels, settings)
  shares = rng.dirichlet(np.full(count, settings.dirichlet_alpha))
  return _by_size(len(labels), shares, settings.min_samples, rng)


def _quantity_power_law(labels, settings, rng):
  """min_samples each, the rest by sizes ~ i^-power; labels as they come."""
  count = _num_clients(labels, settings)
  shares = np.arange(1.0, count + 1) ** -settings.power
  shares /= math.fsum(shares)
  return _by_size(len(labels), shares, settings.min_samples, rng)


# By name: (labels [M] of the training samples, Partition, Generator) -> for
# each client the positions that it holds; natural is by owner, not by label.
PARTITIONS = {
    "one_class": _one_class,
    "iid": _iid,
    "natural": None,
    "shards": _shards,
    "dirichlet": _dirichlet,
    "dirichlet_split": _dirichlet_split,
    "quantity_dirichlet": _quantity_dirichlet,
    "quantity_power_law": _quantity_power_law,
}
