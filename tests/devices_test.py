"""Clients over several devices: the same results, with little to send."""

import functools
import itertools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized
from jax.sharding import PartitionSpec

from agsfl import controllers, devices, sparsifiers
from agsfl.data.federated import ClientData, FederatedData
from agsfl.errors import ConfigError
from agsfl.for_each_client import one_by_one, over_devices
from agsfl.layout import layout_of
from agsfl.sparsifiers import cpu
from tests.linear import COUNTS, DIM, one_sample_each, weighted
from tests.small_rounds import build, narrow_fab

WAYS = {
    "vmap": jax.vmap,
    "one_by_one": one_by_one,
    "over_devices_vmap": over_devices(jax.vmap),
    "over_devices_one_by_one": over_devices(one_by_one),
}
# What a CPU with several devices takes.
MOST = "over_devices_one_by_one"
narrow = lambda choose: functools.partial(choose, width=4)
# One method tries a second k in each round; the others compile faster.
FIXED = controllers.fixed(6)
ROUNDS = {
    "fab_top_k": (narrow_fab(), controllers.sign_descent(10, 2, DIM)),
    "fub_top_k": (sparsifiers.fub_top_k(narrow(cpu.fub)), FIXED),
    "fub_top_k_tree": (sparsifiers.fub_top_k_tree(), FIXED),
    "unidirectional_top_k": (
        sparsifiers.unidirectional_top_k(narrow(cpu.unidirectional)),
        controllers.exp3(4, 20, 50, num_arms=5),
    ),
    "periodic_k": (sparsifiers.periodic_k(), FIXED),
    "send_all": (sparsifiers.send_all(), FIXED),
}
OTHERS = [name for name in ROUNDS if name != "fab_top_k"]


def federated(clients):
  """Data with one test sample, which nobody trains on."""
  return FederatedData(
      clients,
      test_rows=np.array([len(clients.labels) - 1], np.int32),
      test_clients=np.array([-1], np.int32),
      client_names=np.arange(len(clients.counts)).astype(str),
      num_classes=2,
  )


@functools.cache
def played(method, way, num_devices, num_clients, shared=True):
  """Eight rounds: the last state, all infos, and the compiled round's text."""
  simulated = build(
      ROUNDS[method][1], ROUNDS[method][0], for_each_client=WAYS[way]
  )
  counts = [*COUNTS, 2, 6, 1][:num_clients]
  data = weighted(*one_sample_each(num_clients=num_clients), counts)
  mesh = devices.client_mesh(num_devices)
  layout = layout_of([federated(data)], mesh, shared)
  placed = devices.place_clients(data, mesh, layout)
  specs = devices.specs_of(lambda n: simulated.init(jax.random.key(0), n))
  shardings = devices.shardings(specs, mesh)
  state = jax.device_put(
      simulated.init(jax.random.key(0), len(placed.counts)), shardings
  )
  step = jax.jit(simulated.step, out_shardings=(shardings, None))
  infos = []
  with jax.set_mesh(mesh):
    step = step.lower(placed, state).compile()
    for _ in range(8):
      state, info = step(placed, state)
      infos.append(jax.device_get(info))
  return jax.device_get(state), infos, step.as_text()


def gathered(text):
  """Elements of each array that devices send to each other as it is."""
  sizes = []
  for result in re.findall(
      r"= (.*) (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", text
  ):
    for shape in re.findall(r"\[([\d,]*)\]", result):
      sizes.append(int(np.prod([int(n) for n in shape.split(",") if n])))
  return sizes


