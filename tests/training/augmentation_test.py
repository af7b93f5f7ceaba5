"""Flips and crops, by a loop in NumPy; and random numbers in networks."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl.config import Config
from agsfl.data.federated import ClientData
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one
from agsfl.training import models
from agsfl.training.augmentation import crop_flip, flip
from agsfl.training.client import LocalTraining, build_client
from agsfl.training.optimizers import local
from agsfl.types import Form

IMAGE = np.arange(1, 61, dtype=np.uint8).reshape(5, 4, 3)


def outcomes(image):
  """What `crop_flip` may give, as bytes: two mirrors, 9 x 9 places."""
  found = {}
  for mirrored in (False, True):
    seen = image[:, ::-1] if mirrored else image
    padded = np.zeros((13, 12, 3), image.dtype)
    padded[4:9, 4:8] = seen
    for i in range(9):
      for j in range(9):
        crop = padded[i : i + 5, j : j + 4]
        found.setdefault(crop.tobytes(), []).append((mirrored, i, j))
  return found


class AugmentationTest(parameterized.TestCase):

  @parameterized.parameters(np.uint8, np.float32)
  def test_crop_flip_is_uniform(self, dtype):
    """Law: each of the 162 outcomes alike, sample by sample; no other one."""
    image, count = IMAGE.astype(dtype), 162 * 60
    batch = np.broadcast_to(image, (count, *image.shape))
    got = np.asarray(jax.jit(crop_flip)(jax.random.key(0), batch))
    self.assertEqual(got.dtype, dtype)
    possible = outcomes(image)
    counts = collections.Counter(one.tobytes() for one in got)
    self.assertLessEqual(counts.keys(), possible.keys())
    # Corners that show nothing of the image are one outcome together.
    want = np.array([60 * len(places) for places in possible.values()])
    seen = np.array([counts[one] for one in possible])
    chi_square = np.sum((seen - want) ** 2 / want)
    free = len(want) - 1
    self.assertLess(chi_square, free + 4 * np.sqrt(2 * free))

  def test_flip_mirrors_half(self):
    batch = np.broadcast_to(IMAGE, (1000, *IMAGE.shape))
    got = np.asarray(flip(jax.random.key(1), batch))
    mirrored = (got == IMAGE[:, ::-1]).all(axis=(1, 2, 3))
    self.assertTrue((got[~mirrored] == IMAGE).all())
    self.assertLess(abs(mirrored.sum() - 500), 4 * np.sqrt(250))

  def test_gradients_are_those_of_the_changed_images(self):
    """Law: as on the changed data, in each local step."""
    model = models.as_model(Noisy(0.0), FORM)
    changed = lambda key, features: jnp.full_like(features, 0.25)
    for steps in (1, 3):
      got, want = (
          client_of(model, steps, **how)(jax.random.key(1))
          for how in ({"augment": changed}, {"x": np.full_like(X, 0.25)})
      )
      np.testing.assert_allclose(got.gradient, want.gradient, rtol=1e-5)
      np.testing.assert_array_equal(got.sample, want.sample)

  def test_refuses_what_is_no_image(self):
    data = agsfl.from_arrays(np.eye(20)[:, :8], np.arange(20) % 2)
    config = Config(model="mlp", augmentation="flip", num_devices=1)
    with self.assertRaisesRegex(
        ConfigError, r"^--augmentation=flip: takes images.*\[8\]"
    ):
      agsfl.simulate(config, data=data)


class Noisy(nn.Module):
  """Dropout between two layers."""

  rate: float = 0.5

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(6)(x.reshape(len(x), -1))
    x = nn.Dropout(self.rate, deterministic=not train)(x)
    return nn.Dense(3)(x)


class NoisyFunctions:
  """The same with two functions, as for networks of other libraries."""

  def __init__(self):
    self.module = Noisy()

  def init(self, key, features):
    return self.module.init(key, features, train=False)

  def apply(self, params, features, key, train):
    return self.module.apply(
        params, features, train, rngs={"dropout": key} if train else None
    )


FORM = Form((4,), (3,))
X = np.linspace(-1, 1, 80, dtype=np.float32).reshape(20, 4)


def client_of(
    model, steps, x=X, rate=0.1, augment=None, classes=3, **training
):
  """key -> what one client sends after some local steps."""
  own = None
  if steps > 1 or training:
    own = LocalTraining(steps, local("sgd"), **training)
  client = build_client(model, 5, own, augment=augment)
  labels = np.arange(20, dtype=np.int32) % classes
  data = ClientData.of(x, labels, [np.arange(20)])
  data = jax.tree.map(jnp.asarray, data)
  params = model.init(jax.random.key(0))
  return jax.jit(
      lambda key: client(key, params, data, 0, 20, jnp.float32(rate))
  )


class NoiseTest(parameterized.TestCase):

  @parameterized.parameters(Noisy, NoisyFunctions)
  def test_training_draws_and_evaluation_does_not(self, network):
    """Law: training is the module's apply with some key, evaluation without.

    A rate of 0 would drop nothing: then both are the same.
    """
    model = models.as_model(network(), FORM)
    self.assertTrue(model.needs_key)
    module, key = Noisy(), jax.random.key(5)
    tree = module.init(jax.random.key(0), X[:1], train=False)
    params = model.init(jax.random.key(0))
    plain = module.apply(tree, X, train=False)
    np.testing.assert_allclose(model.apply(params, X), plain, rtol=1e-6)
    noisy = model.apply(params, X, key, True)
    self.assertGreater(float(jnp.max(abs(noisy - plain))), 0.01)
    np.testing.assert_array_equal(noisy, model.apply(params, X, key, True))
    other = model.apply(params, X, jax.random.key(6), True)
    self.assertGreater(float(jnp.max(abs(noisy - other))), 0.01)
    still = models.as_model(Noisy(0.0), FORM)
    np.testing.assert_array_equal(
        still.apply(params, X, key, True), still.apply(params, X)
    )

  @parameterized.parameters(1, 3)
  def test_draws_depend_on_the_key_alone(self, steps):
    """Law: one client alone, or among others in any way, sends the same."""
    model = models.as_model(Noisy(), FORM)
    keys = jax.random.split(jax.random.key(1), 3)
    client = client_of(model, steps)
    of_one = lambda key: client(key).gradient
    alone = np.stack([of_one(key) for key in keys])
    np.testing.assert_allclose(jax.vmap(of_one)(keys), alone, atol=1e-6)
    in_turn = one_by_one(of_one, (0,))(keys)
    np.testing.assert_allclose(in_turn, alone, atol=1e-6)
    self.assertGreater(np.abs(alone[0] - alone[1]).max(), 1e-3)

  @parameterized.parameters("dropout", "augmentation")
  def test_each_step_and_client_draws_anew(self, kind):
    """Law: where all samples are alike and eta is 0, only noise differs.

    Without noise n steps send n times the first gradient, and all clients send
    the same.
    """
    alike = np.full_like(X, 0.5)
    scaled = lambda key, x: x * jax.random.uniform(key, (len(x), 1))
    how = {"x": alike, "rate": 0.0, "classes": 1}
    model = models.as_model(Noisy(0.5 if kind == "dropout" else 0.0), FORM)
    if kind == "augmentation":
      how["augment"] = scaled
    one, two = jax.random.split(jax.random.key(3))
    differ = lambda a, b: np.abs(a - b).max() > 1e-3
    of = lambda steps: client_of(model, steps, **how, without_replacement=True)
    of_one, of_three = of(1), of(3)
    first = of_one(one).gradient
    self.assertTrue(differ(first, of_one(two).gradient))
    self.assertTrue(differ(of_three(one).gradient, 3 * first))
    how.pop("augment", None)
    model = models.as_model(Noisy(0.0), FORM)
    np.testing.assert_allclose(
        of(3)(one).gradient, 3 * of(1)(one).gradient, rtol=1e-5
    )

  def test_does_not_depend_on_calls(self):
    """Law: a run with noise is the same in one call as in single rounds."""
    data = agsfl.from_arrays(X, np.arange(20) % 3, task="classification")
    settings = {"num_rounds": 4, "num_devices": 1, "method": "send_all"}
    runs = [
        agsfl.simulate(
            Config(rounds_per_call=length, **settings),
            data=data, model=Noisy(),
        )
        for length in (1, 4)
    ]
    self.assertEqual(runs[0].rows, runs[1].rows)
    quiet = agsfl.simulate(Config(**settings), data=data, model=Noisy(0.0))
    self.assertNotEqual(quiet.rows, runs[0].rows)


if __name__ == "__main__":
  absltest.main()
