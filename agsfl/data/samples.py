"""A data set before its samples go to clients, and checks of its arrays."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import logging

from agsfl import aligned
from agsfl.errors import refuse, refused
from agsfl.names import TaskName
from agsfl.tasks import CLASSIFICATION, NEXT_TOKEN, REGRESSION

# The share of samples held out for testing, if a source has no test samples.
TEST_SHARE = 0.2

# Samples that are checked together; this bounds the memory of copies.
_BLOCK = 1024
# The same for ids of clients.
_ID_BLOCK = 1 << 16
# If the last axis of images is longer, it is no axis of channels.
_MOST_CHANNELS = 4
# There is a warning if features exceed the first number. For images without
# negative numbers it is the second.
_LARGE, _LARGE_PIXEL = 100, 2


class Names(NamedTuple):
  """What a source calls its arrays, for messages."""

  features: str = "features"
  labels: str = "labels"
  is_train: str = "is_train"
  owners: str = "client"


class Samples(NamedTuple):
  """Features with labels.

  Attributes:
    setting: what messages begin with, such as "--dataset=npz:a.npz".
    features: [C, ...], uint8 (read as v / 255), float32, or whole numbers:
      int8, int16 or int32. Images are [C, H, W, channels], tokens [C, T].
    labels: [C] i32 classes; with next_token also [C, T] i32, where -1 is no
      label; with regression [C] or [C, V] f32.
    is_train: [C] bool.
    owners: [C] i32, the client of each sample, as an index of `owner_names`;
      None if the data have no clients.
    owner_names: [U] ids of clients, integers or strings, ascending; or None.
    names: of the arrays, for messages.
    task: None for what the labels look like.
    num_classes: L, if the source knows more than the samples have.
  """

  setting: str
  features: np.ndarray
  labels: np.ndarray
  is_train: np.ndarray
  owners: np.ndarray | None = None
  owner_names: np.ndarray | None = None
  names: Names = Names()
  task: TaskName | None = None
  num_classes: int = 0

  @property
  def classes(self) -> np.ndarray | None:
    """[C] i32, the class of each sample; None if samples have no class."""
    has_class = self.labels.ndim == 1 and self.task != REGRESSION
    return self.labels if has_class else None


def generator(seed: int, purpose: str) -> np.random.Generator:
  """A random generator for one purpose, independent of those for others."""
  return np.random.default_rng([seed, *purpose.encode()])


def most_classes(count: int) -> int:
  """How many classes `count` samples may have.

  A model has one output for each label up to the largest. A label far above
  the number of samples is a mistake, and its model would fill the memory.
  """
  return min(max(1000, count), 1_000_000)


def hold_out(count: int, seed: int) -> np.ndarray:
  """[C] bool: which of `count` samples are for training; the rest test."""
  is_train = np.ones(count, bool)
  order = generator(seed, "test").permutation(count)
  is_train[order[: int(TEST_SHARE * count)]] = False
  return is_train


def with_channels(images: np.ndarray) -> np.ndarray:
  """Gives grey images [C, H, W] an axis of one channel."""
  return images[..., None] if images.ndim == 3 else images


def coded(
    setting: str, name: str, ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Codes the ids of samples' clients as numbers.

  Args:
    setting: see `Samples`.
    name: of the array, for messages.
    ids: [C] integers or strings.

  Returns:
    `owners` and `owner_names` of `Samples`.

  Raises:
    ConfigError: the array has another type or shape.
  """
  if ids.ndim != 1 or ids.dtype.kind not in "iuU":
    refuse(
        setting,
        f"{name} must be one integer or string for each sample, not "
        f"{form(ids)}",
    )
  blocks = [
      slice(start, start + _ID_BLOCK) for start in range(0, len(ids), _ID_BLOCK)
  ]
  names, owners = ids[:0], np.empty(len(ids), np.int32)
  for block in blocks:
    names = np.union1d(names, ids[block])
  for block in blocks:
    owners[block] = np.searchsorted(names, ids[block])
  return owners, names