class RoundsTest(parameterized.TestCase):

  def assert_same(self, got, want, num_clients):
    """Law: the same clients send the same elements, weights within 1e-6."""
    (state, infos, _), (wanted, want_infos, _) = got, want
    for info, other in zip(infos, want_infos, strict=True):
      np.testing.assert_array_equal(
          info.contributed[:num_clients], other.contributed
      )
      self.assertFalse(info.contributed[num_clients:].any())
      self.assertEqual((info.k, info.k_up), (other.k, other.k_up))
    np.testing.assert_allclose(state.params, wanted.params, atol=1e-6)
    np.testing.assert_allclose(
        state.residual[:num_clients], wanted.residual, atol=1e-6
    )
    self.assertFalse(state.residual[num_clients:].any())

  @parameterized.parameters(
      # Neither 2 nor 8 devices divide 5 clients: the other rows are padding.
      *itertools.product(["fab_top_k"], WAYS, [2], [5]),
      *itertools.product(["fab_top_k"], ["vmap", MOST], [8], [5]),
      ("fab_top_k", MOST, 1, 5),
      *itertools.product(OTHERS, [MOST], [2], [8]),
      # The last merge of a tree is over all devices.
      ("fub_top_k_tree", MOST, 8, 8),
  )
  def test_agree(self, method, way, num_devices, num_clients):
    self.assert_same(
        played(method, way, num_devices, num_clients),
        played(method, "vmap", 1, num_clients),
        num_clients,
    )

  @parameterized.parameters(
      ("vmap", 2),
      ("over_devices_vmap", 2),
      (MOST, 8),
  )
  def test_own_samples_give_the_same_bits(self, way, num_devices):
    """Law: where the samples lie changes nothing, and none are sent."""
    everywhere = played("fab_top_k", way, num_devices, 5)
    own = played("fab_top_k", way, num_devices, 5, shared=False)
    chex.assert_trees_all_equal(own[:2], everywhere[:2])
    if way != "vmap":  # which gathers samples
      self.assertEqual(gathered(own[2]), gathered(everywhere[2]))

  @parameterized.parameters(
      *((name, 2, 8) for name in OTHERS if name != "fub_top_k_tree"),
      ("fab_top_k", 2, 5),
      ("fab_top_k", 8, 5),
  )
  def test_send_no_client_s_gradient(self, method, num_devices, num_clients):
    """Law: what has D elements is summed, but never gathered."""
    *_, text = played(method, MOST, num_devices, num_clients)
    self.assertIn("all-reduce", text)
    self.assertLess(max(gathered(text), default=0), DIM)

  @parameterized.parameters(2, 8)
  def test_vmap_sends_no_client_s_gradient(self, num_devices):
    *_, text = played("fab_top_k", "vmap", num_devices, 5)
    self.assertLess(max(gathered(text), default=0), DIM)

  def test_the_tree_of_merges_gathers(self):
    """Its messages meet on every device, so this shows in the text."""
    *_, text = played("fub_top_k_tree", MOST, 2, 8)
    self.assertGreaterEqual(max(gathered(text)), 8 * DIM)


class CountTest(parameterized.TestCase):

  @parameterized.parameters(
      (None, 5, 5), (None, 100, 8), (3, 100, 3), (8, 5, 8)
  )
  def test_counts(self, asked, num_clients, want):
    """All eight devices, unless there are fewer clients or fewer are wanted."""
    self.assertEqual(devices.count_for(asked, num_clients), want)

  def test_more_than_there_are(self):
    with self.assertRaisesRegex(
        ConfigError, "^--num_devices=9: must be at most 8, the cpu devices"
    ):
      devices.count_for(9, 100)


