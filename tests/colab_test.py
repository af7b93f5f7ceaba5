"""The notebooks: as their scripts have them, and run from top to bottom."""

import ast
import concurrent.futures
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

import jupytext
import nbclient
import nbformat
from absl.testing import absltest, parameterized
from ipykernel import kernelspec

import agsfl
from tests.experiments import run_test

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "colab"
KERNELS = 2  # at a time
SECONDS = 600  # of one cell, on a busy machine
SHORTER = (
    (r"^(TIME|ROUNDS) = \d{3}\b", r"\1 = 12"),
    (
        r"^(METHODS|CONTROLLERS) = \(\s*(\S+),[^()]*\s(\S+?),?\s*\)",
        r"\1 = (\2, \3)",
    ),
)
# Figures of each notebook.
FIGURES = {
    "quickstart": 1,
    "paper_figures": 3,
    "your_own": 2,
    "accelerators": 1,
}


def read(name):
  return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def cells(notebook):
  """Type and source of each cell; jupytext draws their ids anew."""
  return [(cell.cell_type, cell.source) for cell in notebook.cells]


def execute(name):
  """The notebook with its outputs; raises where a cell does.

  Those that take long have fewer rounds here, and of the methods and rules that
  they compare the first and the last; all else is as it is.
  """
  notebook = read(name)
  for cell in notebook.cells:
    for pattern, shorter in SHORTER:
      cell.source = re.sub(pattern, shorter, cell.source, flags=re.M)
  nbclient.NotebookClient(
      notebook,
      timeout=SECONDS,
      kernel_name="python3",
      resources={"metadata": {"path": str(ROOT)}},
  ).execute(env=os.environ | run_test.QUICKLY)  # most of the time compiles
  return notebook


class SourceTest(parameterized.TestCase):

  def test_all_are_here(self):
    for ending in (".py", ".ipynb"):
      names = {path.stem for path in FOLDER.glob(f"*{ending}")}
      self.assertEqual(names, set(FIGURES))

  @parameterized.parameters(*FIGURES)
  def test_equals_its_script(self, name):
    """If not: jupytext --to ipynb --update colab/*.py."""
    made, saved = jupytext.read(FOLDER / f"{name}.py"), read(name)
    self.assertEqual(cells(saved), cells(made))
    self.assertEqual(saved.metadata.kernelspec, made.metadata.kernelspec)
    self.assertEqual(saved.metadata.kernelspec.name, "python3")

  @parameterized.parameters(*FIGURES)
  def test_has_no_outputs(self, name):
    for cell in read(name).cells:
      if cell.cell_type == "code":
        self.assertEqual(cell.outputs, [])
        self.assertIsNone(cell.execution_count)

  @parameterized.parameters(*FIGURES)
  def test_starts_with_badge_and_installation(self, name):
    first, second = read(name).cells[:2]
    self.assertRegex(
        first.source,
        r"\(https://colab\.research\.google\.com/github/[\w-]+/agsfl"
        rf"/blob/main/colab/{name}\.ipynb\)",
    )
    self.assertRegex(
        second.source,
        r"\n  %pip install -q -c \S+ git\+https://\S+/agsfl\n",
    )

  @parameterized.parameters(*FIGURES)
  def test_uses_the_package_alone(self, name):
    """Neither flags nor scripts: these are not installed with it."""
    source = (FOLDER / f"{name}.py").read_text(encoding="utf-8")
    wrong = r"^\s*(?:from|import) (?:absl|experiments|tests)\b"
    self.assertIsNone(re.search(wrong, source, re.MULTILINE))

  def test_compares_what_there_is(self):
    """Law: each method and each rule by name, for not all of them run here."""
    source = (FOLDER / "paper_figures.py").read_text(encoding="utf-8")
    for field, names in (
        ("method", r"^METHODS = (\([^()]*\))"),
        ("controller", r"^CONTROLLERS = (\([^()]*\))"),
    ):
      (text,) = re.findall(names, source, re.MULTILINE)
      for name in ast.literal_eval(text):
        agsfl.Config(**{field: name})  # or it raises


@unittest.skipIf(sys.version_info < (3, 12), "Colab has Python 3.12")
class ExecutionTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    """Starts all of them, in this interpreter and no other, the longest first.
    """
    super().setUpClass()
    folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    kernelspec.write_kernel_spec(folder / "kernels" / "python3")
    cls.enterClassContext(
        mock.patch.dict(os.environ, JUPYTER_PATH=str(folder))
    )
    pool = cls.enterClassContext(
        concurrent.futures.ThreadPoolExecutor(KERNELS)
    )
    names = sorted(FIGURES, key="paper_figures".__ne__)
    cls.executed = {name: pool.submit(execute, name) for name in names}

  @parameterized.parameters(*FIGURES)
  def test_runs(self, name):
    """Law: no cell fails, and the figures are there."""
    outputs = [
        output
        for cell in self.executed[name].result().cells
        for output in cell.get("outputs", [])
    ]
    figures = [o for o in outputs if "image/png" in o.get("data", {})]
    self.assertLen(figures, FIGURES[name])
    for figure in figures:
      self.assertGreater(len(figure.data["image/png"]), 10_000)


if __name__ == "__main__":
  absltest.main()
