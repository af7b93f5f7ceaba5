"""Which samples are whose.

A partition is a rule, drawn once and then applied to training and test samples
alike, so that a client is tested on what resembles its own.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from agsfl.errors import ConfigError
from agsfl.samples import Samples, generator

_DEFAULT_CLIENTS = 10
# Times that a rule is drawn until all clients have enough samples.
_TRIES = 1000


class Part(NamedTuple):
  """The training samples of a data set, or its test samples.

  Attributes:
    labels: [M] i32.
    owners: [M], or None.
  """

  labels: np.ndarray
  owners: np.ndarray | None


# (the part, a generator) -> for each client the positions in it that it holds.
Rule = Callable[[Part, np.random.Generator], list[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Partition:
  """How samples go to clients.

  Attributes:
    partition: a key of `PARTITIONS`.
    num_clients: N; None means 10, one per class where one_class has more, and
      with natural every client of the data.
    min_samples: training samples of each client at least; natural leaves
      smaller ones out. With 0 a client may be empty and takes no part.
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
            self.num_clients is None or self.num_clients >= 1,
            "at least 1",
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
    train, test: for each client the rows that it holds; of the test samples,
      those whose client or class has no training samples here are nobody's.
    names: [N] str.
  """

  train: list[np.ndarray]
  test: list[np.ndarray]
  names: np.ndarray


def deal(samples: Samples, settings: Partition) -> Dealt:
  """Deals a data set to clients.

  Every training sample goes to one client, but for those of the clients that
  `natural` leaves out.

  Args:
    samples: the data set.
    settings: how.

  Returns:
    The clients' rows.

  Raises:
    ConfigError: the data cannot be dealt so.
  """
  parts = []
  for rows in (samples.is_train, ~samples.is_train):
    owners = None if samples.owners is None else samples.owners[rows]
    parts.append(Part(samples.labels[rows], owners))
  train, test = parts
  draw = PARTITIONS[settings.partition]
  rng = generator(settings.seed, settings.partition)
  for _ in range(_TRIES if _sizes_by_chance(settings) else 1):
    rule, names = draw(samples, train, settings, rng)
    mine = rule(train, rng)
    if min(map(len, mine)) >= settings.min_samples:
      break
  else:
    raise _too_few(settings, train, len(names))
  rng = generator(settings.seed, settings.partition + "/test")
  train_rows, test_rows = (
      np.flatnonzero(rows) for rows in (samples.is_train, ~samples.is_train)
  )
  return Dealt(
      [train_rows[own] for own in mine],
      [test_rows[own] for own in rule(test, rng)],
      np.array(names, str),
  )


def _sizes_by_chance(settings):
  return settings.partition == "dirichlet_split"


def _too_few(settings, train, num_clients):
  return ConfigError(
      f"--num_clients={num_clients}: must leave every client "
      f"{settings.min_samples} samples (min_samples); the data set has "
      f"{len(train.labels)} to deal by --partition={settings.partition}"
      + "; a larger --dirichlet_alpha may help" * _sizes_by_chance(settings)
  )


def _numbered(settings, train):
  """N, and the clients' names."""
  count = settings.num_clients or _DEFAULT_CLIENTS
  if count * settings.min_samples > len(train.labels):
    raise _too_few(settings, train, count)
  return count, range(count)


def _iid(samples, train, settings, rng):
  """Equal shares of a random order."""
  del samples, rng
  count, names = _numbered(settings, train)

  def rule(part, rng):
    return np.array_split(rng.permutation(len(part.labels)), count)

  return rule, names


def _one_class(samples, train, settings, rng):
  """One class per client; the clients of a class share it equally."""
  del samples, rng
  classes = np.unique(train.labels)
  count = settings.num_clients or max(_DEFAULT_CLIENTS, len(classes))
  if count < len(classes):
    raise ConfigError(
        f"--num_clients={count}: must be at least {len(classes)}, one for each "
        "class of the data set, with --partition=one_class"
    )

  def rule(part, rng):
    rows = [None] * count
    for position, label in enumerate(classes):
      members = rng.permutation(np.flatnonzero(part.labels == label))
      owners = range(position, count, len(classes))
      shares = np.array_split(members, len(owners))
      for owner, share in zip(owners, shares, strict=True):
        rows[owner] = share
    return rows

  return rule, range(count)


def _natural(samples, train, settings, rng):
  """The data's own clients; the first `num_clients` of them in id order."""
  del rng
  if samples.owners is None:
    raise ConfigError(
        f"--partition=natural: {samples.dataset} carries no client ids; use "
        "another partition, or an npz file with the key 'client'"
    )
  ids, sizes = np.unique(train.owners, return_counts=True)
  strangers = np.setdiff1d(samples.owners, ids)
  if len(strangers):
    raise ConfigError(
        f"--dataset={samples.dataset}: {samples.owner_key} {strangers[0]} has "
        "test samples but no training samples, as --partition=natural needs"
    )
  names = ids[sizes >= settings.min_samples]
  count = settings.num_clients or max(1, len(names))
  if count > len(names):
    raise ConfigError(
        f"--num_clients={count}: must be at most {len(names)}, the clients "
        f"with {settings.min_samples} training samples or more (min_samples), "
        "with --partition=natural"
    )

  def rule(part, rng):
    del rng
    order = np.argsort(part.owners, kind="stable")
    starts = np.searchsorted(part.owners[order], names[:count], "left")
    ends = np.searchsorted(part.owners[order], names[:count], "right")
    return [order[a:b] for a, b in zip(starts, ends, strict=True)]

  return rule, names[:count]


