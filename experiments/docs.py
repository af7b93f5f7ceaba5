"""Writes the documentation as HTML pages that need no network.

    python -m experiments.docs --out=pages

Open `pages/index.html` in a browser. The front page is the README. Every module
has a page that is made from its docstrings. `agsfl.records` has the page "Files
and columns", and each command under `experiments` has its manual.

It needs pdoc: `pip install pdoc`.
"""

import importlib
import pkgutil
import re
import types
from importlib import metadata
from pathlib import Path
from typing import Any

from absl import flags

import agsfl
import experiments
from agsfl.errors import refused
from agsfl.settings import said_of
from experiments.lib import out, scripts

flags.adopt_module_key_flags(out)

_ROOT = Path(__file__).resolve().parents[1]
_SITE = "https://github.com/agsfl/agsfl/blob/main"

# Pages of Markdown files, by the names of their pages.
_TEXTS = {"README": "README.md", "results": "experiments/paper/README.md"}

# Pages of the files to which the README has links.
_PAGES = {
    "experiments/paper/README.md": "results.html",
    "agsfl/records/README.md": "agsfl/records.html",
}

_FIGURES = "experiments/paper/figures"

# Wide images shrink, and wide tables scroll.
_STYLE = (
    "<style>.docstring img {max-width: 100%}"
    ".docstring table {display: block; overflow-x: auto}</style>"
)

# It needs PyTorch.
_LEFT_OUT = "experiments.benchmark.pytorch"

# The modules that the front page lists; all others are below these.
_FIRST = ("agsfl", "agsfl.records", "experiments", "results")


def module_names() -> list[str]:
  """The modules that have pages: packages first, then what is in them."""
  return [
      name
      for package in (agsfl, experiments)
      for name in (
          package.__name__,
          *(
              found.name
              for found in pkgutil.walk_packages(
                  package.__path__, f"{package.__name__}."
              )
              if not found.name.endswith("__main__")
          ),
      )
      if name != _LEFT_OUT
  ]


def build(folder: Path, names: list[str]):
  """Writes a page for each module, the texts, and an index for the search.

  Args:
    folder: of the pages; it is made if needed, and older pages are replaced.
    names: of the modules.

  Raises:
    ConfigError: pdoc is not installed, or the folder cannot be written.
  """
  with refused("docs", "needs pdoc: pip install pdoc", ImportError):
    from pdoc import doc, render

  class Page(doc.Module):
    """A module with all modules below it, also where `__all__` has none."""

    submodules: Any = ()

  class Text(Page):
    """A Markdown file in place of a module."""

    source = ""

    def __init__(self, name):
      path = _ROOT / _TEXTS[name]
      text = types.ModuleType(name, _read(path))
      text.__docformat__ = "markdown"
      super().__init__(text)
      self.source_file = path

  render.configure(
      docformat="google",
      edit_url_map={top: f"{_SITE}/{top}/" for top in ("agsfl", "experiments")},
      footer_text=f"agsfl {agsfl.__version__}",
      show_source=False,
  )
  pages = {name: Text(name) for name in _TEXTS}
  pages |= {name: Page(importlib.import_module(name)) for name in names}
  for name, page in pages.items():
    page.submodules = [
        other for below, other in pages.items()
        if below.rpartition(".")[0] == name
    ]
  for page in pages.values():
    for found in page.classes:
      _explain_fields(found)
  front = pages["README"]
  front.submodules = [pages[name] for name in _FIRST if name in pages]

  with refused(f"--out={folder}", "cannot be written"):
    for name, page in {**pages, "index": front}.items():
      path = folder / f"{name.replace('.', '/')}.html"
      path.parent.mkdir(parents=True, exist_ok=True)
      text = render.html_module(page, pages)
      text = text.replace("</head>", f"{_STYLE}</head>", 1)
      path.write_text(text, encoding="utf-8")
    # Without the texts, whose images would be in it.
    search = render.search_index({name: pages[name] for name in names})
    (folder / "search.js").write_text(search, encoding="utf-8")


def _explain_fields(found):
  """Gives settings their help. Python's words on named tuples say nothing."""
  if hasattr(found.obj, "_fields"):
    for name in ("__init__", *found.obj._fields):
      found.members[name].docstring = ""
  for field in getattr(found.obj, "__dataclass_fields__", {}).values():
    if "setting" in field.metadata and field.name in found.members:
      found.members[field.name].docstring = said_of(field).help


def _read(path):
  """A Markdown file, with links to the repository for files beside it."""
  if path.exists():
    content = path.read_text(encoding="utf-8")
  else:  # an installed package has no clone, but it has the README
    content = str(metadata.metadata("agsfl").get_payload())
  for file, page in _PAGES.items():
    content = content.replace(f"]({file})", f"]({page})")
  # The pages show the images of a clone. Without them, and for badges, which
  # come from the network, there are links.
  if not (_ROOT / _FIGURES).exists():
    image = r'<img src="([^"]+)".*alt="([^"]+)">'
    content = re.sub(image, r"[\2](\1)", content)
    content = re.sub(r"!(\[[^\]]*\]\()(?!\w+:)", r"\1", content)
  content = re.sub(r"\[!\[([^\]]*)\]\(\w+:[^)]*\)\]", r"[\1]", content)
  place = "/".join([_SITE, *path.parent.relative_to(_ROOT).parts])
  link = r"(?<!!)(\[[^\]]*\]\()(?!\w+:|#|[\w/]+\.html)"
  return re.sub(link, rf"\1{place}/", content)


def main(argv):
  scripts.start(argv)
  with scripts.one_line_errors():
    folder = out.folder("agsfl-docs")
    build(folder, module_names())
    print(folder / "index.html")


if __name__ == "__main__":
  scripts.run(main)
