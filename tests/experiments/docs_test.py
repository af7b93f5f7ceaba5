"""The pages of the documentation: complete, well formed, without a network."""

import ast
import dataclasses
import html
import importlib
import inspect
import re
import sys
import tempfile
import warnings
from pathlib import Path
from unittest import mock

from absl.testing import absltest

from agsfl.config import Config
from agsfl.settings import said_of
from experiments import docs
from tests import small

ROOT = Path(docs.__file__).parents[1]
SOURCES = sorted(
    path.relative_to(ROOT)
    for top in ("agsfl", "experiments")
    for path in (ROOT / top).rglob("*.py")
)

# The sections of a docstring that pdoc shows as lists or paragraphs.
SECTIONS = {"Args", "Attributes", "Raises", "Returns", "Yields"}
SECTION = re.compile(r"(?m)^([A-Z][A-Z a-z]+):\n(?:\n*[ \t]+\S)")
# Markdown shows lines as code only from four spaces on.
TOO_NEAR = re.compile(r"(?m)^\S.*\n\n {1,3}\S.*")


class DocsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_pages(self):
    """Links, settings and texts are there; nothing comes from the network."""
    names = [
        "agsfl", "agsfl.config", "agsfl.records", "experiments",
        "experiments.run",
    ]
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      docs.build(self.folder, names)
    pages = {
        path.relative_to(self.folder).as_posix(): path.read_text()
        for path in self.folder.rglob("*.html")
    }
    self.assertEqual(pages.keys(), {
        "index.html", "README.html", "results.html",
        *(f"{name.replace('.', '/')}.html" for name in names),
    })
    for name, page in pages.items():
      self.assertNotRegex(page, r'(src|<link[^>]* href)="?(?!data:)\w', name)
      self.assertNotIn("Alias for field number", page)
    # `__all__` of agsfl has no modules, but its page lists them.
    self.assertIn('href="agsfl/config.html"', pages["agsfl.html"])
    for field in dataclasses.fields(Config):
      if field.name in inspect.get_annotations(Config):
        text = html.escape(said_of(field).help.split(".")[0], quote=False)
        self.assertIn(text, pages["agsfl/config.html"])
    for link in ("agsfl/records.html", "results.html"):
      self.assertIn(f'<a href="{link}">', pages["index.html"])
    self.assertIn("slow_because", pages["agsfl/records.html"])
    self.assertIn('src="data:image/png', pages["index.html"])

  def test_texts_of_an_installed_package(self):
    """It has no figures; links to the repository are in their places."""
    with mock.patch.object(docs, "_FIGURES", "nowhere"):
      docs.build(self.folder, [])
    page = (self.folder / "index.html").read_text()
    site = "https://github.com/agsfl/agsfl/blob/main/experiments/paper/figures"
    for name in ("loss", "labels"):  # written as HTML and as Markdown
      self.assertIn(f'href="{site}/{name}.png"', page)
    self.assertNotIn("<img src=\"data:image/png", page)

  def test_every_module_has_a_page(self):
    files = {path.with_suffix("").parts for path in SOURCES}
    modules = {
        ".".join(parts).removesuffix(".__init__")
        for parts in files
        if parts[-1] != "__main__"
    }
    names = docs.module_names()
    # All in one process, so no flag is of two modules. But one command has a
    # flag that all commands of its process would need.
    for name in set(names) - {"experiments.prepare_femnist"}:
      importlib.import_module(name)
    self.assertCountEqual(names, modules - {"experiments.benchmark.pytorch"})
    self.assertEqual(names[0], "agsfl")

  def test_sections_of_docstrings(self):
    """pdoc reads "Some words:" before indented lines as a section.

    Code after such a line would become one paragraph of text.
    """
    for path in SOURCES:
      for node in ast.walk(ast.parse((ROOT / path).read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
          text = ast.get_docstring(node) or ""
          self.assertContainsSubset(SECTION.findall(text), SECTIONS, str(path))
          self.assertNotRegex(text, TOO_NEAR, str(path))

  def test_percent_signs(self):
    """--help shows them as they are; absl would fill in what looks like %s."""
    for path in SOURCES:
      text = ast.get_docstring(ast.parse((ROOT / path).read_text())) or ""
      if "%" in text:
        with self.assertRaises((TypeError, ValueError), msg=str(path)):
          text % (("",) * text.count("%"))

  def test_errors(self):
    """pdoc is missing; the folder is a file: one line."""
    with mock.patch.dict(sys.modules, {"pdoc": None}):
      error, _ = small.main(docs, f"--out={self.folder}")
    self.assertStartsWith(error, "error: docs: needs pdoc: pip install")
    self.assertLen(error.splitlines(), 1)
    file = self.folder / "file"
    file.touch()
    error, _ = small.main(docs, f"--out={file}")
    self.assertEqual(error, f"error: --out={file}: must name a folder\n")


if __name__ == "__main__":
  absltest.main()
