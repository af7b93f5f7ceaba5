"""Where compiled programs are stored, so that runs do not compile them anew."""

import os
import platform
import tempfile
import zlib
from pathlib import Path

import jax
from absl import flags, logging

_FOLDER = flags.DEFINE_string(
    "compilation_cache_dir",
    None,
    "Folder for compiled programs, which later runs use again. Default: "
    "JAX_COMPILATION_CACHE_DIR, or else agsfl in the user's cache folder. It "
    "grows, and may be removed at any time. none means no such folder.",
)


def use_cache():
  """Sets where JAX stores compiled programs, short ones too.

  A run has many that JAX would compile anew; together they take over a second.
  It stores none if the folder cannot be written, or if there is no home folder.
  """
  folder = _folder()
  if folder is None or not _can_be_written(folder):
    jax.config.update("jax_enable_compilation_cache", False)
  else:
    jax.config.update("jax_compilation_cache_dir", folder)
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
      jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _folder():
  """The folder, or None; what begins with ~ still has no home folder."""
  asked = _FOLDER.value or os.environ.get("JAX_COMPILATION_CACHE_DIR")
  folder = os.path.expanduser(asked or _default())
  return None if folder == "none" or folder.startswith("~") else folder


def _can_be_written(folder):
  """Makes the folder; says so in one line if that fails."""
  if "://" in folder:  # storage that JAX reaches by itself
    return True
  try:
    os.makedirs(folder, exist_ok=True)
    tempfile.TemporaryFile(dir=folder).close()
  except OSError as error:
    logging.warning(
        "compiled programs are not stored: %s: %s", folder, error.strerror
    )
    return False
  return True


def _default():
  """A folder for this kind of processor.

  A program for CPUs uses the instructions of one kind; home folders can be
  shared by computers of several kinds.
  """
  base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
  kind = f"{platform.machine()}-{zlib.crc32(_instructions()):08x}"
  return os.path.join(base, "agsfl", kind)


def _instructions():
  """A text that differs between kinds of processors."""
  try:
    for line in Path("/proc/cpuinfo").read_bytes().splitlines():
      if line.startswith((b"flags", b"Features")):
        return line
  except OSError:
    pass
  return platform.processor().encode()
