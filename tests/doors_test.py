"""Parts of one's own, handed over or registered, as a new user writes them."""

import itertools
import json
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import Config, fingerprints, sweeps
from agsfl.controllers import CONTROLLERS
from agsfl.data.partitions import PARTITIONS
from agsfl.data.sources import SOURCES
from agsfl.errors import ConfigError
from agsfl.sparsifiers import METHODS
from agsfl.training.models import MODELS
from tests.small import ends_of, state_of, stop_after

FEATURES, CLASSES = 20, 3
DIM = (FEATURES + 1) * CLASSES


def table(seed=0):
  """60 samples of a table [C, 20], with 10 clients of 4 or 5 each."""
  rng = np.random.default_rng(seed)
  y = np.arange(60) % CLASSES
  x = rng.normal(size=(60, FEATURES)) + np.eye(CLASSES, FEATURES)[y]
  return agsfl.from_arrays(x, y, partition=agsfl.Partition("iid"))


def config(**settings):
  return Config(**{
      "partition": "iid", "method": "periodic_k", "controller": "fixed",
      "k": 7.0, "batch_size": 4, "learning_rate": 0.5, "num_rounds": 6,
      "eval_every": 3, "num_devices": 1, **settings,
  })


class Linear(nn.Module):
  """A user's Flax module."""

  outputs: int = CLASSES

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.outputs)(x)


class Plain:
  """A user's object with init and apply."""

  def __init__(self, scale=0.0):
    self.scale = scale

  def init(self, key, features):
    del key
    width = features.shape[-1]
    return {
        "w": jnp.full((width, CLASSES), self.scale), "b": jnp.zeros(CLASSES)
    }

  def apply(self, params, features):
    return features @ params["w"] + params["b"][None]


def flat(scale=0.0):
  """The same as an `agsfl.Model`."""
  zeros = jnp.zeros((1, FEATURES))
  plain = Plain(scale)
  return agsfl.flatten(lambda key: plain.init(key, zeros), plain.apply)


def largest(share=1.0):
  """Each client's k largest entries; written with all clients at once."""

  def pick(key, accumulated, weights, k, state):
    del key, weights
    ranks = jnp.argsort(jnp.argsort(-jnp.abs(accumulated), axis=1), axis=1)
    return ranks < jnp.ceil(share * k), state

  return agsfl.from_masks(pick)


def turns():
  """A state [N, D]: what a client has sent waits until all has been sent."""

  def pick(key, accumulated, weights, k, state):
    del key, weights
    waiting = jnp.abs(accumulated) - 1e6 * state
    ranks = jnp.argsort(jnp.argsort(-waiting, axis=1), axis=1)
    picked = ranks < k
    state = state + picked
    return picked, jnp.where(jnp.all(state > 0, 1, keepdims=True), 0, state)

  init = lambda num_clients, dim: jnp.zeros((num_clients, dim))
  return agsfl.from_masks(pick, init)


def halving(floor=2.0):
  """A user's controller; it looks at the losses."""
  propose = lambda k: (agsfl.KProposal(k, k), k)

  def update(key, observed, k):
    return propose(jnp.where(observed.fall > 0, jnp.maximum(k / 2, floor), k))

  return agsfl.KController(
      lambda key: propose(jnp.float32(16.0)), update, observes=True,
      probes=False,
  )


def scaled(factor):
  """A user's loss with a number of its own."""

  def loss(logits, labels):
    rows = jnp.arange(len(labels))
    return -factor * jax.nn.log_softmax(logits)[rows, labels]

  return loss


def norm(state, info):
  """A user's metric."""
  del info
  return jnp.linalg.norm(state.params)


# A part of one's own, the same with other numbers, and its name.
PARTS = {
    "flax": ("model", Linear, (), {"outputs": 4}, "Linear"),
    "model": ("model", flat, (), {"scale": 0.5}, "_flatten"),
    "object": ("model", Plain, (), {"scale": 0.5}, "Plain"),
    "sparsifier": ("sparsifier", largest, (), {"share": 0.5}, "from_masks"),
    "factory": (
        "sparsifier", agsfl.per_layer, (agsfl.periodic_k(), (60, 3)),
        {"sizes": (3, 60)}, "per_layer",
    ),
    "controller": ("controller", halving, (), {"floor": 4.0}, "halving"),
    "loss": ("loss", scaled, (1.0,), {"factor": 2.0}, "scaled"),
}


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def held(self):
    return json.loads((self.folder / "run" / "config.json").read_text())

  def refused(self, words, **options):
    with self.assertRaisesRegex(ConfigError, words) as caught:
      agsfl.simulate(
          options.pop("config", config()), workdir=self.folder / "run",
          **options,
      )
    self.assertLen(str(caught.exception).splitlines(), 1)


