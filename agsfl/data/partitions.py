"""Which samples belong to which client."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import numpy as np

from agsfl.data import rules
from agsfl.data.samples import Samples, as_whole, form, generator
from agsfl.errors import refuse, require
from agsfl.names import PartitionName
from agsfl.registry import Registry
from agsfl.settings import check, setting

# (labels [M] of the training samples, Partition, rng) -> for each client the
# positions, from 0 to M - 1, of its samples.
Rule = Callable[[np.ndarray, Any, np.random.Generator], list[np.ndarray]]


# Partitions of samples without classes, for a message.
_SUITS_ALL = "natural, iid, quantity_dirichlet or quantity_power_law"


class ClientRows(NamedTuple):
  """The samples of each client, as rows of the data set.

  Attributes:
    train: for each client the rows of its training samples.
    test: the same for test samples. With `natural` a client has its own test
      samples. Otherwise the test samples of a label go to clients in proportion
      to their training samples of that label. If no client trains on a label,
      its test samples have no client.
    others: [.] rows of test samples that have no client but count in the test
      set: those of such labels, and with `natural` those of clients that have
      only test samples. Samples of clients that `natural` leaves out do not
      count, so losses in training and in testing are of the same clients.
    names: [N] str.
  """

  train: list[np.ndarray]
  test: list[np.ndarray]
  others: np.ndarray
  names: np.ndarray


def _natural(samples, settings):
  """The data's own clients, those with the first ids."""
  if samples.owners is None:
    refuse(
        "--partition=natural",
        f"{samples.setting} has no client ids; use another partition, or data "
        "with ids: the key 'client' of an npz file, --client_column of csv, "
        "--client_regex of text",
    )
  sizes = np.bincount(
      samples.owners[samples.is_train], minlength=len(samples.owner_names)
  )
  owners = _large_owners(sizes, settings)
  train, test = (
      np.flatnonzero(samples.is_train), np.flatnonzero(~samples.is_train)
  )
  mine, tested = (
      [rows[own] for own in _rows_of_owners(samples.owners[rows], owners)]
      for rows in (train, test)
  )
  others = test[sizes[samples.owners[test]] == 0]
  if not others.size and not any(map(len, tested)):
    refuse(
        "--partition=natural",
        "none of the clients that train has a test sample; all test samples "
        "belong to clients that num_clients or min_samples leaves out",
    )
  return ClientRows(
      mine, tested, others, np.array(samples.owner_names[owners], str)
  )


def _large_owners(sizes, settings):
  """Indices of the first `num_clients` owners with enough samples."""
  # An owner that has only test samples is no client.
  large = np.flatnonzero(sizes >= max(1, settings.min_samples))
  require(
      len(large),
      "min_samples",
      settings.min_samples,
      f"at most {sizes.max()}, the most training samples of a client, with "
      "--partition=natural",
  )
  count = settings.num_clients or len(large)
  require(
      count <= len(large),
      "num_clients",
      count,
      f"at most {len(large)}, the clients with {settings.min_samples} training "
      "samples or more (min_samples), with --partition=natural",
  )
  return large[:count]


def _rows_of_owners(owners, wanted):
  """For each wanted owner, the rows that it owns."""
  order = np.argsort(owners, kind="stable")
  starts = np.searchsorted(owners[order], wanted, "left")
  ends = np.searchsorted(owners[order], wanted, "right")
  return [order[a:b] for a, b in zip(starts, ends, strict=True)]


def _by_labels(rule, needs_classes=True):
  """Makes a partition from a `Rule`.

  Args:
    rule: the rule.
    needs_classes: whether it reads labels. If not, samples need no class.
  """

  # It has the name and the source code of the rule.
  @functools.wraps(rule)
  def partition(samples, settings):
    train = np.flatnonzero(samples.is_train)
    test = np.flatnonzero(~samples.is_train)
    name, seed = settings.partition, settings.used_data_seed
    classes = samples.classes
    if classes is None:
      if needs_classes:
        refuse(
            f"--partition={name}",
            "needs one class as the label of each sample; for the labels of "
            f"{samples.setting} use {_SUITS_ALL}",
        )
      classes = np.zeros(len(samples.labels), np.int32)
    labels = classes[train]
    mine = rule(labels, settings, generator(seed, name))
    rng = generator(seed, f"{name}/test")
    tested = _like_training(labels, mine, classes[test], rng)
    return ClientRows(
        [train[own] for own in mine],
        [test[own] for own in tested],
        np.delete(test, np.concatenate(tested)),
        np.array(range(len(mine)), str),
    )

  return partition


def _like_training(labels, mine, test_labels, rng):
  """For each client, test samples of the labels that it trains on."""
  tested: list[list[np.ndarray]] = [[] for _ in mine]
  owner = np.full(len(labels), -1, np.int64)
  for client, rows in enumerate(mine):
    owner[rows] = client
  for label in np.unique(labels):
    owners = owner[(labels == label) & (owner >= 0)]
    if not owners.size:
      continue
    counts = np.bincount(owners, minlength=len(mine))
    members = rng.permutation(np.flatnonzero(test_labels == label))
    # In a random order, so that rounding favours no client.
    order = rng.permutation(len(mine))
    ends = rules.cuts(counts[order] / counts.sum(), len(members))
    for client, part in zip(order, np.split(members, ends), strict=True):
      tested[client].append(part)
  none = np.zeros(0, np.int64)  # of a client whose labels have no test samples
  return [np.concatenate([none, *own]) for own in tested]


