"""The other methods in plain NumPy; see `reference` for FAB and the symbols."""

import numpy as np

from tests import reference


def _result(a, counts, mask, client_mask, k):
  """A `reference.Selection` from J and what of it each client sent."""
  weights = np.asarray(counts, np.float64) / np.sum(counts)
  sent = np.where(client_mask, a, 0)
  return reference.Selection(
      mask=mask,
      client_mask=client_mask,
      aggregate=weights @ sent.astype(np.float64),
      residual=np.where(client_mask, 0, a),
      sent=sent,
      kappa=k,
  )


def _members(indices, dim):
  mask = np.zeros(dim, bool)
  mask[list(indices)] = True
  return mask


def _sent_up(a, k):
  """[N, D] bool: J_i."""
  dim = a.shape[1]
  return np.array([_members(reference.largest(a_i, k), dim) for a_i in a])


def fub_flat(a, counts, k):
  """J is the k largest of the sum of all that was sent."""
  up = _sent_up(a, k)
  total = _result(a, counts, None, up, k).aggregate
  # The package sums in float32; equal magnitudes there are equal here.
  mask = _members(reference.largest(total.astype(np.float32), k), a.shape[1])
  return _result(a, counts, mask, up & mask, k)


def fub_tree(a, counts, k):
  """Neighbours merge pair by pair; each merge sends on its k largest."""
  dim = a.shape[1]
  alive = _sent_up(a, k)
  weights = np.asarray(counts, np.float64) / np.sum(counts)
  nodes = [
      ([i], np.where(alive[i], weights[i] * a[i].astype(np.float64), 0))
      for i in range(len(a))
  ]
  while len(nodes) > 1:
    merged = []
    for left, right in zip(nodes[::2], nodes[1::2], strict=False):
      clients, total = left[0] + right[0], left[1] + right[1]
      sent_on = _members(reference.largest(total.astype(np.float32), k), dim)
      alive[clients] &= sent_on
      merged.append((clients, np.where(sent_on, total, 0)))
    if len(nodes) % 2:
      merged.append(nodes[-1])
    nodes = merged
  root = nodes[0][1].astype(np.float32)
  mask = _members(reference.largest(root, k), dim)
  return _result(a, counts, mask, alive & mask, k)


def unidirectional(a, counts, k):
  """J is the union of all J_i."""
  up = _sent_up(a, k)
  return _result(a, counts, up.any(0), up, k)
