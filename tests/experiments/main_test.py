"""The console command, and users' own modules, from a folder of the user's."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from absl.testing import absltest

import agsfl
from agsfl.records.read import read_run
from experiments import main
from tests.experiments.run_test import QUICKLY

ROOT = Path(__file__).resolve().parents[2]

PLUGIN = """
import jax.numpy as jnp
from agsfl import register_controller
from agsfl.types import KController, KProposal

@register_controller("halving", uses_horizon=False)
def halving(k, k_min, k_max, settings):
  propose = lambda k: (KProposal(k, k), k)
  return KController(
      lambda key: propose(jnp.float32(k)),
      lambda key, observed, k: propose(jnp.maximum(k / 2, k_min)),
      observes=False,
      probes=False,
  )
"""


class MainTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    # A folder of the user's own with the name of ours.
    (self.folder / "experiments").mkdir()
    (self.folder / "experiments" / "__init__.py").write_text("raise 1\n")

  def agsfl(self, *arguments):
    """The console command, started in the user's folder."""
    program = f"import sys; sys.path[0] = {str(ROOT)!r}; " + (
        "from experiments.main import main; main()"
    )
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=self.folder, capture_output=True, text=True, check=False,
        env={**os.environ, **QUICKLY},
    )

  def test_a_rule_of_the_user(self):
    """A sweep's child processes know it; a report shows it."""
    (self.folder / "mine.py").write_text(PLUGIN)
    result = self.agsfl(
        "sweep", "--plugins=mine", "--controller=halving", "--sweep=seed=0",
        "--dataset=digits", "--model=mlp", "--method=periodic_k", "--k=100",
        "--num_rounds=3", "--eval_every=3", "--workdir=runs", "--quiet",
    )
    self.assertEqual((result.returncode, result.stderr), (0, ""))
    run = read_run(self.folder / "runs" / "seed=0")
    self.assertEqual([row["k"] for row in run.rows], [100, 50, 25])
    self.assertEqual(run.config["controller"], "halving")
    result = self.agsfl("report", "runs", "--out=page.html")
    self.assertEqual(result.stdout, "report: page.html\n", result.stderr)
    page = (self.folder / "page.html").read_text()
    self.assertIn("<h1>periodic_k with halving on digits</h1>", page)

  def test_a_module_with_an_error(self):
    (self.folder / "mine.py").write_text("import math\nmath.sqrt('x')\n")
    result = self.agsfl("run", "--plugins=mine", "--workdir=run")
    self.assertEqual(result.returncode, 1)
    (line,) = result.stderr.splitlines()
    self.assertStartsWith(line, "error: --plugins=mine: must be a module that")
    self.assertFalse((self.folder / "run").exists())

  def test_usage(self):
    """Every command is there; what is none is answered with their list."""
    for name in main.COMMANDS:
      path = ROOT / "experiments" / name
      self.assertTrue(path.with_suffix(".py").exists() or path.is_dir(), name)
    for arguments in ([], ["fly"]):
      result = self.agsfl(*arguments)
      self.assertEqual((result.returncode, result.stdout), (1, ""))
      for name in main.COMMANDS:
        self.assertIn(f"  {name} ", result.stderr)
    self.assertStartsWith(result.stderr, "agsfl: there is no command fly\n")
    self.assertEqual(self.agsfl("--version").stdout, f"{agsfl.__version__}\n")
    result = self.agsfl("export", "--helpshort")
    self.assertIn("Writes the records of any number of runs", result.stdout)


if __name__ == "__main__":
  absltest.main()