class HandedOverTest(FolderTest):

  @parameterized.named_parameters(
      (name, *part) for name, part in PARTS.items()
  )
  def test_a_part(self, door, make, args, other, name):
    """It runs, is stopped, goes on, grows; no other one goes on in its place.

    Law: the end is that of a run in one go, bit for bit.
    """
    parts = {"model": Linear(), door: make(*args)}
    simulate = lambda config, below, **options: agsfl.simulate(
        config, data=table(), workdir=self.folder / below, **parts, **options
    )
    longer = config(num_rounds=9)
    whole = simulate(longer, "whole")
    with self.assertRaises(agsfl.StoppedError):
      simulate(config(), "run", **stop_after(2))
    simulate(config(), "run")
    grown = simulate(longer, "run")
    self.assertEqual(grown.rows, whole.rows)
    self.assertEqual(
        *(ends_of(self.folder / name) for name in ("run", "whole"))
    )
    self.assertEqual(
        *(state_of(self.folder / name) for name in ("run", "whole"))
    )

    setting = "method" if door == "sparsifier" else door
    held = self.held()
    self.assertEqual(held[setting], f"custom:{name}")
    self.assertRegex(held["fingerprints"][setting], "^[0-9a-f]{16}$")
    again = make(*args)  # a new object, the same part
    self.assertEmpty(self.new_rows(longer, {**parts, door: again}))
    numbers = (args[:-1] if args else ()), other
    changed = make(*numbers[0], **numbers[1])
    self.refused(
        f"fingerprints=.*{held['fingerprints'][setting]}.*, asked for",
        config=longer, data=table(), **{**parts, door: changed},
    )
    if door != "model":
      del parts[door]
      self.refused(
          f"{setting}=custom:{name}, asked for", config=longer, data=table(),
          **parts,
      )

  def new_rows(self, asked, parts):
    seen = []
    agsfl.simulate(
        asked, data=table(), workdir=self.folder / "run", on_row=seen.append,
        **parts,
    )
    return seen

  def test_forms_of_one_network(self):
    """Law: an object, a flat Model and a Flax module train alike.

    The module's weights are drawn, so it begins where the others do not; its
    size is theirs.
    """
    runs = [
        agsfl.simulate(config(), data=table(), model=model)
        for model in (Plain(), flat(), Linear())
    ]
    self.assertEqual(runs[0].rows, runs[1].rows)
    self.assertEqual([run.config["num_weights"] for run in runs], [DIM] * 3)
    for run in runs:
      first, *_, last = run.evaluated
      self.assertLess(last["train_loss"], first["train_loss"])

  def test_a_loss(self):
    """Twice the loss is twice the gradient, and twice the loss in the rows."""
    once, twice = (
        agsfl.simulate(
            config(learning_rate=rate), data=table(), model=Plain(),
            loss=scaled(factor),
        )
        for rate, factor in ((0.5, 1.0), (0.25, 2.0))
    )
    plain = agsfl.simulate(config(), data=table(), model=Plain())
    np.testing.assert_allclose(once.params, twice.params, rtol=1e-6)
    np.testing.assert_allclose(once.params, plain.params, rtol=1e-5)
    for row, other in zip(once.rows, twice.rows, strict=True):
      self.assertAlmostEqual(
          2 * row["minibatch_loss"], other["minibatch_loss"], 5
      )

  def test_a_controller(self):
    """k halves while the loss falls, down to its floor."""
    run = agsfl.simulate(
        config(), data=table(), model=Plain(), controller=halving()
    )
    ks = [row["k"] for row in run.rows]
    self.assertEqual(ks[0], 16.0)
    self.assertLess(ks[-1], 16.0)
    for before, k in itertools.pairwise(ks):
      self.assertIn(k, (before, before / 2, 2.0))

  @parameterized.product(make=(largest, turns), num_clients=(10, 5))
  def test_a_sparsifier_on_several_devices(self, make, num_clients):
    """Written for one device, it picks the same on two; 5 clients are padded.

    Sums over devices are rounded otherwise.
    """
    data = agsfl.from_arrays(
        table().clients.features, table().clients.labels,
        partition=agsfl.Partition("iid", num_clients=num_clients),
    )
    one, two = (
        agsfl.simulate(
            config(num_devices=devices), data=data, model=Plain(),
            sparsifier=make(),
        )
        for devices in (1, 2)
    )
    np.testing.assert_array_equal(one.contributed, two.contributed)
    self.assertEqual(one.contributed.tolist(), [6 * 7] * num_clients)
    np.testing.assert_allclose(one.params, two.params, atol=1e-6)

  def test_metrics(self):
    """In rows, on disk and read back; null where a number is not finite."""
    metrics = {
        "norm": norm,
        "ratio": lambda state, info: 1.0 / (info.round_index - 2),
    }
    run = agsfl.simulate(
        config(), data=table(), model=Plain(), metrics=metrics,
        workdir=self.folder / "run",
    )
    read = agsfl.read_run(self.folder / "run")
    self.assertEqual(read.rows, run.rows)
    self.assertEqual(read.metrics, ["norm", "ratio"])
    self.assertEqual(
        [row["ratio"] for row in read.rows], [-1.0, None, 1.0, 0.5,
                                              1 / np.float32(3), 0.25],
    )
    self.assertAlmostEqual(
        run.rows[-1]["norm"], float(np.linalg.norm(run.params)), 5
    )
    self.assertEqual(read.summary["norm"], run.rows[-1]["norm"])
    plain = agsfl.simulate(config(), data=table(), model=Plain())
    np.testing.assert_array_equal(plain.params, run.params)

  def test_data(self):
    """Data by hand are no data by name, and each folder holds one of them."""
    asked = config(dataset="digits", model="mlp", k=500.0, num_rounds=1)
    data = agsfl.load("digits", asked)
    agsfl.simulate(asked, data=data, workdir=self.folder / "run")
    self.assertEqual(self.held()["dataset"], "custom")
    self.refused("dataset=custom, asked for digits", config=asked)
    shutil.rmtree(self.folder / "run")
    agsfl.simulate(asked, workdir=self.folder / "run")
    self.refused("dataset=digits, asked for custom", config=asked, data=data)

  def test_other_data(self):
    parts = {"model": Plain(), "workdir": self.folder / "run"}
    agsfl.simulate(config(), data=table(), **parts)
    del parts["workdir"]
    self.refused("data=.*, asked for", data=table(seed=1), **parts)

  @parameterized.parameters(
      ({"sparsifier": agsfl.fab_top_k}, "--sparsifier=function: must be an "),
      ({"controller": 7}, "--controller=int: must be an agsfl.KController"),
      ({"model": Linear}, "--model=.*: must be an agsfl.Model, or an object"),
      ({"loss": 3.0}, "--loss=3: must be a function"),
      ({"metrics": {"a b": norm}}, "--metrics=a b: must be a name for each"),
      ({"metrics": {"norm": 3}}, "--metrics=norm: must be a name for each"),
      ({"metrics": {"k": norm}}, "--metrics=k: must be another name"),
      ({"metrics": {"params": lambda state, info: state.params}},
       "--metrics=params: must be a single number"),
  )
  def test_what_is_no_part(self, parts, words):
    self.refused(words, data=table(), **{"model": Plain(), **parts})


