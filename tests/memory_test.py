"""Large sets are not held twice in memory."""

import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import numpy as np
from absl.testing import absltest

_NUM_IMAGES = 600_000
_SHAPE = (28, 28)  # of a small network, whose own memory is little

# Loads a set, puts it where eight devices see it, and prints the greatest
# memory of each step in bytes. Each step is gone through with a small set
# first, which imports and compiles what it needs.
_PROGRAM = """
import re, sys
import jax
jax.config.update("jax_num_cpu_devices", 8)
from agsfl import simulation
from agsfl.config import Config
from agsfl.data import load

def run(path):
  config = Config(dataset="npz:" + path, partition="quantity_power_law",
                  num_clients=8, model="mlp", num_rounds=2)
  data = load(config.dataset, config.as_partition())
  loaded = peak()
  for step in simulation.run(config, simulation.build(config, data)):
    pass
  return data, loaded, peak()

def peak():
  # The kernel's other counter begins with the parent's peak.
  status = open("/proc/self/status").read()
  return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", status).group(1))

run(sys.argv[1])
before = peak()
data, loaded, trained = run(sys.argv[2])
print(data.clients.images.nbytes, loaded - before, trained - before)
"""


def write(path, count):
  """Random images, of bytes that are no zeros."""
  rng = np.random.default_rng(0)
  np.savez(
      path,
      images=rng.integers(1, 256, (count, *_SHAPE), np.uint8),
      labels=np.arange(count) % 10,
      is_train=np.arange(count) % 7 > 0,
  )


class MemoryTest(absltest.TestCase):

  @unittest.skipUnless(Path("/proc/self/status").exists(), "Linux alone")
  def test_peak(self):
    """Law: at most 1.5 times the arrays, loaded and trained on."""
    with tempfile.TemporaryDirectory() as folder:
      small, large = Path(folder) / "small.npz", Path(folder) / "large.npz"
      write(small, 700)
      write(large, _NUM_IMAGES)
      result = subprocess.run(
          [sys.executable, "-c", _PROGRAM, small, large],
          capture_output=True,
          text=True,
          check=True,
      )
    held, loaded, trained = map(int, result.stdout.split())
    self.assertEqual(held, _NUM_IMAGES * 784)
    self.assertLess(loaded, 1.5 * held)
    self.assertLess(trained, 1.5 * held)


if __name__ == "__main__":
  absltest.main()
