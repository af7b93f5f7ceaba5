"""Large sets are never twice in memory."""

import json
import os
import subprocess
import sys
import tempfile
import tracemalloc
import unittest
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest
from PIL import Image

from agsfl.data import federated as data
from agsfl.data import samples
from agsfl.data.partitions import Partition
from agsfl.data.sources import npz

_NUM_IMAGES = 300_000
_SHAPE = (28, 28)  # of a small network, whose own memory is little

# Loads a set, puts it where eight devices see it, and prints the greatest
# memory of each step in bytes. It does every step with a small set first, which
# imports and compiles what the step needs.
_PROGRAM = """
import re, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from agsfl import Config, load, simulate

def run(path):
  config = Config(dataset="npz:" + path, partition="quantity_power_law",
                  num_clients=8, model="mlp", method="periodic_k",
                  num_rounds=2)
  data = load(config.dataset, config, config)
  loaded = peak()
  simulate(config, data=data)
  return data, loaded, peak()

def peak():
  # The kernel's other counter begins with the parent's peak.
  status = open("/proc/self/status").read()
  return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status).group(1))

run(sys.argv[1])
before = peak()
data, loaded, trained = run(sys.argv[2])
print(data.clients.features.nbytes, loaded - before, trained - before)
"""


def write(path, count, order="C", **more):
  """Random images without zeros, which would need no memory."""
  images = np.random.default_rng(0).integers(
      1, 256, (count, *_SHAPE), np.uint8
  )
  np.savez(
      path,
      images=np.asarray(images, order=order),
      labels=np.arange(count) % 10,
      is_train=np.arange(count) % 7 > 0,
      **more,
  )


class MemoryTest(absltest.TestCase):

  @unittest.skipUnless(Path("/proc/self/status").exists(), "Linux alone")
  def test_peak(self):
    """Law: no second copy of the arrays, loaded and trained on.

    The program itself needs 0.1 to 0.6 of them for training, by chance.
    """
    with tempfile.TemporaryDirectory() as folder:
      small, large = Path(folder) / "small.npz", Path(folder) / "large.npz"
      write(small, 700)
      write(large, _NUM_IMAGES)
      result = subprocess.run(
          [sys.executable, "-c", _PROGRAM, small, large],
          capture_output=True,
          text=True,
          check=True,
          # Both sets compile, so that the compiler's memory is in both peaks.
          env={**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "false"},
      )
    held, loaded, trained = map(int, result.stdout.split())
    self.assertEqual(held, _NUM_IMAGES * 784)
    self.assertLess(loaded, 1.5 * held)
    self.assertLess(trained, 1.9 * held)


class SourcesTest(absltest.TestCase):
  """Small sets, with pieces that are small in proportion."""

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    self.enter_context(mock.patch.object(npz, "_PIECE", 1 << 14))
    self.enter_context(mock.patch.object(samples, "_ID_BLOCK", 100))
    data.load("digits", Partition("iid"))  # imports what it needs

  def peak(self, dataset, partition="natural"):
    tracemalloc.start()
    try:
      data.load(dataset, Partition(partition))
      return tracemalloc.get_traced_memory()[1]
    finally:
      tracemalloc.stop()

  def test_columns_first(self):
    path, count = self.folder / "set.npz", 5000
    write(path, count, order="F", client=np.arange(count) % 10)
    self.assertLess(self.peak(f"npz:{path}"), 1.5 * 784 * count)

  def test_long_ids(self):
    """Of 1,600 bytes for each image of 784."""
    path, count = self.folder / "set.npz", 5000
    ids = np.array([f"{i:0400}" for i in range(10)])
    write(path, count, client=ids[np.arange(count) % 10])
    self.assertLess(self.peak(f"npz:{path}"), 1.5 * (784 + 1600) * count)

  def test_folder(self):
    """Images of one size: not the files and the array at once."""
    for name in ("train", "test"):
      for label in "ab":
        place = self.folder / name / label
        place.mkdir(parents=True)
        for index in range(20):
          Image.new("RGB", (200, 200), (index, 0, 9)).save(
              place / f"{index}.png"
          )
    dataset = f"folder:{self.folder}"
    self.assertLess(self.peak(dataset, "iid"), 1.5 * 80 * 200 * 200 * 3)

  def leaf_peak(self, name):
    """Of a folder with a user of this name, and forty others."""
    users = [name, *map(str, range(40))]
    held = {"x": [[1.0] * 100] * 50, "y": [1] * 50}
    for split in ("train", "test"):
      (self.folder / split).mkdir(exist_ok=True)
      (self.folder / split / "a.json").write_text(json.dumps({
          "users": users,
          "num_samples": [50] * len(users),
          "user_data": {user: held for user in users},
      }))
    return self.peak(f"leaf:{self.folder}")

  def test_one_long_name(self):
    """Its bytes count once for each user, not for each sample."""
    self.assertLess(self.leaf_peak("c" * 1000), 1.5 * self.leaf_peak("c"))


if __name__ == "__main__":
  absltest.main()