class RegisteredTest(FolderTest):
  """Parts by name, which settings and sweeps then know."""

  def setUp(self):
    super().setUp()
    for registry in (MODELS, METHODS, CONTROLLERS, PARTITIONS, SOURCES):
      self.addCleanup(registry._added.clear)

  def register(self, outputs=CLASSES, share=1.0, floor=2.0):
    """All five kinds; with other numbers, other parts of the same names."""

    @agsfl.register_model("own_net")
    def net(num_classes):
      assert num_classes == CLASSES
      return Linear(outputs)

    @agsfl.register_method("own_method")
    def method():
      return largest(share)

    @agsfl.register_controller("own_rule", uses_horizon=False)
    def rule(k, k_min, k_max, settings):
      del k, k_min, k_max, settings
      return halving(floor)

    @agsfl.register_partition("own_split")
    def split(labels, settings, rng):
      del rng
      return np.array_split(np.arange(len(labels)), settings.num_clients)

    @agsfl.register_source("own_table")
    def source(place):
      data = table(seed=int(place))
      return {
          "x": data.clients.features, "y": data.clients.labels,
          "is_train": np.arange(60) < 48,
      }

  def asked(self, **settings):
    return config(**{
        "dataset": "own_table:0", "model": "own_net", "method": "own_method",
        "controller": "own_rule", "partition": "own_split", "num_clients": 6,
        "k": None, **settings,
    })

  def test_they_run(self):
    """By name as handed over; the folder says which code they were."""
    self.register()
    run = agsfl.simulate(self.asked(), workdir=self.folder / "run")
    self.assertEqual(run.clients["samples"], [8] * 6)
    handed = agsfl.simulate(
        config(), data=agsfl.load("own_table:0", self.asked()),
        model=Linear(), sparsifier=largest(), controller=halving(),
    )
    self.assertEqual(run.rows, handed.rows)
    np.testing.assert_array_equal(run.params, handed.params)
    held = self.held()
    self.assertEqual(
        [held[name] for name in ("model", "method", "controller", "dataset")],
        ["own_net", "own_method", "own_rule", "own_table:0"],
    )
    self.assertEqual(
        set(held["fingerprints"]), {"model", "method", "controller"}
    )

  @parameterized.parameters({"outputs": 4}, {"share": 0.5}, {"floor": 4.0})
  def test_other_parts_of_the_same_names(self, **numbers):
    self.register()
    agsfl.simulate(self.asked(), workdir=self.folder / "run")
    self.register()
    agsfl.simulate(self.asked(), workdir=self.folder / "run")
    self.register(**numbers)
    self.refused("fingerprints=", config=self.asked())

  def test_other_data_of_the_same_name(self):
    """A source or a partition that changed gives other data."""
    self.register()
    agsfl.simulate(self.asked(), workdir=self.folder / "run")
    agsfl.register_partition("own_split")(
        lambda labels, settings, rng: np.array_split(
            np.arange(len(labels))[::-1], settings.num_clients
        )
    )
    self.refused("data=", config=self.asked())

  def test_in_lanes(self):
    """Law: each lane is its run alone, to rounding."""
    self.register()
    configs = {
        self.folder / str(seed): self.asked(seed=seed) for seed in (0, 1)
    }
    runs = sweeps.simulate_lanes(configs)
    for place, run in runs.items():
      alone = agsfl.simulate(configs[place])
      self.assertEqual(run.rows, agsfl.read_run(place).rows)
      self.assertEqual(run.clients["contributed"], alone.clients["contributed"])
      np.testing.assert_allclose(run.params, alone.params, atol=1e-5)


