"""LoRA: adapters against merged weights, their number, their memory."""

import dataclasses
import doctest
import math
import re
import tempfile
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.flatten_util import ravel_pytree

import agsfl
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one
from agsfl.parts import Parts, build_model
from agsfl.simulation import identity_of
from agsfl.training import lora as lora_file
from agsfl.training.lora import lora
from agsfl.training.models import as_model
from agsfl.training.networks import (
  CNN,
  LSTM,
  MLP,
  Transformer,
)
from agsfl.types import Form
from experiments import run
from tests import small

RANK, ALPHA = 2, 6.0


class Tied(nn.Module):
  """The rows of tokens are both its first and its last layer."""

  @nn.compact
  def __call__(self, x):
    embed = nn.Embed(11, 8)
    return embed.attend(nn.Dense(8)(embed(x)))


class Layer(nn.Module):
  """One of a stack whose weights Flax has as one array."""

  @nn.compact
  def __call__(self, x, _):
    return jnp.tanh(nn.Dense(6)(x)), None


class Stack(nn.Module):
  """Three layers by `nn.scan`, one by `nn.remat`, one called twice."""

  @nn.compact
  def __call__(self, x):
    stacked = nn.scan(
        Layer, variable_axes={"params": 0}, split_rngs={"params": True},
        length=3,
    )
    x = nn.remat(nn.Dense)(6)(stacked()(x, None)[0])
    twice = nn.Dense(6)
    return twice(jnp.tanh(twice(x)))


class Frozen(nn.Module):
  """Only the last layer is of a kind that gets adapters."""

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), feature_group_count=3)(x)
    x = nn.Conv(2, (2, 2), mask=jnp.ones((2, 2, 6, 2)))(x)
    x = nn.GroupNorm(2)(nn.ConvTranspose(4, (2, 2))(x))
    return nn.Dense(5)(x.reshape(len(x), -1))


class Strided(nn.Module):
  """A convolution whose every field differs from its default."""

  @nn.compact
  def __call__(self, x):
    conv = nn.Conv(
        5, (3, 2), strides=2, padding="CIRCULAR", kernel_dilation=2,
        use_bias=False,
    )
    return conv(x).reshape(len(x), -1)


def merged(variables, scale):
  """W + scale A B in place of W, in plain JAX.

  Args:
    variables: of the module and of its adapters, in one tree.
    scale: alpha / rank.

  Returns:
    The module's variables.
  """
  flat = flatten_dict(variables)
  result = {}
  for path, leaf in flat.items():
    layer, name = path[:-1], path[-1]
    if not {"lora_a", "lora_b"}.isdisjoint(path):
      continue
    if (down := flat.get((*layer, "lora_a", name))) is not None:
      up = flat[*layer, "lora_b"]
      # A layer of `nn.scan` has an axis of layers before its own ones.
      product = lambda a, b: jnp.tensordot(a, b, 1)
      if "ScanLayer_0" in path:
        product = jax.vmap(product)
      leaf = leaf + scale * product(down, up)
    result[path] = leaf
  return unflatten_dict(result)


# The network, what it sees of a sample, tokens, and D of its adapters of
# rank 2: for each layer 2 (inputs + outputs).
NETWORKS = (
    (MLP(10), (8, 8), None, 2 * (64 + 128) + 2 * (128 + 10)),
    (Strided(), (7, 6, 3), None, 2 * (3 * 2 * 3 + 5)),
    (
        CNN(10), (8, 8), None,
        2 * (25 + 32) + 2 * (25 * 32 + 32) + 2 * (128 + 256) + 2 * (256 + 10),
    ),
    (Tied(), (5,), 11, 2 * (11 + 8) + 2 * (8 + 8)),
    (Stack(), (6,), None, 5 * 2 * (6 + 6)),
    (Frozen(), (6, 6, 3), None, 2 * (144 + 5)),
    (
        LSTM(11, width=6), (5,), 11,
        2 * (11 + 8) + 2 * (8 + 24) + 2 * (6 + 24) + 2 * (6 + 11),
    ),
    (
        Transformer(11, width=8, heads=2, layers=1), (5,), 11,
        2 * (11 + 8) + 4 * 2 * (8 + 8) + 2 * 2 * (8 + 32) + 2 * (8 + 11),
    ),
)