class PlaceTest(parameterized.TestCase):

  def data(self):
    return ClientData.of(
        np.arange(10.0, dtype=np.float32).reshape(5, 2),
        np.arange(5, dtype=np.int32),
        [[0, 4], [3], [1]],
    )

  @parameterized.parameters(1, 2, 8)
  def test_clients_are_split_and_samples_are_everywhere(self, num_devices):
    """Law: padding has no samples; all else is as it was given."""
    mesh, data = devices.client_mesh(num_devices), self.data()
    placed = devices.place_clients(data, mesh)
    rows = -(-3 // num_devices) * num_devices
    for name in ("starts", "counts"):
      array = getattr(placed, name)
      np.testing.assert_array_equal(array[:3], getattr(data, name))
      self.assertFalse(np.any(array[3:]))
      self.assertLen(array, rows)
      shards = {shard.data.shape for shard in array.addressable_shards}
      self.assertEqual(shards, {(rows // num_devices,)})
    for name in ("features", "labels", "order"):
      array = getattr(placed, name)
      np.testing.assert_array_equal(array, getattr(data, name))
      self.assertLen(array.sharding.device_set, num_devices)
      self.assertTrue(array.is_fully_replicated)

  @parameterized.parameters(2, 3, 8)
  def test_each_device_has_its_own_samples(self, num_devices):
    """Law: those of its clients and its part of the test samples, once each.

    The run with the rows [[0, 4], [3], [1]] lies beside one with others.
    """
    mesh = devices.client_mesh(num_devices)
    runs = [
        federated(ClientData.of(self.data().features, np.arange(5), rows))
        for rows in ([[0, 4], [3], [1]], [[1], [0, 3], [4]])
    ]
    both = runs[0].clients.replace(**{
        name: np.stack([getattr(run.clients, name) for run in runs])
        for name in ("order", "starts", "counts")
    })
    layout = layout_of(runs, mesh, shared=False)
    placed = devices.place_clients(both, mesh, layout)
    most = -(-3 // num_devices)
    for run, data in enumerate(runs):
      old, new = data.clients, jax.tree.map(np.asarray, placed)
      for client in range(3):
        own = [
            order[starts[client] : starts[client] + old.counts[client]]
            for order, starts in (
                (old.order, old.starts), (new.order[run], new.starts[run])
            )
        ]
        np.testing.assert_array_equal(
            new.features[own[1]], old.features[own[0]]
        )
        np.testing.assert_array_equal(new.labels[own[1]], old.labels[own[0]])
        self.assertEqual(set(own[1] // layout.size), {client // most})
    shards = placed.features.addressable_shards
    self.assertEqual(
        {shard.data.shape for shard in shards}, {(layout.size, 2)}
    )
    for device in range(num_devices):
      wanted = {4} if device == 0 else set()  # the test sample
      for data in runs:
        for client in range(most * device, min(most * (device + 1), 3)):
          start = data.clients.starts[client]
          wanted |= set(
              data.clients.order[start : start + data.clients.counts[client]]
          )
      self.assertEqual(layout.rows[device].tolist(), sorted(wanted))

  def test_several_simulations(self):
    """Law: a leading axis of simulations is not split."""
    data = self.data()
    rows = ("order", "starts", "counts")
    both = data.replace(**{
        name: np.stack([getattr(data, name)] * 3) for name in rows
    })
    placed = devices.place_clients(both, devices.client_mesh(2))
    self.assertEqual(placed.counts.shape, (3, 4))
    self.assertEqual(placed.counts.addressable_shards[0].data.shape, (3, 2))
    self.assertTrue(placed.order.is_fully_replicated)


class StateTest(parameterized.TestCase):

  def test_specs_find_the_axis_of_clients(self):
    """Law: what grows with N is split along that axis, all else is not.

    As many weights as clients mislead nothing.
    """
    init = lambda n: {
        "residual": jnp.zeros((n, 2)),
        "later": jnp.zeros((2, n)),
        "params": jnp.zeros(2),
        "round": jnp.int32(0),
        "key": jax.random.key(0),
    }
    self.assertEqual(devices.specs_of(init), {
        "residual": PartitionSpec("clients"),
        "later": PartitionSpec(None, "clients"),
        "params": PartitionSpec(),
        "round": PartitionSpec(),
        "key": PartitionSpec(),
    })

  @parameterized.parameters(*itertools.product((1, 2, 8), (1, 2, 8)))
  def test_a_saved_state_fits_other_numbers_of_devices(self, before, after):
    """Law: saved by so many devices and read by others, it is the same."""
    num_clients = 5
    init = lambda n: {
        "residual": jnp.arange(2.0 * n).reshape(n, 2),
        "params": jnp.arange(3.0),
        "key": jax.random.key(7),
    }
    specs = devices.specs_of(init)

    def state_on(count):
      mesh = devices.client_mesh(count)
      rows = -(-num_clients // count) * count
      return jax.device_put(init(rows), devices.shardings(specs, mesh))

    saved = devices.without_padding(state_on(before), specs, num_clients)
    self.assertEqual(saved["residual"].shape, (num_clients, 2))
    like = jax.tree.map(lambda x: x, state_on(after))
    read = devices.with_padding(jax.device_get(saved), like, specs)
    chex.assert_trees_all_equal(jax.device_get(read), jax.device_get(like))
    for name, array in read.items():
      self.assertEqual(array.sharding, like[name].sharding)


if __name__ == "__main__":
  absltest.main()
