"""Each built-in network: its size, its gradient, rounds, what it refuses."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl.testing import absltest, parameterized
from jax.flatten_util import ravel_pytree

from agsfl import controllers, sparsifiers
from agsfl.data.federated import ClientData
from agsfl.errors import ConfigError
from agsfl.rounds import build_round
from agsfl.tasks import cross_entropy, token_cross_entropy
from agsfl.training import models, networks
from agsfl.training.client import LocalTraining
from agsfl.types import Form

CLASSES, TOKENS, LENGTH = 5, 11, 7
RATE = 0.5
# Client 0 has two samples, and client 1 has four.
COUNTS, BATCH = (2, 4), 4

_IMAGE, _TEXT = (8, 9, 3), (LENGTH,)
# As registered, but narrow, and the features of a sample.
NARROW = {
    "cnn": (networks.CNN, _IMAGE),
    "cnn_small": (networks.SmallCNN, _IMAGE),
    "resnet9": (
        functools.partial(networks.ResNet9, widths=(4, 6, 8, 8), groups=2),
        _IMAGE,
    ),
    "resnet18_gn": (
        functools.partial(networks.ResNet18, widths=(4, 6)), _IMAGE
    ),
    "mlp": (networks.MLP, (2, 3)),
    "logistic": (networks.Logistic, (2, 3)),
    "lstm": (functools.partial(networks.LSTM, width=6), _TEXT),
    "transformer": (
        functools.partial(networks.Transformer, width=8, heads=2, layers=1),
        _TEXT,
    ),
}
# Their gradients depend on a key; see `DropoutTest`.
RANDOM = {"cnn_small_dropout"}


def form_of(shape):
  """Images or numbers with one label each, or tokens with one label each."""
  if shape is _TEXT:
    return Form(shape, (LENGTH, TOKENS), TOKENS)
  return Form(shape, (CLASSES,))


def samples(form):
  """Features and labels of the samples of both clients."""
  rng, total = np.random.default_rng(0), sum(COUNTS)
  if form.vocabulary:
    text = rng.integers(0, TOKENS, (total, LENGTH + 1)).astype(np.int32)
    return text[:, :-1], text[:, 1:]
  features = rng.normal(size=(total, *form.feature_shape)).astype(np.float32)
  return features, rng.integers(0, CLASSES, total).astype(np.int32)


def weights_of(network, features):
  """Some weights as one vector, and the function back to Flax's tree."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), features)
  rng = np.random.default_rng(1)
  first, unravel = ravel_pytree(jax.tree.map(
      lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes
  ))
  return 0.3 * first, unravel


def plain_loop(network, first, unravel, form, rounds):
  """A loop in Flax and optax, which knows nothing of this package.

  Returns:
    The first gradient of the client with four samples, and the last weights.
  """
  features, labels = samples(form)
  # As many samples of each client: client 0's twice.
  batches = [np.array([0, 1, 0, 1]), np.array([2, 3, 4, 5])]

  @jax.jit
  @jax.grad
  def gradient(params, features, labels):
    outputs = network.apply(unravel(params), features)
    return optax.softmax_cross_entropy_with_integer_labels(
        outputs, labels
    ).mean()

  optimizer, params, of_one = optax.sgd(RATE), first, None
  state = optimizer.init(params)
  for _ in range(rounds):
    each = [gradient(params, features[i], labels[i]) for i in batches]
    of_one = each[1] if of_one is None else of_one
    updates, state = optimizer.update((2 * each[0] + 4 * each[1]) / 6, state)
    params = optax.apply_updates(params, updates)
  return of_one, params


def relative(got, want):
  """The difference of two vectors beside the length of the second."""
  got, want = (np.asarray(x, np.float64) for x in (got, want))
  return np.linalg.norm(got - want) / np.linalg.norm(want)


