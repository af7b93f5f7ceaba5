"""How every command begins, and how errors end it: with one line."""

import contextlib
import io
import logging as python_logging
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import jax
from absl import app, flags, logging

from agsfl import errors
from experiments.lib import compilation, stopping

_LONGEST = 300  # characters of a line of an error

# The project's own files of flags, by their names in its folder.
_PROJECT = Path(__file__).resolve().parents[2]
_FLAGFILE = re.compile(r"(--?flagfile=)?(experiments/\w+/\w+\.flags)")


def run(main: Callable[[list[str]], None], argv: list[str] | None = None):
  """Parses the flags and runs a command.

  Args:
    main: of the command; gets the words that are no flags.
    argv: the program's name and its arguments; None for those of the process.
  """
  app.run(main, argv, flags_parser=_parsed)


def _parsed(argv):
  """The words that are no flags; one line about a flag that is wrong."""
  try:
    return flags.FLAGS([_located(word) for word in argv])
  except (flags.Error, UnicodeDecodeError) as error:
    why = str(error).removeprefix("ERROR:: ")
  except RecursionError:  # while absl looks for flags of a similar name
    why = "Unknown command line flag with a very long name"
  fail([f"error: {why}; --helpshort lists all flags"])


def _located(word):
  """An argument; a flagfile of the project is found from every folder."""
  match = _FLAGFILE.fullmatch(word)
  if match is None or Path(match[2]).exists():
    return word
  place = _PROJECT / match[2]
  return f"{match[1] or ''}{place}" if place.exists() else word


def start(argv: list[str]):
  """What every command does first: refuses stray words, sets up JAX.

  From then on SIGTERM ends the command with the code 143, and Ctrl-C with 130.
  Incomplete files are removed. Both raise an exception, which is lost if it
  comes during a callback, such as JAX's at garbage collection. So this suffices
  for short commands. Those with loops use `stopping.Signals`.
  """
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
  if len(argv) > 1:
    fail([f"error: unknown argument {argv[1]!r}; settings are --flags"])
  # Names of files and clients may have characters that the terminal cannot
  # show.
  if isinstance(sys.stdout, io.TextIOWrapper):
    sys.stdout.reconfigure(errors="backslashreplace")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  # Orbax logs every step, and also errors that are raised; JAX names every
  # backend that is missing.
  logging.get_absl_handler().addFilter(
      lambda record: "orbax" not in record.pathname
      or record.levelno > logging.converter.ABSL_TO_STANDARD[logging.ERROR]
  )
  for package in ("jax", "matplotlib"):
    python_logging.getLogger(package).setLevel(python_logging.WARNING)
  _use_cores()
  compilation.use_cache()


def _use_cores():
  """One CPU device for each core, unless the user has set their number."""
  users_own = "xla_force_host_platform_device_count"
  if (
      users_own in os.environ.get("XLA_FLAGS", "")
      or "JAX_NUM_CPU_DEVICES" in os.environ
  ):
    return
  cores = os.cpu_count()
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  # Before JAX starts; other platforms ignore it.
  jax.config.update("jax_num_cpu_devices", cores)


def fail(lines: list[str]) -> NoReturn:
  """Ends the program with the code 1; the one place that prints errors.

  Args:
    lines: each is printed on one line; a long one is cut.
  """
  for line in lines:
    text = errors.printable(line)
    if len(text) > _LONGEST:
      text = f"{text[: _LONGEST - 3]}..."
    print(text, file=sys.stderr)
  sys.exit(1)


def first_line(error: Exception) -> str:
  """The first line of an error's message, or its type if it has none."""
  return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextlib.contextmanager
def one_line_errors():
  """Ends the program with one line for an error that the user can correct."""
  try:
    yield
    sys.stdout.flush()
  except (errors.ConfigError, errors.DivergedError) as error:
    fail([f"error: {error}"])
  except MemoryError as error:
    fail([f"error: not enough memory ({str(error) or 'none is left'})"])
  except (errors.StoppedError, KeyboardInterrupt):
    sys.exit(stopping.STOPPED)
  except BrokenPipeError:
    # The reader, such as head, has closed the pipe. Python would write to it
    # once more at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
  except Exception:
    platforms = jax.config.jax_platforms
    if platforms is None or _jax_starts():
      raise
    fail([
        f"error: JAX_PLATFORMS={platforms}: must be platforms that are here: "
        f"{', '.join(_platforms())}"
    ])


def _jax_starts():
  """Whether the platforms that the user asked for are there."""
  try:
    jax.devices()
  except (RuntimeError, AssertionError):
    return False
  return True


def _platforms():
  """The platforms that JAX finds by itself."""
  jax.config.update("jax_platforms", None)
  return sorted({"cpu", jax.default_backend()})
