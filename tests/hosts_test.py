"""A run of two processes, each with four devices, is a run of one process."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

import agsfl
from agsfl import hosts
from agsfl.errors import ConfigError
from tests import small

SETTINGS = {"num_rounds": 12, "num_devices": None}


def free_port():
  with socket.socket() as one:
    one.bind(("localhost", 0))
    return one.getsockname()[1]


def start(workdir, of_second=()):
  """Both processes of the command, the second with more flags."""
  config = small.config(**SETTINGS)
  names = (
      "dataset", "model", "method", "num_clients", "batch_size", "eval_every",
  )
  flags = [f"--{name}={getattr(config, name)}" for name in names]
  flags += [f"--num_rounds={config.num_rounds}", "--checkpoint_every=2"]
  address = f"--coordinator_address=localhost:{free_port()}"
  return [
      subprocess.Popen(
          [
              sys.executable, "-m", "experiments.run", *flags, address,
              "--num_processes=2", f"--process_id={process}",
              f"--workdir={workdir}", *(of_second if process else ()),
          ],
          env={
              **os.environ,
              "JAX_NUM_CPU_DEVICES": "4",
              # As this process compiles.
              "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
          },
          stdout=subprocess.PIPE,
          stderr=subprocess.STDOUT,
          text=True,
      )
      for process in range(2)
  ]


def end(processes):
  """The exit codes, and what each printed, but for lines of the collectives."""
  texts = [one.communicate(timeout=300)[0] for one in processes]
  printed = [
      [line for line in text.splitlines() if "peer ranks" not in line]
      for text in texts
  ]
  return [one.returncode for one in processes], printed


def wait_for_rows(workdir, count):
  file = Path(workdir) / "metrics.jsonl"
  until = time.monotonic() + 300
  while not file.exists() or file.read_bytes().count(b"\n") < count:
    if time.monotonic() > until:
      raise TimeoutError(file)
    time.sleep(0.02)


class TwoProcessesTest(absltest.TestCase):

  def test_stop_in_order_go_on_and_agree_with_one_process(self):
    """Laws: a signal to any one process stops both, with a checkpoint.

    The same command goes on. k and the selections are those of one process with
    one device or eight; losses agree to 1e-5. Process 0 alone prints.
    """
    workdir = self.enter_context(tempfile.TemporaryDirectory())
    processes = start(workdir)
    wait_for_rows(workdir, 2)
    processes[1].send_signal(signal.SIGTERM)
    codes, printed = end(processes)
    self.assertEqual(codes, [130, 130], printed)
    self.assertRegex(printed[0][-1], "^round [0-9]*: stopped; to go on: python")
    self.assertNotIn("to go on", "".join(printed[1]))
    codes, printed = end(start(workdir))
    self.assertEqual(codes, [0, 0], printed)
    self.assertStartsWith(printed[0][-1], "records and figures: ")
    self.assertEqual(printed[1], [])
    both = agsfl.read_run(workdir)
    for num_devices in (8, 1) if small.MANY else (1,):
      one = agsfl.simulate(
          small.config(**{**SETTINGS, "num_devices": num_devices})
      )
      self.assertLen(both.rows, len(one.rows))
      for row, other in zip(both.rows, one.rows, strict=True):
        self.assertEqual(row.keys(), other.keys())
        for name, value in row.items():
          if name.endswith(("loss", "accuracy")):
            np.testing.assert_allclose(value, other[name], atol=1e-5)
          else:
            self.assertEqual(value, other[name], name)
      for name, values in one.clients.items():
        if "loss" in name:
          np.testing.assert_allclose(both.clients[name], values, atol=1e-5)
        else:
          np.testing.assert_array_equal(both.clients[name], values)
      np.testing.assert_allclose(both.params, one.params, atol=1e-5)

  @unittest.skipUnless(small.MANY, "takes a minute")
  def test_a_death_ends_the_other_and_the_run_goes_on(self):
    """Law: bit for bit the run that no process left."""
    folder = self.enter_context(tempfile.TemporaryDirectory())
    whole, killed = Path(folder, "whole"), Path(folder, "killed")
    codes, printed = end(start(whole, ["--seed=1"]))
    self.assertEqual(codes, [1, 1])
    for lines in printed:
      self.assertStartsWith(lines[-1], "error: --process_id: must be all that")
    self.assertEqual(end(start(whole))[0], [0, 0])
    for victim in (0, 1):
      processes = start(killed)
      wait_for_rows(killed, 3 + 4 * victim)
      processes[victim].kill()
      since = time.monotonic()
      codes, printed = end(processes)
      self.assertLess(time.monotonic() - since, 60)
      self.assertNotIn(0, codes)
      self.assertIn("another task died", "".join(printed[1 - victim]))
    self.assertEqual(end(start(killed))[0], [0, 0])
    self.assertEqual(small.content_of(killed), small.content_of(whole))


class JoinTest(parameterized.TestCase):

  @parameterized.parameters(
      ((None, 2, 0), "--coordinator_address: must be given"),
      (("a:1", None, 0), "--num_processes: must be given"),
      (("a:1", 2, None), "--process_id: must be given"),
      (("a:1", 2, 2), "--process_id=2: must be from 0 to 1"),
      (("a:1", 2, -1), "--process_id=-1: must be from 0 to 1"),
      (("a:1", 0, 0), "--num_processes=0: must be at least 1"),
      (("a", 2, 0), "--coordinator_address=a: must be host:port"),
      (("a:x", 2, 0), "--coordinator_address=a:x: must be host:port"),
      (("a:65536", 2, 0), "--coordinator_address=a:65536: must be host:port"),
  )
  def test_flags_that_do_not_fit(self, arguments, problem):
    with self.assertRaisesRegex(ConfigError, f"^{problem}"):
      hosts.join(*arguments)

  @parameterized.parameters(
      ({}, False),
      ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "2"}, False),  # no srun
      ({"SLURM_STEP_NUM_TASKS": "1"}, False),
      ({"SLURM_STEP_NUM_TASKS": "2"}, True),
      ({"OMPI_COMM_WORLD_SIZE": "1"}, False),
      ({"OMPI_COMM_WORLD_SIZE": "4"}, True),
      ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, False),
      (
          {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
          True,
      ),
      ({"TPU_WORKER_HOSTNAMES": "a"}, False),
      ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
      ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
  )
  def test_clusters_say_whether_there_are_several(self, environment, several):
    self.assertEqual(hosts.is_one_of_several(environment), several)


if __name__ == "__main__":
  absltest.main()