class BuiltInTest(parameterized.TestCase):

  def test_all_are_here(self):
    built_in = {
        name for name in models.MODELS if not models.MODELS.is_added(name)
    }
    self.assertEqual(built_in, {*NARROW, *RANDOM})

  @parameterized.parameters(*NARROW)
  def test_as_a_plain_loop(self, name):
    """Law: one client's gradient and three rounds are those of a plain loop.

    Each client takes all its samples in each round.
    """
    factory, shape = NARROW[name]
    form = form_of(shape)
    network = factory(form.output_shape[-1])
    features, labels = samples(form)
    first, unravel = weights_of(network, features[:1])
    want = plain_loop(network, first, unravel, form, 3)
    model = models.as_model(network, form)
    simulated = build_round(
        model._replace(init=lambda key: first),
        sparsifiers.send_all(),
        controllers.fixed(1),
        # Its state is what the clients sent.
        server=optax.sgd(RATE, momentum=0.0),
        batch_size=BATCH,
        comm_time=1.0,
        training=LocalTraining(1, optax.sgd(1.0), without_replacement=True),
        loss=token_cross_entropy if form.vocabulary else cross_entropy,
    )
    data = ClientData.of(
        features, labels, np.split(np.arange(sum(COUNTS)), COUNTS[:1])
    )
    start = simulated.init(jax.random.key(1), len(COUNTS))
    step = jax.jit(simulated.step)

    # The client with four samples alone: the other one has none.
    state, _ = step(data.replace(counts=np.int32([0, COUNTS[1]])), start)
    (gradient,) = (
        x for x in jax.tree.leaves(state.server) if x.shape == first.shape
    )
    self.assertLess(relative(gradient, want[0]), 3e-6)

    # How far the weights go, since this is small beside them.
    state = start
    for _ in range(3):
      state, _ = step(data, state)
    self.assertLess(relative(state.params - first, want[1] - first), 3e-6)

  @parameterized.parameters(*NARROW)
  def test_wider_types_change_nothing(self, name):
    """Law: all is float32 with 64-bit types allowed, and strict promotion."""
    factory, shape = NARROW[name]
    form = form_of(shape)
    features = samples(form)[0]
    with jax.enable_x64(True), jax.numpy_dtype_promotion("strict"):
      model = models.as_model(factory(form.output_shape[-1]), form)
      outputs, gradient = jax.eval_shape(
          lambda params: jax.value_and_grad(
              lambda params: jnp.sum(model.apply(params, features))
          )(params),
          jax.eval_shape(model.init, jax.random.key(0)),
      )
    self.assertEqual({outputs.dtype, gradient.dtype}, {np.dtype("float32")})

  @parameterized.parameters(
      # 1,728 + 73,728 + 294,912 + 294,912 + 1,179,648 + 4,718,592 of kernels,
      # 2 * (64 + 3 * 128 + 256 + 3 * 512) of norms, 512 * 10 of outputs.
      ("resnet9", Form((32, 32, 3), (10,)), 6_573_120),
      # By stage 149,824, 525,568, 2,099,712 and 8,393,728 with norms, and
      # 512 * 10 + 10 of outputs.
      ("resnet18_gn", Form((32, 32, 3), (10,)), 11_173_962),
      # As cnn_small.
      ("cnn_small_dropout", Form((32, 32, 3), (10,)), 1_626_442),
      # 90 * 8 + 264 * 1024 + 1024 + 512 * 1024 + 1024 + 256 * 90 + 90.
      ("lstm", Form((80,), (90,), 90), 820_522),
      # Two more inputs than outputs: 16 numbers more.
      ("lstm", Form((80,), (80, 90), 92), 820_538),
      # (90 + 80) * 128 + 2 * (512 + 4 * 16,512 + 66,048 + 65,664) + 256
      # + 128 * 90 + 90.
      ("transformer", Form((80,), (90,), 90), 430_170),
      ("logistic", Form((28, 28), (62,)), 785 * 62),
  )
  def test_dim(self, name, form, dim):
    """Law: the registered network has the weights of its source."""
    self.assertEqual(models.build(name, form).dim, dim)