def in_order(
    owners: np.ndarray, ids: Iterable[int | str]
) -> tuple[np.ndarray, np.ndarray]:
  """Sorts the ids of clients that were numbered in order of appearance.

  Args:
    owners: [C] i32, the number of each sample's client.
    ids: of the clients, in the order of their numbers.

  Returns:
    `owners` and `owner_names` of `Samples`.
  """
  names, order = np.unique(np.array(list(ids)), return_inverse=True)
  return order.astype(np.int32)[owners], names


def checked(samples: Samples) -> Samples:
  """Checks samples of any source, and brings them to the types of `Samples`.

  Args:
    samples: NumPy arrays of any type and shape.

  Returns:
    The samples with their task and number of classes. Labels of classes that
    are whole floats become integers. For features see `checked_features`.

  Raises:
    ConfigError: the text names the source and the array.
  """
  setting, features, labels, is_train, owners, owner_names, names, *_ = samples
  task = samples.task or task_of(features, labels)
  features = checked_features(setting, names.features, features, task)
  count = len(features)
  labels = checked_labels(
      setting,
      names.labels,
      labels,
      features.shape,
      most_outputs(task, features, labels),
      task,
  )
  num_classes = num_outputs(task, features, labels)
  if task != REGRESSION:
    num_classes = max(num_classes, samples.num_classes)
  # What each sample has one of.
  columns = [(names.is_train, is_train, "b", "bool")]
  if owners is not None:
    columns.append((names.owners, owners, "i", "id"))
  for name, array, kind, what in columns:
    if array.shape != (count,) or array.dtype.kind != kind:
      refuse(
          setting,
          f"{name} must be one {what} for each of the {count} samples, not "
          f"{form(array)}",
      )

  # Both kinds of samples, and clients whose names can be written.
  num_train = int(is_train.sum())
  if num_train in (0, count):
    refuse(
        setting,
        f"{names.is_train} must mark both training and test samples, found "
        f"{num_train} and {count - num_train}",
    )
  require_labels(setting, names.labels, labels[is_train], labels[~is_train])
  if owners is not None and owner_names is not None:
    if owners.min() < 0 or owners.max() >= len(owner_names):
      refuse(
          setting, f"{names.owners} must be among {len(owner_names)} clients"
      )
    if not is_text(owner_names):
      refuse(
          setting, f"{names.owners} must be text that can be written as UTF-8"
      )
  return samples._replace(
      features=features, labels=labels, task=task, num_classes=num_classes
  )


def task_of(features: np.ndarray, labels: np.ndarray) -> TaskName:
  """The task that features and labels look like, a name of `TASKS`.

  It is next_token if labels are the features moved by one token.
  """
  are_whole = features.dtype.kind in "iu" and labels.dtype.kind in "iu"
  if not are_whole or labels.ndim != 2 or labels.shape != features.shape:
    return CLASSIFICATION
  next_ones = labels[:, :-1]
  are_next = (next_ones == features[:, 1:]) | (next_ones == -1)
  return NEXT_TOKEN if are_next.all() else CLASSIFICATION


def most_outputs(
    task: TaskName, features: np.ndarray, labels: np.ndarray
) -> int:
  """The most classes or tokens that arrays of this size may have."""
  return most_classes(features.size if task == NEXT_TOKEN else labels.size)


def require_labels(
    setting: str, name: str, train: np.ndarray, test: np.ndarray
):
  """Refuses labels that are all -1, in training or in testing.

  Args:
    setting: see `Samples`.
    name: of the array, for messages.
    train, test: the labels of both kinds of samples.
  """
  for labels, purpose in ((train, "training"), (test, "testing")):
    if labels.dtype == np.int32 and labels.size and labels.max() < 0:
      refuse(setting, f"{name} must have one from 0 for {purpose}, all are -1")


