"""The networks: sizes, the flat weight vector, the losses."""

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.flatten_util import ravel_pytree

from agsfl.training import models
from experiments.lib.baselines import PlainCNN


class ModelsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("cnn", (28, 28, 1), 62, 444_062),  # FEMNIST, as the paper has it
      ("cnn", (28, 28, 1), 10, 430_698),
      ("mlp", (28, 28, 1), 10, 101_770),
      ("cnn", (32, 32, 3), 10, 555_178),  # CIFAR-10
  )
  def test_dim(self, name, shape, classes, dim):
    model = models.build(name, shape, classes)
    self.assertEqual(model.dim, dim)
    params = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(params.shape, (dim,))
    logits = jax.eval_shape(model.apply, params, jnp.zeros((3, *shape)))
    self.assertEqual(logits.shape, (3, classes))

  def test_standardized(self):
    """Law: (x - mean) / max(deviation, 1 / sqrt(H W C)), image by image."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=(3, 4, 5, 3)).astype(np.float32)
    images[1] = 0.5  # constant
    images[2] = 0.5 + 1e-3 * images[2]  # almost
    want = [
        (image - image.mean()) / max(image.std(), 60**-0.5)
        for image in images.astype(np.float64)
    ]
    np.testing.assert_allclose(models.standardized(images), want, atol=1e-5)
    plain, changed = (
        models.build("mlp", (4, 5, 3), 2, standardize)
        for standardize in (False, True)
    )
    params = plain.init(jax.random.key(0))
    np.testing.assert_allclose(
        changed.apply(params, jnp.asarray(images)),
        plain.apply(params, jnp.asarray(want, jnp.float32)),
        atol=1e-5,
    )

  def test_cnn_is_the_network_of_plain_layers(self):
    """Law: same logits and same gradient, the weights dealt by name."""
    plain = PlainCNN(10)
    images = jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    labels = jnp.array([3, 1, 4, 1])
    model = models.build("cnn", (28, 28, 1), 10)
    flat = model.init(jax.random.key(2))
    tree = jax.eval_shape(plain.init, jax.random.key(0), images)
    renamed = {
        "Dense_0": "Dense_0",
        "Dense_1": "Dense_1",
        "_Conv_0": "Conv_0",
        "_Conv_1": "Conv_1",
    }
    named = models.CNN(10).init(jax.random.key(0), images)
    unravel = ravel_pytree(named)[1]

    def plain_logits(flat):
      given = unravel(flat)["params"]
      tree = {"params": {new: given[old] for old, new in renamed.items()}}
      return plain.apply(tree, images)

    self.assertEqual(
        jax.tree.structure(tree["params"]["Conv_0"]),
        jax.tree.structure(named["params"]["_Conv_0"]),
    )
    loss = lambda logits: jnp.mean(models.sample_losses(logits, labels))
    ours, plains = (
        jax.jit(jax.value_and_grad(lambda flat, of=of: loss(of(flat))))
        for of in (lambda flat: model.apply(flat, images), plain_logits)
    )
    got, gradient = ours(flat)
    want, plain_gradient = plains(flat)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(
        gradient,
        plain_gradient,
        rtol=0,
        atol=1e-4 * float(jnp.max(jnp.abs(plain_gradient))),
    )

  def test_cnn_starts_as_the_authors_do(self):
    """Normal of deviation 0.1, cut at two deviations; biases 0.1."""
    params = models.CNN(10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    for layer in params["params"].values():
      np.testing.assert_array_equal(layer["bias"], np.float32(0.1))
    kernel = params["params"]["Dense_0"]["kernel"]
    self.assertLessEqual(float(jnp.max(jnp.abs(kernel))), 0.2)
    # The deviation that is left after the cut.
    self.assertAlmostEqual(float(jnp.std(kernel)), 0.08796, places=3)

  def test_any_function_can_be_plugged_in(self):
    init = lambda key: {"w": jax.random.normal(key, (4, 3)), "b": jnp.ones(3)}
    apply = lambda p, x: x.reshape(len(x), -1) @ p["w"] + p["b"][None]
    model = models.flatten(init, apply)
    self.assertEqual(model.dim, 15)
    images = jnp.arange(8.0).reshape(2, 2, 2)
    key = jax.random.key(0)
    np.testing.assert_allclose(
        model.apply(model.init(key), images), apply(init(key), images)
    )

  def test_sample_losses_by_hand(self):
    """Equal logits over 4 classes cost log 4; certainty costs nothing."""
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 99.0, 0.0, 0.0]])
    losses = models.sample_losses(logits, jnp.array([2, 1]))
    np.testing.assert_allclose(losses, [np.log(4), 0], atol=1e-6)


if __name__ == "__main__":
  absltest.main()