class SequencesTest(parameterized.TestCase):

  @parameterized.parameters("lstm", "transformer")
  def test_does_not_see_what_comes_later(self, name):
    """Law: a token changes the outputs from its place on, and none before."""
    network = NARROW[name][0](TOKENS)
    tokens = np.arange(2 * LENGTH, dtype=np.int32).reshape(2, -1) % TOKENS
    params, unravel = weights_of(network, tokens)
    apply = jax.jit(lambda tokens: network.apply(unravel(params), tokens))
    before = np.asarray(apply(tokens))
    self.assertEqual(before.shape, (2, LENGTH, TOKENS))
    tokens[:, 4] = TOKENS - 1
    changed = np.any(before != apply(tokens), axis=(0, 2))
    np.testing.assert_array_equal(changed, np.arange(LENGTH) >= 4)

  def test_lstm_is_that_of_flax(self):
    """Law: with the same weights, outputs and gradient of Flax's own layers."""

    class Plain(nn.Module):

      @nn.compact
      def __call__(self, x):
        x = nn.Embed(TOKENS, 8)(x)
        for layer in range(2):
          cell = nn.OptimizedLSTMCell(6, name=f"cell_{layer}")
          x = nn.RNN(cell)(x)
        return nn.Dense(TOKENS)(x)

    def renamed(params):
      """The same weights in Flax's form, gate by gate."""
      tree = {name: params[name] for name in ("Embed_0", "Dense_0")}
      for layer in range(2):
        own = params[f"_Recurrent_{layer}"]
        gates = lambda w: zip("ifgo", jnp.split(w, 4, -1), strict=True)
        cell = {f"h{gate}": {"kernel": w}
                for gate, w in gates(own["recurrent_kernel"])}
        for gate, w in gates(own["Dense_0"]["kernel"]):
          cell[f"i{gate}"] = {"kernel": w}
        for gate, w in gates(own["Dense_0"]["bias"]):
          cell[f"h{gate}"]["bias"] = w
        tree[f"cell_{layer}"] = cell
      return tree

    tokens, labels = samples(form_of(_TEXT))
    network = NARROW["lstm"][0](TOKENS)
    first, unravel = weights_of(network, tokens)
    params = unravel(first)["params"]

    @jax.jit
    def both(params):
      def loss(apply, params):
        outputs = apply(params)
        return token_cross_entropy(outputs, labels).mean(), outputs

      mine = lambda params: network.apply({"params": params}, tokens)
      flax = lambda params: Plain().apply({"params": renamed(params)}, tokens)
      return [
          jax.grad(functools.partial(loss, apply), has_aux=True)(params)
          for apply in (mine, flax)
      ]

    (gradient, outputs), (want_gradient, want) = both(params)
    self.assertLess(relative(outputs, want), 1e-6)
    jax.tree.map(
        lambda got, want: self.assertLess(relative(got, want), 3e-6),
        gradient, want_gradient,
    )


class DropoutTest(absltest.TestCase):

  def test_gradient_of_a_key(self):
    """Law: a key gives Flax's own gradient; evaluation drops nothing."""
    form = form_of(_IMAGE)
    network = models.MODELS["cnn_small_dropout"](CLASSES)
    model = models.as_model(network, form)
    features, labels = samples(form)
    flat, unravel = weights_of(network, features)
    params = unravel(flat)

    @jax.jit
    def gradients(key):
      def mine(flat):
        return cross_entropy(model.apply(flat, features, key, True), labels)

      def flax(params):
        logits = network.apply(
            params, features, train=True, rngs={"dropout": key}
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)

      return (
          jax.grad(lambda flat: mine(flat).mean())(flat),
          ravel_pytree(jax.grad(lambda tree: flax(tree).mean())(params))[0],
      )

    (first, want), (second, _) = (
        gradients(jax.random.key(seed)) for seed in (1, 2)
    )
    self.assertLess(relative(first, want), 3e-6)
    self.assertGreater(relative(second, want), 0.1)

    without = networks.SmallCNN(CLASSES).apply(params, features)
    np.testing.assert_array_equal(model.apply(flat, features), without)


class RefusedTest(parameterized.TestCase):

  @parameterized.parameters(
      ("resnet9", Form((7, 9, 3), (5,)), "at least 8 x 8 pixels, not of 7 x 9"),
      ("resnet18_gn", Form((8, 7), (5,)), "at least 8 x 8 .*, not of 8 x 7"),
      ("resnet9", Form((80,), (5,)), r"takes images.* not \[80\]"),
      ("lstm", Form((80,), (5,)), r"takes tokens.*, not float32\[80\]"),
      ("transformer", Form((8, 8), (5,), 9), r"takes tokens.* int32\[8, 8\]"),
  )
  def test_features_that_do_not_fit(self, name, form, message):
    """Law: one line that names the model, and what it takes."""
    with self.assertRaisesRegex(ConfigError, f"^--model={name}: .*{message}"):
      models.build(name, form)


if __name__ == "__main__":
  absltest.main()
