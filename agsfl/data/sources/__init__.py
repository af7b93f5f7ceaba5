"""Data sets by name or URI."""

from agsfl.data.samples import Samples
from agsfl.data.sources import embedded, leaf, npz, tfds

_NAMES = {
    "mnist_5k": embedded.mnist_5k,
    "digits": embedded.digits,
    "femnist": tfds.femnist,
}
_SCHEMES = {"npz": npz.read, "leaf": leaf.read, "tfds": tfds.read}

ALLOWED = "mnist_5k, digits, femnist, npz:PATH, leaf:DIR or tfds:NAME"


def is_known(dataset: str) -> bool:
  """Whether there is a source for the name or URI."""
  scheme, colon, rest = dataset.partition(":")
  return dataset in _NAMES or bool(colon and rest and scheme in _SCHEMES)


def read(dataset: str, seed: int) -> Samples:
  """Reads a data set that `is_known`.

  Args:
    dataset: name or URI.
    seed: decides which samples are held out for testing, where the source
      does not say.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the file and what is wrong in it.
  """
  if dataset in _NAMES:
    return _NAMES[dataset](dataset, seed)
  scheme, _, place = dataset.partition(":")
  return _SCHEMES[scheme](dataset, place, seed)