def num_outputs(
    task: TaskName, features: np.ndarray, labels: np.ndarray
) -> int:
  """L: numbers of a label, classes, or different tokens; from checked arrays.

  Args:
    task: a name of `TASKS`.
    features, labels: see `Samples`.
  """
  if task == REGRESSION:
    return labels.size // len(labels)
  most = labels.max()
  if task == NEXT_TOKEN:
    most = max(most, features.max())
  return int(most) + 1


def checked_features(
    setting: str,
    name: str,
    features: np.ndarray,
    task: TaskName = CLASSIFICATION,
) -> np.ndarray:
  """Checks features.

  Args:
    setting: see `Samples`.
    name: of the array, for messages.
    features: any array.
    task: a name of `TASKS`; with next_token they must be tokens.

  Returns:
    [C, ...]: int8, int16, int32, and uint8 that are no tokens, as they are;
    other whole numbers as int32; other numbers as float32.

  Raises:
    ConfigError: they are not numbers, not finite, have no axis of features,
      are beyond int32, are images whose channels do not come last, or no
      tokens.
  """
  # Numbers of a usable shape.
  if (
      not _is_real(features.dtype)
      or features.ndim < 2
      or 0 in features.shape[1:]
  ):
    refuse(
        setting,
        f"{name} must be numbers of shape [C, ...], at least one for each "
        f"sample, not {form(features)}",
    )
  if not len(features):
    refuse(setting, "must hold samples, found none")
  if (
      features.ndim == 4
      and features.shape[1] in (1, 3)
      and min(features.shape[2:]) > _MOST_CHANNELS
  ):
    refuse(
        setting,
        f"{name} must be of shape [C, H, W, channels]: channels come last, "
        f"not as in {list(features.shape)}",
    )

  # Values of the final type.
  if task == NEXT_TOKEN:
    return _tokens(setting, name, features)
  if features.dtype == np.uint8:
    return features
  if features.dtype.kind in "iu":
    return _as_integers(setting, name, features)
  if features.dtype != np.float32:
    features = _copy(features, np.float32)
  if not np.isfinite(_range(features)).all():
    refuse(setting, f"{name} hold values that are not finite")
  return features


def _as_integers(setting, name, features):
  """Whole numbers of at most 32 bits."""
  if features.dtype in (np.int8, np.int16, np.int32):
    return features
  for value in _range(features):
    if abs(int(value)) >= 2**31:
      refuse(
          setting,
          f"{name} must be whole numbers that fit int32, or floats; found "
          f"{value}",
      )
  return _copy(features, np.int32)


def _tokens(setting, name, features):
  """Tokens [C, T] as signed numbers, so that uint8 is not read as v / 255."""
  if features.ndim != 2 or features.dtype.kind not in "iu":
    refuse(
        setting,
        f"{name} must be tokens, whole numbers of shape [C, T], not "
        f"{form(features)}",
    )
  if features.dtype == np.uint8:
    features = _copy(features, np.int16)
  features = _as_integers(setting, name, features)
  most = most_outputs(NEXT_TOKEN, features, features) - 1
  for token in _range(features):
    if not 0 <= token <= most:
      refuse(setting, f"{name} must lie in 0 to {most}, found {token}")
  return features


def as_array(setting: str, name: str, values: Any) -> np.ndarray:
  """Anything that NumPy takes as one array; else a ConfigError.

  Args:
    setting: what the message begins with.
    name: of the array.
    values: the array.
  """
  errors = (ValueError, TypeError, OverflowError)
  with refused(setting, f"{name} must be one array", errors):
    return np.asarray(values)


def warn_of_range(features: jax.Array | np.ndarray):
  """Warns of features that should be divided before a network gets them."""
  if features.dtype == np.uint8:  # read as v / 255
    return
  low, high = _range(features)
  are_pixels = features.ndim > 2 and low >= 0
  if max(-low, high) > (_LARGE_PIXEL if are_pixels else _LARGE):
    logging.warning(
        "The features range from %g to %g; networks train better on 0 to 1. "
        "Divide them. For images --standardize does it, and images of uint8 "
        "are read as v / 255.",
        low, high,
    )