# By name: (Samples, Partition) -> ClientRows.
PARTITIONS = Registry(
    "partition",
    {
        "one_class": _by_labels(rules.one_class),
        "iid": _by_labels(rules.iid, needs_classes=False),
        "natural": _natural,
        "shards": _by_labels(rules.shards),
        "dirichlet": _by_labels(rules.dirichlet),
        "dirichlet_split": _by_labels(rules.dirichlet_split),
        "quantity_dirichlet": _by_labels(
            rules.quantity_dirichlet, needs_classes=False
        ),
        "quantity_power_law": _by_labels(
            rules.quantity_power_law, needs_classes=False
        ),
    },
)


@dataclasses.dataclass(frozen=True)
class Partition:
  """How samples go to clients; each field has its own description.

  Raises:
    ConfigError: a value is of another type or out of range.
  """

  partition: PartitionName | str = setting(
      "one_class",
      "How samples go to clients; natural takes the client ids of the data.",
      choices=PARTITIONS,
  )
  num_clients: int | None = setting(
      None,
      "N. Default: 10. If one_class has more classes, one client for each "
      "class. With natural, every client of the data.",
      least=1,
      most=2**20,
  )
  min_samples: int = setting(
      1,
      "Least number of training samples of a client. natural leaves out "
      "smaller clients and their test samples. With 0 a client may have no "
      "samples; then it takes no part.",
      least=0,
  )
  shards_per_client: int = setting(
      2, "Shards of each client, with shards.", least=1
  )
  dirichlet_alpha: float = setting(
      0.5,
      "Concentration of the Dirichlet draws; small is skewed.",
      least=1e-3,
      most=1e6,
  )
  power: float = setting(
      1.0, "How fast sizes fall, with quantity_power_law.", least=0, most=10
  )
  seed: int = setting(
      0, "Seed of every random draw.", least=0, most=2**32 - 1
  )
  data_seed: int | None = setting(
      None,
      "Seed of the draws about data: which samples are for testing, and which "
      "client has which. Default: seed.",
      least=0,
      most=2**32 - 1,
  )

  def __post_init__(self) -> None:
    check(self)

  @property
  def used_data_seed(self) -> int:
    """The seed of the draws about data; the default if none is set."""
    return self.seed if self.data_seed is None else self.data_seed


def assign(samples: Samples, settings: Partition) -> ClientRows:
  """Gives the samples to clients.

  Every training sample goes to one client, with two exceptions: `natural` may
  leave out clients, and a registered rule may leave out samples.

  Args:
    samples: the data set.
    settings: how.

  Returns:
    The clients' rows.

  Raises:
    ConfigError: these data cannot be partitioned in this way.
  """
  return PARTITIONS[settings.partition](samples, settings)


def register_partition(name: str) -> Callable[[Rule], Rule]:
  """Registers a rule of your own under a name, as `--partition=NAME`.

  The rule's result is checked. For test samples see `ClientRows`.

  >>> @register_partition("halves")
  ... def halves(labels, settings, rng):
  ...   return np.array_split(rng.permutation(len(labels)), 2)

  Args:
    name: letters, digits and underscores.

  Returns:
    A decorator for functions (labels [M] i32 of the training samples,
    settings, rng) -> for each client an array of positions in `labels`.
    `settings` is the `Partition`, `rng` a NumPy generator of its data seed.

  Raises:
    ConfigError: the name cannot be used, or is one of the package's.
  """

  def register(rule: Rule) -> Rule:
    @functools.wraps(rule)
    def checked(labels, settings, rng):
      # A copy, because the rule may sort its labels in place.
      given = rule(labels.copy(), settings, rng)
      return _require_rows(given, len(labels), settings)

    PARTITIONS.add(name, _by_labels(checked))
    return rule

  return register


def _require_rows(given, count, settings):
  """Positions by client, as a registered rule must return them."""
  problem = f"must give each client its positions in 0 to {count - 1}"

  def fail(reason) -> NoReturn:
    refuse(f"--partition={settings.partition}", f"{problem}; {reason}")

  # As many clients as are wanted.
  try:
    mine = [np.asarray(own) for own in given]
  except (TypeError, ValueError, OverflowError) as error:
    fail(f"its result is no list of arrays ({error})")
  if not mine:
    fail("it gives no client")
  if settings.num_clients not in (None, len(mine)):
    fail(f"it gives {len(mine)} clients, num_clients is {settings.num_clients}")

  # Positions in range, each given once, and enough for each client.
  taken = np.zeros(count, bool)
  for client, given in enumerate(mine):
    own = as_whole(given, 1)
    if own is None:
      fail(f"those of client {client} are {form(given)}")
    outside = own[(own < 0) | (own >= count)]
    if outside.size:
      fail(f"client {client} has {outside[0]}")
    mine[client] = own = own.astype(np.int64)
    if taken[own].any() or len(np.unique(own)) < len(own):
      twice = np.flatnonzero(taken + np.bincount(own, minlength=count) > 1)
      fail(f"client {client} has {twice[0]}, which is given twice")
    taken[own] = True
    if len(own) < settings.min_samples:
      fail(
          f"client {client} has {len(own)} of them, min_samples is "
          f"{settings.min_samples}"
      )
  return mine
