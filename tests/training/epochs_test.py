"""Epochs: each sample once, in minibatches of which the last may be short."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.training import epochs

BATCH = 4


def batches(count, steps, seed=0):
  """The samples of each minibatch; their weights are checked by hand."""
  draw = jax.jit(jax.vmap(
      lambda step, count: epochs.batch_of(
          jax.random.key(seed), step, count, BATCH
      ),
      in_axes=(0, None),
  ))
  taken = []
  for chosen, weights in zip(
      *draw(jnp.arange(steps), jnp.int32(count)), strict=True
  ):
    real = np.asarray(weights) > 0
    # The real samples have the mean's weight, and the others are in the range.
    np.testing.assert_allclose(weights[real], 1 / np.sum(real), rtol=1e-6)
    assert np.all((np.asarray(chosen) >= 0) & (np.asarray(chosen) < count))
    taken.append(np.asarray(chosen)[real].tolist())
  return taken


class EpochsTest(parameterized.TestCase):

  @parameterized.parameters(
      (1, [1]), (3, [3]), (4, [4]), (5, [4, 1]), (8, [4, 4]), (11, [4, 4, 3])
  )
  def test_each_sample_once(self, count, sizes):
    """Law: every pass has each sample once, and its sizes are those by hand."""
    num = int(epochs.batches_per_epoch(jnp.int32(count), BATCH))
    self.assertLen(sizes, num)
    taken = batches(count, 3 * num)
    self.assertEqual([len(batch) for batch in taken], 3 * sizes)
    passes = np.concatenate(taken).reshape(3, count).tolist()
    for one in passes:
      self.assertEqual(sorted(one), list(range(count)))
    if count > 4:  # fewer have few orders
      self.assertLen(set(map(tuple, passes)), 3)
      self.assertNotEqual(batches(count, num, seed=1), taken[:num])
    # The number of samples, at any place of an epoch.
    for steps in range(3 * num + 1):
      self.assertEqual(
          epochs.samples_in(jnp.int32(steps), jnp.int32(count), BATCH),
          sum(len(batch) for batch in taken[:steps]),
      )


if __name__ == "__main__":
  absltest.main()