def _shards(samples, train, settings, rng):
  """Sorted by label, cut into equal shards, s of them to each client.

  Source: McMahan et al., "Communication-Efficient Learning of Deep Networks
  from Decentralized Data", AISTATS 2017, Sec. 3.
  """
  del samples
  count, names = _numbered(settings, train)
  num_shards = count * settings.shards_per_client
  if num_shards > len(train.labels):
    raise ConfigError(
        f"--shards_per_client={settings.shards_per_client}: must be at most "
        f"{len(train.labels) // count}, so that the {count} clients' shards "
        f"hold a sample each of the {len(train.labels)}"
    )
  mine = rng.permutation(num_shards).reshape(count, -1)

  def rule(part, rng):
    order = rng.permutation(len(part.labels))
    order = order[np.argsort(part.labels[order], kind="stable")]
    shards = np.array_split(order, num_shards)
    return [np.concatenate([shards[s] for s in of_one]) for of_one in mine]

  return rule, names


def _dirichlet(samples, train, settings, rng):
  """Equal sizes, each client with a mix of labels q_i ~ Dir(alpha p).

  p are the classes' shares, which sum to 1: alpha here is that of Dir(alpha)
  per class, times the number of classes. Classes that run out leave a client's
  mix, in the order of clients.

  Source: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data
  Distribution for Federated Visual Classification", 2019.
  """
  del samples
  count, names = _numbered(settings, train)
  classes, sizes = np.unique(train.labels, return_counts=True)
  prior = sizes / sizes.sum()
  mixes = rng.dirichlet(settings.dirichlet_alpha * prior, count)

  def rule(part, rng):
    members = [
        rng.permutation(np.flatnonzero(part.labels == label))
        for label in classes
    ]
    left = np.array([len(of_class) for of_class in members])
    rows = []
    for wanted, mix in zip(
        map(len, np.array_split(np.arange(left.sum()), count)),
        mixes,
        strict=True,
    ):
      taken = _take(left, wanted, mix, rng)
      rows.append(
          np.concatenate([
              of_class[rest - few : rest]
              for of_class, rest, few in zip(members, left, taken, strict=True)
          ])
      )
      left = left - taken
    return rows

  return rule, names


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


def _dirichlet_split(samples, train, settings, rng):
  """Each class is split by shares ~ Dir(alpha); sizes differ.

  Source: Yurochkin et al., "Bayesian Nonparametric Federated Learning of
  Neural Networks", ICML 2019.
  """
  del samples
  count, names = _numbered(settings, train)
  classes = np.unique(train.labels)
  alphas = np.full(count, settings.dirichlet_alpha)
  shares = rng.dirichlet(alphas, len(classes))

  def rule(part, rng):
    rows = [[] for _ in range(count)]
    for label, of_class in zip(classes, shares, strict=True):
      members = rng.permutation(np.flatnonzero(part.labels == label))
      cuts = np.rint(np.cumsum(of_class)[:-1] * len(members)).astype(int)
      for own, share in zip(rows, np.split(members, cuts), strict=True):
        own.append(share)
    return [np.concatenate(own) for own in rows]

  return rule, names


def _by_size(count, shares, settings):
  """A random order cut into sizes in proportion to `shares`."""

  def rule(part, rng):
    total = len(part.labels)
    least = min(settings.min_samples, total // count)
    free = (total - count * least) * shares
    sizes = np.floor(free).astype(int)
    # The largest remainders get what rounding left.
    late = total - count * least - sizes.sum()
    sizes[np.argsort(sizes - free, kind="stable")[:late]] += 1
    ends = np.cumsum(sizes + least)[:-1]
    return np.split(rng.permutation(total), ends)

  return rule


def _quantity_dirichlet(samples, train, settings, rng):
  """min_samples each, the rest by sizes ~ Dir(alpha); labels as they come."""
  del samples
  count, names = _numbered(settings, train)
  shares = rng.dirichlet(np.full(count, settings.dirichlet_alpha))
  return _by_size(count, shares, settings), names


def _quantity_power_law(samples, train, settings, rng):
  """min_samples each, the rest by sizes ~ (1 + i)^-power; labels at random."""
  del samples, rng
  count, names = _numbered(settings, train)
  shares = np.arange(1.0, count + 1) ** -settings.power
  return _by_size(count, shares / math.fsum(shares), settings), names


PARTITIONS = {
    "one_class": _one_class,
    "iid": _iid,
    "natural": _natural,
    "shards": _shards,
    "dirichlet": _dirichlet,
    "dirichlet_split": _dirichlet_split,
    "quantity_dirichlet": _quantity_dirichlet,
    "quantity_power_law": _quantity_power_law,
}
