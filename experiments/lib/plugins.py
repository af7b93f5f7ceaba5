"""The flag --plugins: the user's own modules, which register parts."""

import importlib
import os
import sys

from absl import flags

from agsfl.errors import refused

_PLUGINS = flags.DEFINE_list(
    "plugins",
    [],
    "Modules of your own, imported first: they register models, methods, "
    "controllers and others, which settings may then name. Modules in the "
    "current folder are found.",
)


def load():
  """Imports the modules that the flag names.

  Raises:
    ConfigError: one is not there, or fails.
  """
  folder = os.getcwd()
  if _PLUGINS.value and folder not in sys.path:
    sys.path.append(folder)
  for name in _PLUGINS.value:
    # A module of the user's may raise anything.
    with refused(
        f"--plugins={name}", "must be a module that can be imported", Exception
    ):
      importlib.import_module(name)
