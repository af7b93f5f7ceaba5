"""The networks: sizes, the flat weight vector, the losses, refusals."""

import doctest
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.flatten_util import ravel_pytree

from agsfl.errors import ConfigError
from agsfl.tasks import cross_entropy
from agsfl.training import models
from agsfl.training.networks import CNN, MLP, SmallCNN
from agsfl.types import Form, Model
from experiments.benchmark.networks import PlainCNN


class BuiltInTest(parameterized.TestCase):

  @parameterized.parameters(
      ("cnn", (28, 28, 1), 62, 444_062),  # FEMNIST, as the paper has it
      ("cnn", (28, 28, 1), 10, 430_698),
      ("cnn", (28, 28), 10, 430_698),  # one channel
      ("cnn", (32, 32, 3), 10, 555_178),  # CIFAR-10
      # As PyTorch counts the weights of pfl-research's network.
      ("cnn_small", (32, 32, 3), 10, 1_626_442),
      # 320 + 18,496 + 8,320 + 1,290; pooling drops the seventh column.
      ("cnn_small", (6, 7), 10, 28_426),
      ("mlp", (28, 28, 1), 10, 101_770),
      ("mlp", (784,), 10, 101_770),
      ("mlp", (2, 4, 7, 14), 10, 101_770),
  )
  def test_dim(self, name, shape, classes, dim):
    model = models.build(name, Form(shape, (classes,)))
    self.assertEqual(model.dim, dim)
    params = jax.eval_shape(model.init, jax.random.key(0))
    self.assertEqual(params.shape, (dim,))
    logits = jax.eval_shape(model.apply, params, jnp.zeros((3, *shape)))
    self.assertEqual(logits.shape, (3, classes))

  @parameterized.parameters(None, "highest")
  def test_precision_of_all_products(self, precision):
    """Law: forward and backward, each product has the precision."""
    model = models.build(
        "cnn", Form((8, 8), (3,)), precision=precision
    )

    def loss(params):
      return jnp.sum(model.apply(params, jnp.ones((2, 8, 8))))

    text = jax.jit(jax.grad(loss)).lower(jnp.zeros(model.dim)).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.convolution(" in line or "stablehlo.dot_general " in line
    ]
    self.assertGreater(len(products), 12)
    for line in products:
      self.assertEqual("HIGHEST" in line, precision == "highest", line)

  @parameterized.parameters((4, 5, 3), (60,), (6, 10))
  def test_standardized(self, *shape):
    """Law: as the authors' code has it for bytes, sample by sample."""
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 256, (4, *shape))
    levels[1] = 128  # constant
    levels[2] = 128
    levels[2].flat[7] += 1  # flat, with a deviation below the least
    levels[3] = 128 + levels[3] % 2  # two levels: still a picture
    samples = (levels / 255).astype(np.float32)
    want = [
        (sample - sample.mean()) / max(sample.std(), 60**-0.5)
        for sample in levels.astype(np.float64)
    ]
    np.testing.assert_allclose(np.std(want[3]), 1)
    # A level of 128 / 255 is exact to 3e-8 in float32, steps are 4e-3.
    np.testing.assert_allclose(models.standardized(samples), want, atol=1e-3)
    plain, changed = (
        models.build("mlp", Form(shape, (2,)), standardize)
        for standardize in (False, True)
    )
    params = plain.init(jax.random.key(0))
    np.testing.assert_allclose(
        changed.apply(params, jnp.asarray(samples)),
        plain.apply(params, jnp.asarray(want, jnp.float32)),
        atol=1e-3,
    )

  @parameterized.parameters("cnn", "cnn_small", "mlp")
  def test_wider_types_change_nothing(self, name):
    """Law: the same with 64-bit types allowed, and strict promotion."""

    def outcome():
      model = models._build.__wrapped__(
          models.MODELS[name], name, Form((8, 8, 1), (10,)), True, None
      )
      params = model.init(jax.random.key(0))
      images = jnp.linspace(0, 1, 128, dtype=jnp.float32).reshape(2, 8, 8, 1)
      loss = lambda params: jnp.mean(
          cross_entropy(model.apply(params, images), jnp.int32([3, 7]))
      )
      return params, *jax.jit(jax.value_and_grad(loss))(params)

    want = outcome()
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      got = outcome()
    for mine, other in zip(got, want, strict=True):
      self.assertEqual(mine.dtype, jnp.float32)
      np.testing.assert_array_equal(mine, other)

  def test_cnn_is_the_network_of_plain_layers(self):
    """Law: same logits and same gradient, weights matched by name."""
    plain = PlainCNN(10)
    images = jax.random.uniform(jax.random.key(1), (4, 28, 28, 1))
    labels = jnp.array([3, 1, 4, 1])
    model = models.build("cnn", Form((28, 28, 1), (10,)))
    flat = model.init(jax.random.key(2))
    tree = jax.eval_shape(plain.init, jax.random.key(0), images)
    renamed = {
        "Dense_0": "Dense_0",
        "Dense_1": "Dense_1",
        "_Conv_0": "Conv_0",
        "_Conv_1": "Conv_1",
    }
    named = CNN(10).init(jax.random.key(0), images)
    unravel = ravel_pytree(named)[1]

    def plain_logits(flat):
      given = unravel(flat)["params"]
      tree = {"params": {new: given[old] for old, new in renamed.items()}}
      return plain.apply(tree, images)

    self.assertEqual(
        jax.tree.structure(tree["params"]["Conv_0"]),
        jax.tree.structure(named["params"]["_Conv_0"]),
    )
    loss = lambda logits: jnp.mean(cross_entropy(logits, labels))
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
    params = CNN(10).init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    for layer in params["params"].values():
      np.testing.assert_array_equal(layer["bias"], np.float32(0.1))
    kernel = params["params"]["Dense_0"]["kernel"]
    self.assertLessEqual(float(jnp.max(jnp.abs(kernel))), 0.2)
    # The deviation that is left after the cut.
    self.assertAlmostEqual(float(jnp.std(kernel)), 0.08796, places=3)

  def test_small_cnn_starts_as_glorot_and_bengio_do(self):
    """Uniform within sqrt(6 / (inputs + outputs)); biases 0."""
    params = SmallCNN(10).init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
    units = {
        "Conv_0": 9 * (3 + 32),
        "Conv_1": 9 * (32 + 64),
        "Dense_0": 2 * 2 * 64 + 128,
        "Dense_1": 128 + 10,
    }
    self.assertEqual(units.keys(), params["params"].keys())
    for name, layer in params["params"].items():
      np.testing.assert_array_equal(layer["bias"], 0)
      scaled = layer["kernel"] / np.sqrt(6 / units[name])
      self.assertLessEqual(float(jnp.max(jnp.abs(scaled))), 1 + 1e-6)
      # The deviation of a uniform number from -1 to 1.
      self.assertAlmostEqual(float(jnp.std(scaled)), 3**-0.5, delta=0.04)