class FingerprintTest(parameterized.TestCase):

  def test_numbers_anywhere(self):
    """Law: objects that differ in one number have other fingerprints."""
    share = 0.5
    in_closure = lambda x: (lambda y: share * y)(x)
    before = fingerprints.fingerprint(in_closure)
    self.assertEqual(before, fingerprints.fingerprint(in_closure))
    share = 0.25
    self.assertNotEqual(before, fingerprints.fingerprint(in_closure))
    pairs = [
        # Objects beside each other: no place in memory counts twice.
        ((Linear(3), Linear(4)), (Linear(3), Linear(5))),
        (
            nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(4)]),
            nn.Sequential([nn.Dense(3), nn.relu, nn.Dense(5)]),
        ),
        (
            nn.Dense(3, kernel_init=nn.initializers.normal(0.1)),
            nn.Dense(3, kernel_init=nn.initializers.normal(0.2)),
        ),
        (jax.jit(scaled(1.0)), jax.jit(scaled(2.0))),
        (scaled(np.ones(3)), scaled(np.array([1.0, 1.0, 2.0]))),
        (largest(), turns()),
        (agsfl.fab_top_k(), agsfl.fub_top_k()),
        (agsfl.fixed(3.0), agsfl.fixed(4.0)),
    ]
    for one, other in pairs:
      one, other = map(fingerprints.fingerprint, (one, other))
      self.assertRegex(one, "^[0-9a-f]{16}$")
      self.assertNotEqual(one, other)

  def test_numbers_of_the_module(self):
    """What a function looks up in its module counts, within it too."""
    before = fingerprints.fingerprint(_looks_up)
    with mock.patch.dict(globals(), _SHARE=0.75):
      self.assertNotEqual(fingerprints.fingerprint(_looks_up), before)
    self.assertEqual(fingerprints.fingerprint(_looks_up), before)

  def test_names(self):
    for part, name in (
        (Linear(), "Linear"), (scaled(1.0), "scaled"), (halving(), "halving"),
        (agsfl.fab_top_k(), "_top_k"), (norm, "norm"),
    ):
      self.assertEqual(fingerprints.name_of(part), name)


_SHARE = 0.5


def _looks_up(x):
  return [y * _SHARE for y in x]


if __name__ == "__main__":
  absltest.main()
