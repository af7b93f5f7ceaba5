"""Runs of few of many clients do not depend on where and how they run."""

import contextlib
import functools
import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import sweeps
from agsfl.errors import ConfigError, StoppedError
from tests.small import (
  Killed,
  config,
  ends_of,
  kill_at,
  rows_of,
  stop_after,
)

FEW = {
    "clients_per_round": 4, "controller": "fixed", "k": 200.0, "dropout": 0.1,
    "residual_decay": 0.9, "server_optimizer": "momentum", "num_rounds": 12,
}
QUEUE = {
    "clients_per_round": 5, "buffer_size": 2, "clock": "phones",
    "availability": "phones", "controller": "fixed", "k": 200.0,
    "max_staleness": 2, "num_rounds": 12,
}
STATELESS = {
    "clients_per_round": 4, "stateless": True, "controller": "fixed",
    "k": 200.0, "num_rounds": 6,
}
NINE = {**FEW, "clients_per_round": 9, "num_rounds": 5}


@functools.cache
def whole(**settings):
  """A run in one go, its rows on the device."""
  folder = tempfile.TemporaryDirectory()
  run = agsfl.simulate(
      config(**settings, store="device"), workdir=Path(folder.name) / "run"
  )
  return folder, run


class StoredTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def assert_same(self, folder, settings):
    """Rows, weights, clients and summary, byte for byte."""
    want = whole(**settings)[1].workdir
    self.assertEqual(rows_of(folder), rows_of(want))
    self.assertEqual(ends_of(folder), ends_of(want))

  def assert_alike(self, run, want):
    """The same choices in all rounds, and weights to 1e-5."""
    for name in ("rounds", "contributed"):
      np.testing.assert_array_equal(run.clients[name], want.clients[name])
    for row, other in zip(run.rows, want.rows, strict=True):
      for name in ("k_up", "k_down", "participants", "dropped"):
        self.assertEqual(row[name], other[name])
    np.testing.assert_allclose(run.params, want.params, atol=1e-5)

  @parameterized.parameters(
      (FEW, "device"), (FEW, "host"), (FEW, "file"), (QUEUE, "file")
  )
  def test_stopped_and_killed_is_as_in_one_go(self, settings, store):
    """Law: neither the store nor a stop nor a kill changes a bit."""
    folder = self.folder / "run"
    asked = config(**settings, store=store, rounds_per_call=2)
    run = functools.partial(
        agsfl.simulate, asked, workdir=folder, checkpoint_every=2
    )
    with self.assertRaises(StoppedError):
      run(**stop_after(3))
    with contextlib.suppress(Killed):
      run(on_row=kill_at(8))
    run(checkpoints_kept=5)
    self.assert_same(folder, settings)

  @parameterized.parameters("host", "file")
  def test_without_rows(self, store):
    """Law: stateless clients have no rows, and any store takes them."""
    folder = self.folder / "run"
    agsfl.simulate(config(**STATELESS, store=store), workdir=folder)
    self.assert_same(folder, STATELESS)

  def test_devices(self):
    """Law: the same clients send the same elements on any number of them.

    On eight devices seven places are empty.
    """
    run = agsfl.simulate(config(**{**NINE, "num_devices": 8}))
    self.assert_alike(run, whole(**NINE)[1])

  def test_lanes(self):
    """Law: runs side by side are each as if alone."""
    changes = ({}, {"seed": 3})
    runs = sweeps.simulate_lanes({
        self.folder / str(lane): config(**QUEUE, **change, store="device")
        for lane, change in enumerate(changes)
    })
    for run, change in zip(runs.values(), changes, strict=True):
      self.assert_alike(run, whole(**QUEUE, **change)[1])

  def test_lanes_have_their_rows_on_the_device(self):
    configs = {self.folder / "0": config(**FEW, store="host")}
    with self.assertRaisesRegex(ConfigError, "^--store=host: must be device"):
      sweeps.simulate_lanes(configs)


if __name__ == "__main__":
  absltest.main()
