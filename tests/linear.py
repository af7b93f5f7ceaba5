"""A linear model on clients of one sample each, of which all is known.

Every minibatch of a client is the same, so its gradient has no chance in it.
"""

import jax
import numpy as np

from agsfl.data.federated import ClientData
from agsfl.training import models

NUM_CLIENTS, FEATURES, CLASSES = 5, 8, 3
DIM = FEATURES * CLASSES
COUNTS = (3, 1, 4, 1, 5)
BATCH = 4


def linear_model():
  """Logits are x @ w; no bias, so that the oracle is two lines."""
  return models.flatten(
      lambda key: jax.random.normal(key, (FEATURES, CLASSES)),
      lambda w, features: features.reshape(len(features), -1) @ w,
  )


def one_sample_each(seed=0, num_clients=NUM_CLIENTS):
  """Features [N, F] and labels [N], a row for each client."""
  rng = np.random.default_rng(seed)
  features = rng.normal(size=(num_clients, FEATURES)).astype(np.float32)
  return features, rng.integers(0, CLASSES, num_clients).astype(np.int32)


def weighted(features, labels, counts):
  """Client i holds its sample counts[i] times; the last is nobody's, NaN."""
  nobody = np.full((1, *features.shape[1:]), np.nan, np.float32)
  return ClientData.of(
      np.concatenate([features, nobody]),
      np.append(labels, 0).astype(np.int32),
      [np.full(count, client) for client, count in enumerate(counts)],
  )


def example():
  """Clients of `COUNTS` copies of one sample each."""
  return weighted(*one_sample_each(), COUNTS)


def losses_and_gradients(w, features, labels):
  """Softmax regression by hand, for each sample: gradient x (p - onehot(y)).

  Args:
    w: [D] weights.
    features, labels: [N, F], [N].

  Returns:
    ([N], [N, D]), float64.
  """
  w = np.asarray(w, np.float64).reshape(FEATURES, CLASSES)
  losses, gradients = [], []
  for x, y in zip(features.astype(np.float64), labels, strict=True):
    logits = x @ w
    p = np.exp(logits - logits.max())
    p /= p.sum()
    losses.append(-np.log(p[y]))
    p[y] -= 1
    gradients.append(np.outer(x, p).ravel())
  return np.array(losses), np.array(gradients)
