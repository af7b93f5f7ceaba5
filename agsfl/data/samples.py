"""A data set before it goes to clients."""

from typing import NamedTuple, NoReturn

import numpy as np

from agsfl.errors import refuse

# Where a source brings no test samples, this share is held out.
TEST_SHARE = 0.2

_KINDS = {"iu": "integer", "b": "bool", "i": "id"}
_BLOCK = 1 << 16


class Samples(NamedTuple):
  """Images with labels.

  Attributes:
    dataset: the name or URI, for messages.
    images: [C, H, W, C'], uint8 (read as v / 255) or float32.
    labels: [C] i32.
    is_train: [C] bool.
    owners: [C] i32, whose each is, as a place in `owner_names`; or None.
    owner_names: [U] ids of clients, integers or strings, rising; or None.
    owner_key: what the source calls them, for messages.
  """

  dataset: str
  images: np.ndarray
  labels: np.ndarray
  is_train: np.ndarray
  owners: np.ndarray | None = None
  owner_names: np.ndarray | None = None
  owner_key: str = "client"


def generator(seed: int, purpose: str) -> np.random.Generator:
  """A generator of its own for each purpose."""
  return np.random.default_rng([seed, *purpose.encode()])


def most_classes(count: int) -> int:
  """How many classes `count` samples may have.

  The model has an output for each class up to the largest label: a label far
  above the number of samples is a mistake that would take all memory.
  """
  return min(max(1000, count), 1_000_000)


def hold_out(count: int, seed: int) -> np.ndarray:
  """[C] bool: which of `count` samples are for training."""
  is_train = np.ones(count, bool)
  order = generator(seed, "test").permutation(count)
  is_train[order[: int(TEST_SHARE * count)]] = False
  return is_train


def fail(dataset: str, problem: str) -> NoReturn:
  """Refuses a data set in one line."""
  refuse(f"--dataset={dataset}", problem)


def coded(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """`owners` and `owner_names` of samples with these ids, [C].

  Strings may take more memory than images, so few are looked at at once.
  """
  blocks = [
      slice(start, start + _BLOCK) for start in range(0, len(ids), _BLOCK)
  ]
  names, owners = ids[:0], np.empty(len(ids), np.int32)
  for block in blocks:
    names = np.union1d(names, ids[block])
  for block in blocks:
    owners[block] = np.searchsorted(names, ids[block])
  return owners, names


def in_order(owners: np.ndarray, places: dict) -> tuple[np.ndarray, np.ndarray]:
  """`owners` and `owner_names` of ids that had their places as they came.

  Args:
    owners: [C] i32, places.
    places: the place of each id, from 0.
  """
  names, order = np.unique(np.array(list(places)), return_inverse=True)
  return order.astype(np.int32)[owners], names


def require_finite(dataset: str, images: np.ndarray):
  """Refuses NaN and infinity; looks at few images at once."""
  if images.dtype == np.float32:
    for start in range(0, len(images), 1024):
      if not np.isfinite(images[start : start + 1024]).all():
        fail(dataset, "images hold values that are not finite")


def checked(samples: Samples) -> Samples:
  """The samples, if they have the form that `Samples` says.

  Args:
    samples: any arrays; images may lack the last axis.

  Returns:
    The samples with four axes of images and int32 labels.

  Raises:
    ConfigError: the text names the data set and the array.
  """
  dataset, images, labels, is_train, owners, names, owner_key = samples
  if images.ndim == 3:
    images = images[..., None]
  kinds = (np.uint8, np.float32)
  if images.ndim != 4 or images.dtype not in kinds or 0 in images.shape[1:]:
    fail(
        dataset,
        "images must be uint8 or float32 of shape [C, H, W] or [C, H, W, C'], "
        f"not {images.dtype}{list(images.shape)}",
    )
  require_finite(dataset, images)
  for name, array, kinds in (
      ("labels", labels, "iu"),
      ("is_train", is_train, "b"),
      *(() if owners is None else ((owner_key, owners, "i"),)),
  ):
    if array.shape != images.shape[:1] or array.dtype.kind not in kinds:
      fail(
          dataset,
          f"{name} must be one {_KINDS[kinds]} for each of the "
          f"{len(images)} images, not "
          f"{array.dtype}{list(array.shape)}",
      )
  if not is_train.any() or is_train.all():
    fail(dataset, "is_train must mark both training and test samples")
  largest = most_classes(len(labels)) - 1
  for label in (labels.min(), labels.max()):
    if not 0 <= label <= largest:
      fail(dataset, f"labels must lie in 0 to {largest}, found {label}")
  if owners is not None:
    if owners.min() < 0 or owners.max() >= len(names):
      fail(dataset, f"{owner_key} must be among the {len(names)} names")
    if not _is_text(names):
      fail(dataset, f"{owner_key} must be text that can be written as UTF-8")
  return samples._replace(images=images, labels=labels.astype(np.int32))


def _is_text(names):
  """Whether strings hold characters alone: NumPy takes any 32 bits for one."""
  if names.dtype.kind != "U":
    return True
  points = names.astype(names.dtype.newbyteorder("=")).view(np.uint32)
  surrogate = (points >= 0xD800) & (points <= 0xDFFF)
  return not (surrogate | (points > 0x10FFFF)).any()