class Net(nn.Module):
  """What people bring; each field is a way to differ."""

  first: jnp.dtype = jnp.float32
  second: jnp.dtype = jnp.float32
  middle: nn.Module | None = None

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(5, param_dtype=self.first)(x.reshape(len(x), -1))
    if self.middle is not None:
      x = self.middle(x)
    return nn.Dense(3, param_dtype=self.second)(nn.relu(x))


class Plain:
  """Two functions, as people write them for networks of other libraries."""

  def __init__(self, change=lambda logits: logits, extra=()):
    self.change, self.extra = change, extra

  def init(self, key, features):
    weights = jax.random.normal(key, (features.size, 3))
    return {"w": weights, "b": jnp.ones(3), "extra": self.extra}

  def apply(self, params, features):
    rows = features.reshape(len(features), -1)
    return self.change(rows @ params["w"] + params["b"][None])


SHAPE = (2, 3)
FORM = Form(SHAPE, (3,))
FEATURES = jnp.linspace(-1, 1, 24).reshape(4, *SHAPE)


class OwnModelTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("functions", Plain()),
      ("flax", Net()),
      ("bfloat16", Net(jnp.bfloat16, jnp.bfloat16)),
      ("float16", Net(jnp.float16, jnp.float16)),
      ("mixed", Net(jnp.bfloat16)),
      ("group_norm", Net(middle=nn.GroupNorm(5))),
  )
  def test_is_the_network(self, network):
    """Law: flat, float32, and the logits and gradients of the tree."""
    model, key = models.as_model(network, FORM), jax.random.key(0)
    tree = network.init(key, jnp.zeros((1, *SHAPE)))
    params = model.init(key)
    self.assertEqual((params.shape, params.dtype), ((model.dim,), jnp.float32))
    leaves = [np.float32(leaf).ravel() for leaf in jax.tree.leaves(tree)]
    np.testing.assert_array_equal(params, np.concatenate(leaves))
    self.assertEqual(model.sizes, tuple(map(len, leaves)))

    def total(apply):
      def logits_and_total(params):
        logits = apply(params, FEATURES)
        return jnp.sum(jnp.cos(logits.astype(jnp.float32))), logits

      return jax.jit(jax.value_and_grad(logits_and_total, has_aux=True))

    (_, logits), gradient = total(model.apply)(params)
    (_, want), of_tree = total(network.apply)(tree)
    self.assertEqual(logits.dtype, jnp.float32)
    np.testing.assert_allclose(logits, np.float32(want), rtol=1e-6)
    np.testing.assert_allclose(
        gradient,
        np.concatenate(
            [np.float32(leaf).ravel() for leaf in jax.tree.leaves(of_tree)]
        ),
        rtol=1e-5,
        atol=1e-6,
    )

  def test_a_model_stays_itself(self):
    """So that runs of one model share what is compiled for it."""
    model = models.build("mlp", FORM)
    self.assertIs(models.as_model(model, FORM), model)
    changed = models.as_model(model, FORM, standardize=True)
    params = model.init(jax.random.key(0))
    np.testing.assert_allclose(
        changed.apply(params, FEATURES),
        model.apply(params, models.standardized(FEATURES)),
        rtol=1e-6,
    )

  @parameterized.named_parameters(
      ("none", None, "init.*apply"),
      ("class", Net, "init.*apply"),
      ("counter", Plain(extra=jnp.int32(0)), r"\['extra'\].*int32"),
      ("mask", Plain(extra=(jnp.ones(3, bool),)), r"\['extra'\]\[0\].*bool"),
      ("empty", nn.relu, "init.*apply"),
      ("no_parameters", nn.Sequential([nn.relu]), "no parameters"),
      ("batch_norm", Net(middle=nn.BatchNorm(True)), "batch_stats.*GroupNorm"),
      ("dropout", Net(middle=nn.Dropout(0.5, deterministic=False)), "Dropout"),
      ("pair", Plain(lambda y: (y, y)), "gives tuple"),
      ("one_axis", Plain(lambda y: y[:, 0]), r"gives float32\[2\]"),
      ("one_row", Plain(lambda y: y[:1]), r"gives float32\[1, 3\] for B = 2"),
      ("whole", Plain(lambda y: y.astype(int)), r"gives int32\[2, 3\]"),
      (
          "sizes",
          Model(lambda key: jnp.zeros(3), lambda w, x: x @ w, (4,)),
          r"float32\[4\].*float32\[3\]",
      ),
  )
  def test_refuses(self, network, message):
    with self.assertRaisesRegex(ConfigError, f"^--model=net: .*{message}") as e:
      models.as_model(network, FORM, name="net")
    self.assertNotIn("\n", str(e.exception))

  @parameterized.parameters(
      (nn.BatchNorm(False), "BatchNorm"),
      (nn.Dropout(0.5, deterministic=False), "Dropout"),
  )
  def test_flatten_refuses_when_traced(self, middle, message):
    """The features' shape is not known before."""
    net = Net(middle=middle)
    model = models.flatten(
        lambda key: net.init(key, jnp.zeros((1, *SHAPE))), net.apply
    )
    with self.assertRaisesRegex(ConfigError, f"^model: .*{message}"):
      model.apply(model.init(jax.random.key(0)), FEATURES)

  @parameterized.parameters(
      ("cnn", (6,), r"images.*\[6\]"),
      ("cnn_small", (6,), r"images.*\[6\]"),
      ("cnn_small", (9, 5, 1), r"images.* 6 x 6 .* 9 x 5"),
  )
  def test_cnns_take_images_alone(self, name, shape, message):
    with self.assertRaisesRegex(ConfigError, f"^--model={name}: .*{message}"):
      models.build(name, Form(shape, (3,)))

  def test_doctests(self):
    failed, attempted = doctest.testmod(models)
    self.assertEqual(failed, 0)
    self.assertGreater(attempted, 0)


class RegisterTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(models.MODELS._added))

  def test_the_last_of_a_name_is_built(self):
    """Law: a name stands for the network that came last, and is built once."""
    register = models.register_model("mine")
    self.assertIs(register(CNN), CNN)
    form = Form((8, 8), (10,))
    first = models.build("mine", form)
    self.assertIs(models.build("mine", form), first)
    register(MLP)
    second = models.build("mine", form)
    self.assertEqual(second.dim, models.build("mlp", form).dim)
    self.assertNotEqual(second.dim, first.dim)

  def test_refuses(self):
    for name in ("cnn", "two words", ""):
      with self.assertRaisesRegex(ConfigError, "^--model="):
        models.register_model(name)(MLP)
    models.register_model("few")(lambda num_classes: Plain())
    with self.assertRaisesRegex(ConfigError, "^--model=few: .*shape 3 .* 4"):
      models.build("few", Form(SHAPE, (4,)))


if __name__ == "__main__":
  absltest.main()
