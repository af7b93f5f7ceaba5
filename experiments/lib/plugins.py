"""The flag --plugins: the user's own modules, which register parts."""

import importlib
import os
import sys

from absl import flags

from agsfl.errors import refused

_PLUGINS = flags.DEFINE_list(
    "plugins",
    [],
    "Your own modules. They are imported first, and register models, methods, "
    "controllers and other parts. Settings may then name these parts. Modules "
    "in the current folder are found.",
)


def load():
  """Imports the modules that the flag names.

  Raises:
    ConfigError: a module is missing or raises an error.
  """
  folder = os.getcwd()
  if _PLUGINS.value and folder not in sys.path:
    sys.path.append(folder)
  for name in _PLUGINS.value:
    # The user's module may raise any error.
    with refused(
        f"--plugins={name}", "must be a module that can be imported", Exception
    ):
      importlib.import_module(name)