def checked_labels(
    setting: str,
    name: str,
    labels: np.ndarray,
    shape: tuple[int, ...],
    num_classes: int,
    task: TaskName = CLASSIFICATION,
) -> np.ndarray:
  """Checks labels; see `checked`.

  Args:
    setting: see `Samples`.
    name: of the array, for messages.
    labels: any array.
    shape: of the features of all samples, [C, ...].
    num_classes: labels of classes and tokens must be below it.
    task: a name of `TASKS`.

  Returns:
    See `Samples.labels`.

  Raises:
    ConfigError: they have another form than the task needs, are out of range
      or not C.
  """
  if task == REGRESSION:
    return _numbers(setting, name, labels, shape[0])
  tokens = task == NEXT_TOKEN
  shapes, what = [shape[:1]], "one whole number"
  if tokens:
    shapes.append(shape[:2])
    what += f", or {shape[1]}"
  if labels.shape not in shapes or labels.dtype.kind not in "biuf":
    also = ""
    if labels.ndim == 2 and labels.shape[1] > 1 and not tokens:
      also = "; for sequences of tokens or of real numbers set the task"
    refuse(
        setting,
        f"{name} must be {what} for each of the {shape[0]} samples, not "
        f"{form(labels)}{also}",
    )
  if labels.dtype.kind == "f":
    # NaN differs from itself. Infinity fails the check of the range below.
    broken = labels[labels != np.floor(labels)]
    if broken.size:
      refuse(
          setting,
          f"{name} must be whole numbers, found {broken[0]}; for real numbers "
          "set the task regression",
      )
  least = -1 if tokens and labels.ndim == 2 else 0
  for label in (labels.min(), labels.max()):
    if not least <= label < num_classes:
      refuse(
          setting,
          f"{name} must lie in {least} to {num_classes - 1}, found {label}",
      )
  return labels.astype(np.int32, copy=False)


def _numbers(setting, name, labels, count):
  """Labels of a regression, [C] or [C, V] f32."""
  if (
      not _is_real(labels.dtype)
      or labels.ndim not in (1, 2)
      or len(labels) != count
      or not labels.size
  ):
    refuse(
        setting,
        f"{name} must be a number, or a row of them, for each of the {count} "
        f"samples, not {form(labels)}",
    )
  labels = _copy(labels, np.float32)
  if not np.isfinite(labels).all():
    refuse(setting, f"{name} hold values that are not finite")
  return labels


def as_whole(array: np.ndarray, axes: int) -> np.ndarray | None:
  """The array if it has so many axes and holds integers or nothing."""
  if array.ndim == axes and not array.size:
    return np.zeros(array.shape, np.int64)  # an empty list has the type float
  return array if array.ndim == axes and array.dtype.kind in "iu" else None


def form(array: np.ndarray) -> str:
  """Type and shape of an array, for messages."""
  return f"{array.dtype}{list(array.shape)}"


def _is_real(dtype):
  """Whether a type has real numbers; JAX knows bfloat16, NumPy does not."""
  kinds = (np.floating, np.integer, np.bool_)
  return any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


def _copy(features, dtype):
  """A copy in another type; values too large for float32 become infinite."""
  copy = aligned.empty(features.shape, dtype)
  with np.errstate(over="ignore", invalid="ignore"):
    copy[...] = features
  return copy


def _range(features):
  """The smallest and the largest value; NaN if there is one."""
  blocks = [
      features[start : start + _BLOCK]
      for start in range(0, len(features), _BLOCK)
  ]
  return (
      np.min([block.min() for block in blocks]),
      np.max([block.max() for block in blocks]),
  )


def is_text(names: np.ndarray) -> bool:
  """Whether strings have only valid characters; NumPy accepts any 32 bits."""
  if names.dtype.kind != "U":
    return True
  native = names.astype(names.dtype.newbyteorder("="))
  points = native.reshape(-1).view(np.uint32)
  surrogate = (points >= 0xD800) & (points <= 0xDFFF)
  return not (surrogate | (points > 0x10FFFF)).any()
