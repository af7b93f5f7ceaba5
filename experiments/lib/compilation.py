"""Where compiled programs are stored, so that runs do not compile them anew."""

import os
import platform
import zlib
from pathlib import Path

import jax
from absl import flags

from agsfl.files import expanded

_FOLDER = flags.DEFINE_string(
    "compilation_cache_dir",
    None,
    "Folder for compiled programs, which later runs use again. Default: "
    "JAX_COMPILATION_CACHE_DIR, or else agsfl in the user's cache folder. none "
    "means no such folder.",
)


def use_cache():
  """Tells JAX where compiled programs are stored."""
  if _FOLDER.value == "none":
    jax.config.update("jax_enable_compilation_cache", False)
  elif _FOLDER.value or "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    folder = expanded(_FOLDER.value) if _FOLDER.value else _default()
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _default():
  """A folder for this kind of processor.

  A program for CPUs uses the instructions of one kind; home folders can be
  shared by computers of several kinds.
  """
  base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
  kind = f"{platform.machine()}-{zlib.crc32(_instructions()):08x}"
  return Path(base) / "agsfl" / kind


def _instructions():
  """A text that differs between kinds of processors."""
  try:
    for line in Path("/proc/cpuinfo").read_bytes().splitlines():
      if line.startswith((b"flags", b"Features")):
        return line
  except OSError:
    pass
  return platform.processor().encode()