def drawn(shapes):
  """Random arrays, NumPy; a product with one leaves inputs in their range."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda x: np.float32(
          rng.standard_normal(x.shape) / np.sqrt(np.prod(x.shape[:-1]))
      ),
      shapes,
  )


def traced(init, *args):
  """Shapes and types of what `init` draws; nothing is computed."""
  return jax.eval_shape(init, jax.random.key(0), *args)


class AdaptersTest(parameterized.TestCase):

  @parameterized.named_parameters(
      (type(network).__name__, network, *rest) for network, *rest in NETWORKS
  )
  def test_is_training_of_merged_weights(self, network, shape, tokens, dim):
    """Law: outputs and gradient are those of W + (alpha / r) A B.

    With B = 0 they are those of the frozen network but for the last bits,
    because XLA orders sums anew.
    """
    rng = np.random.default_rng(1)
    features = np.float32(rng.standard_normal((3, *shape)))
    if tokens is not None:
      features = rng.integers(0, tokens, (3, *shape), np.int32)
    frozen = drawn(traced(network.init, features))
    plain = lambda variables: network.apply(variables, features)
    outputs = jax.eval_shape(plain, frozen)
    adapted = lora(network, ravel_pytree(frozen)[0], RANK, ALPHA)
    model = as_model(adapted, Form(shape, outputs.shape[1:], tokens))
    self.assertEqual(model.dim, dim)
    adapters = drawn(traced(adapted.init, features))
    start = {
        path: 0 * leaf if "lora_b" in path else leaf
        for path, leaf in flatten_dict(adapters).items()
    }

    def of_merged(adapters):
      both = flatten_dict(frozen) | flatten_dict(adapters)
      return plain(merged(unflatten_dict(both), ALPHA / RANK))

    def of_flat(adapters):
      return model.apply(ravel_pytree(adapters)[0], features)

    def of_both(adapters, start):
      with_gradient = [
          jax.value_and_grad(
              lambda x, of=of: (lambda y: (jnp.sum(jnp.cos(y)), y))(of(x)),
              has_aux=True,
          )(adapters)
          for of in (of_flat, of_merged)
      ]
      return with_gradient, of_flat(start), plain(frozen)

    both, at_start, of_frozen = jax.jit(of_both)(
        adapters, unflatten_dict(start)
    )
    last_bits = 16 * np.finfo(np.float32).eps
    np.testing.assert_allclose(
        at_start, of_frozen, rtol=0, atol=last_bits * np.max(np.abs(of_frozen))
    )
    ((_, got), gradient), ((_, want), wanted) = both
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    self.assertGreater(float(jnp.max(jnp.abs(want - of_frozen))), 0.1)
    gradient, wanted = ravel_pytree(gradient)[0], ravel_pytree(wanted)[0]
    scale = float(jnp.max(jnp.abs(wanted)))
    np.testing.assert_allclose(gradient, wanted, rtol=0, atol=2e-4 * scale)


class Noisy(nn.Module):
  """Draws random numbers in training, or has a state."""

  norm: bool = False

  @nn.compact
  def __call__(self, x, train):
    x = nn.Dense(8, param_dtype=jnp.bfloat16)(x)
    if self.norm:
      x = nn.BatchNorm(use_running_average=not train)(x)
    return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class Inherits(nn.Dense):
  """May compute anything, so nothing is added to it."""


class UseTest(parameterized.TestCase):

  def test_first_adapters(self):
    """Laws: B is 0; A has variance 1 / inputs; one layer adds exactly 0."""
    module, features = nn.Dense(50), np.ones((1, 400), np.float32)
    frozen = drawn(traced(module.init, features))
    network = lora(module, ravel_pytree(frozen)[0], 100)
    adapters = network.init(jax.random.key(3), features)
    np.testing.assert_array_equal(adapters["params"]["lora_b"], 0)
    down = adapters["params"]["lora_a"]["kernel"]
    self.assertEqual(down.shape, (400, 100))
    self.assertAlmostEqual(float(jnp.mean(down)), 0, delta=1e-3)
    self.assertAlmostEqual(float(jnp.std(down)), 400**-0.5, delta=1e-3)
    np.testing.assert_array_equal(
        network.apply(adapters, features), module.apply(frozen, features)
    )

  def test_draws_random_numbers_in_training(self):
    """Law: a key decides the outputs in training, none is in evaluation."""
    shape = (4, 5)
    frozen = drawn(traced(lambda key: Noisy().init(
        key, jnp.zeros(shape), train=False
    )))
    network = lora(Noisy(), ravel_pytree(frozen)[0], RANK)
    model = as_model(network, Form((5,), (3,)))
    self.assertTrue(model.needs_key)
    params, features = model.init(jax.random.key(0)), jnp.ones(shape)
    np.testing.assert_allclose(
        model.apply(params, features),
        Noisy().apply(frozen, features, train=False),
        rtol=1e-2,  # bfloat16
    )
    outputs = [
        model.apply(params, features, jax.random.key(seed), True)
        for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(outputs[0], outputs[1])
    self.assertGreater(float(jnp.max(jnp.abs(outputs[0] - outputs[2]))), 0.1)

  def test_what_cannot_be_used(self):
    form = Form((4,), (3,))
    for use, words in (
        (
            lambda: lora(lora, np.ones(15), 1),
            "--model=function: must be a Flax Linen module",
        ),
        (
            lambda: lora(nn.Dense(3), np.ones(15), 0),
            "--lora_rank=0: must be a whole number, at least 1",
        ),
        (
            lambda: as_model(lora(nn.Dense(3), np.ones(16), 1), form),
            r"--weights=\[16\]: must be \[15\], as the network has",
        ),
        (
            lambda: as_model(lora(Inherits(3), np.ones(15), 1), form),
            "--lora_rank=1: must be unset, because the network has no layer of "
            "Dense, DenseGeneral, Conv, Embed",
        ),
        (
            lambda: as_model(lora(Noisy(norm=True), np.ones(99), 1), form),
            r"must have no state \(BatchNorm; take GroupNorm\)",
        ),
    ):
      with self.assertRaisesRegex(ConfigError, words) as caught:
        use()
      self.assertLen(str(caught.exception).splitlines(), 1)

  def test_all_clients_share_the_frozen_weights(self):
    """Law: no array of a compiled gradient is as large as n frozen kernels.

    A network that merges W + A B shows that the measurement finds such arrays.
    """
    size, clients = 64, 16
    module, samples = nn.Dense(size, use_bias=False), jnp.zeros((2, size))
    frozen = drawn(traced(module.init, samples))
    adapted = lora(module, ravel_pytree(frozen)[0], RANK)
    adapters = adapted.init(jax.random.key(0), samples)

    def merging(adapters, samples):
      both = flatten_dict(frozen) | flatten_dict(adapters)
      return module.apply(merged(unflatten_dict(both), 1.0), samples)

    def compiled(apply, way):
      of_client = lambda adapters, samples: jax.grad(
          lambda x: jnp.sum(jnp.cos(apply(x, samples)))
      )(adapters)
      return jax.jit(way(of_client, (None, 0))).lower(
          adapters, jnp.zeros((clients, *samples.shape))
      ).compile()

    def largest(program):
      shapes = re.findall(r"f32\[([\d,]+)\]", program.as_text())
      return max(math.prod(map(int, x.split(","))) for x in shapes)

    of_all = clients * size**2
    self.assertGreaterEqual(largest(compiled(merging, jax.vmap)), of_all)
    for way in (jax.vmap, one_by_one):
      program = compiled(adapted.apply, way)
      self.assertEqual(largest(program), size**2)  # W itself
      temporary = program.memory_analysis().temp_size_in_bytes
      self.assertLess(temporary, 4 * of_all)

  def test_doctest(self):
    self.assertEqual(doctest.testmod(lora_file).failed, 0)


class SettingsTest(absltest.TestCase):
  """The settings lora_rank and lora_from."""

  def test_a_run_from_a_run(self):
    """Law: it begins where the frozen model ended, and gets better.

    A third run begins with the adapters of the second one.
    """
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    base = small.config(
        method="periodic_k", controller="fixed", k=200.0, learning_rate=0.3,
        num_rounds=5,
    )
    data = agsfl.load(*base.data_settings())
    whole = agsfl.simulate(base, data=data, workdir=folder / "whole")
    given = dataclasses.replace(
        base, lora_rank=2, lora_from=str(folder / "whole")
    )
    said = [
        f"--{name}={getattr(given, name)}"
        for name in (
            "dataset", "model", "num_clients", "batch_size", "num_rounds",
            "eval_every", "num_devices", "method", "controller", "k",
            "learning_rate", "lora_rank", "lora_from",
        )
    ]
    code, printed = small.main(run, *said, f"--workdir={folder / 'adapters'}")
    self.assertEqual(code, 0, printed)
    adapters = agsfl.read_run(folder / "adapters")
    again = dataclasses.replace(given, init_from=str(folder / "adapters"))
    longer = agsfl.simulate(again, data=data)
    self.assertEqual(adapters.config["lora_rank"], 2)
    self.assertEqual(adapters.config["lora_from"], str(folder / "whole"))
    self.assertEqual(
        adapters.config["num_weights"], 2 * (64 + 128) + 2 * (128 + 10)
    )

    # Before the first round of each run.
    for settings, before in ((given, whole), (again, adapters)):
      ready = agsfl.build(settings, data)
      start = ready.evaluate[0](ready.state.params)
      for name in ("test_loss", "train_loss"):
        np.testing.assert_allclose(
            getattr(start, name), before.summary[name], rtol=1e-5
        )
    losses = [r.summary["train_loss"] for r in (whole, adapters, longer)]
    self.assertEqual(losses, sorted(losses, reverse=True))

    # The content of the file decides, not its place.
    def settings_of(name, values):
      path = folder / name
      np.save(path, values)
      return dataclasses.replace(given, lora_from=str(path))

    same = settings_of("same.npy", whole.params)
    other = settings_of("other.npy", whole.params + 1)
    prints = [
        identity_of(config, Parts())["fingerprints"]["lora_from"]
        for config in (given, same, other)
    ]
    models = [
        build_model(config, Parts(), data) for config in (given, same, other)
    ]
    self.assertIs(models[0], models[1])
    self.assertIsNot(models[0], models[2])
    self.assertNotEqual(prints[0], prints[2])

    # A model of one's own; weights and models that do not fit.
    parts = Parts.of(model=MLP(10))
    self.assertEqual(build_model(given, parts, data).sizes, models[0].sizes)
    for change, model, words in (
        ({"model": "logistic"}, None, "must be 650 finite weights"),
        ({}, as_model(MLP(10), data.form), "Model is no Flax Linen module"),
        ({"lora_from": "none"}, None, "must be the folder of a finished run"),
    ):
      changed = dataclasses.replace(given, **change)
      with self.assertRaisesRegex(ConfigError, words):
        build_model(changed, Parts.of(model=model), data)


if __name__ == "__main__":
  absltest.main()
