"""Losses and accuracy, by a loop in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import AxisType

from agsfl import devices
from agsfl.data.federated import ClientData, FederatedData
from agsfl.for_each_client import AXIS
from agsfl.layout import Layout, layout_of
from agsfl.tasks import CLASSIFICATION, TASKS
from agsfl.training import evaluation, models
from agsfl.training.evaluation import build_evaluate

CLASSES = 3


def linear_model(features):
  return models.flatten(
      lambda key: jnp.zeros((features, CLASSES)),
      lambda w, images: images.reshape(len(images), -1) @ w,
  )


def mesh_of(num_devices):
  return jax.make_mesh(
      (num_devices,),
      (AXIS,),
      axis_types=(AxisType.Auto,),
      devices=jax.devices()[:num_devices],
  )


def evaluated(model, data, params, num_devices, shared=True, **changes):
  layout = layout_of([data], mesh_of(num_devices), shared)
  clients = devices.place_clients(data.clients, layout.mesh, layout)
  return build_evaluate(model, data, clients, layout, **changes)(params)


class EvaluationTest(parameterized.TestCase):

  @parameterized.parameters((1, True), (4, True), (2, False), (8, False))
  def test_against_a_loop(self, num_devices, shared):
    """Unequal clients, one empty, one untested, tests of nobody.

    Each device has all samples, or its own ones.
    """
    rng = np.random.default_rng(0)
    count = 3000
    images = rng.normal(size=(count, 4)).astype(np.float32)
    labels = rng.integers(0, CLASSES, count).astype(np.int32)
    order = rng.permutation(count)
    rows = np.split(order[:1700], [900, 900, 1650])
    test_rows = np.sort(order[1700:2900]).astype(np.int32)
    test_clients = rng.choice([-1, 0, 1, 3], len(test_rows)).astype(np.int32)
    data = FederatedData(
        ClientData.of(images, labels, rows),
        test_rows,
        test_clients,
        np.array(["a", "b", "c", "d"]),
        CLASSES,
    )
    params = rng.normal(size=4 * CLASSES).astype(np.float32)
    got = evaluated(linear_model(4), data, params, num_devices, shared)

    logits = images.astype(np.float64) @ params.reshape(4, CLASSES)
    losses = [
        np.log(np.exp(row).sum()) - row[label]
        for row, label in zip(logits, labels, strict=True)
    ]
    losses, right = np.array(losses), logits.argmax(axis=1) == labels
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
    close(got.train_loss, losses[np.concatenate(rows)].mean())
    close(got.test_loss, losses[test_rows].mean())
    close(got.test_accuracy, right[test_rows].mean())
    for client in range(4):
      own = test_rows[test_clients == client]
      if client == 2:
        self.assertEmpty(own)
        self.assertTrue(np.isnan(got.client_test_loss[client]))
        self.assertTrue(np.isnan(got.client_test_accuracy[client]))
      else:
        close(got.client_test_loss[client], losses[own].mean())
        close(got.client_test_accuracy[client], right[own].mean())

  def test_any_loss_on_any_mesh(self):
    """Law: means of the given loss, whatever mesh is in use around."""
    count = 700
    rng = np.random.default_rng(1)
    data = FederatedData(
        ClientData.of(
            rng.normal(size=(count, 2)).astype(np.float32),
            rng.integers(0, CLASSES, count).astype(np.int32),
            [np.arange(600)],
        ),
        np.arange(600, count, dtype=np.int32),
        np.full(100, -1, np.int32),
        np.array(["a"]),
        CLASSES,
    )
    largest = lambda logits, labels: jnp.max(logits, axis=1) + labels
    params = rng.normal(size=2 * CLASSES).astype(np.float32)
    with jax.set_mesh(mesh_of(2)):
      task = TASKS[CLASSIFICATION].with_loss(largest)
      got = evaluated(linear_model(2), data, params, 8, task=task)
    logits = data.clients.features @ params.reshape(2, CLASSES)
    want = logits.max(axis=1) + data.clients.labels
    np.testing.assert_allclose(got.train_loss, want[:600].mean(), rtol=1e-5)
    np.testing.assert_allclose(got.test_loss, want[600:].mean(), rtol=1e-5)

  @parameterized.parameters((1, True), (4, True), (2, False))
  def test_some_training_samples(self, num_devices, shared):
    """Law: different rows of the training samples, the same on any devices.

    Sample i costs 2^i, so the sum of all losses names the samples.
    """
    data = FederatedData(
        ClientData.of(
            np.exp2(np.arange(20, dtype=np.float32))[:, None],
            np.zeros(20, np.int32),
            [np.arange(3, 9), np.arange(9, 18)],
        ),
        np.arange(18, 20, dtype=np.int32),
        np.full(2, -1, np.int32),
        np.array(["a", "b"]),
        CLASSES,
    )
    cost = lambda logits, labels: logits[:, 0]

    def total(number, *devices):
      got = evaluated(
          linear_model(1), data, jnp.ones(CLASSES), *devices,
          task=TASKS[CLASSIFICATION].with_loss(cost), train_samples=number,
      )
      return round(min(number, 15) * got.train_loss)

    seven, of_all = total(7, num_devices, shared), 2**18 - 2**3
    self.assertEqual(seven, total(7, 1, True))
    self.assertEqual(seven.bit_count(), 7)
    self.assertEqual(seven & of_all, seven)
    for number in (15, 99):
      self.assertEqual(total(number, num_devices, shared), of_all)

  def test_devices_share_the_batches(self):
    """Law: each of 4 devices computes a quarter of the rows."""
    mesh = mesh_of(4)
    layout = Layout(mesh)
    parts = np.array_split(np.zeros(3000, np.int32), 4)
    rows, _ = evaluation._in_batches(parts, layout)
    self.assertEqual(rows.shape, (12, 250))
    task = TASKS[CLASSIFICATION]
    of_batches = evaluation._build_of_batches(
        linear_model(2).apply, task.loss, task.share_right
    )
    samples = ClientData(
        jnp.zeros((1, 2)), jnp.zeros(1, int), None, None, None
    )
    with jax.set_mesh(mesh):
      losses, _ = of_batches(
          jnp.zeros(2 * CLASSES), samples, rows
      )
    shapes = [shard.data.shape for shard in losses.addressable_shards]
    self.assertEqual(shapes, [(3, 250)] * 4)

  @parameterized.parameters(0.01, 0.1, 0.69)
  def test_many_samples_do_not_drift(self, loss):
    """All losses alike: their mean is the same, whatever their number.

    Single sums of float32 were off by 0.3% to 0.9% here.
    """
    count = 400_000
    # log(1 + 2 e^-x) is the loss where the right logit leads by x.
    lead = -np.log((np.exp(loss) - 1) / 2)
    data = FederatedData(
        ClientData.of(
            np.ones((count, 1), np.float32),
            np.zeros(count, np.int32),
            [np.arange(count - 1000)],
        ),
        np.arange(count - 1000, count, dtype=np.int32),
        np.zeros(1000, np.int32),
        np.array(["a"]),
        CLASSES,
    )
    params = jnp.array([lead, 0.0, 0.0])
    got = evaluated(linear_model(1), data, params, 1)
    np.testing.assert_allclose(got.train_loss, loss, rtol=1e-4)
    np.testing.assert_allclose(got.test_loss, loss, rtol=1e-4)


if __name__ == "__main__":
  absltest.main()
