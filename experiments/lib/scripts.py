"""How every command begins, and how it ends: with one line where it fails."""

import contextlib
import logging as python_logging
import os
import signal
import sys
from typing import NoReturn

import jax
from absl import flags, logging

from agsfl import errors
from experiments.lib import stopping

_LONGEST = 300  # characters of a line of an error


def start(argv: list[str]):
  """What every command does first: refuses stray words, sets up JAX.

  From then on SIGTERM ends it with the code 143, as Ctrl-C does with 130: files
  that are not whole are removed. Commands that can go on later catch both
  themselves.
  """
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
  if len(argv) > 1:
    fail([f"error: unknown argument {argv[1]!r}; settings are --flags"])
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  # Orbax logs every step, and errors that we raise too; JAX names every backend
  # that is not there.
  logging.get_absl_handler().addFilter(
      lambda record: "orbax" not in record.pathname
      or record.levelno > logging.converter.ABSL_TO_STANDARD[logging.ERROR]
  )
  python_logging.getLogger("jax").setLevel(python_logging.WARNING)
  _use_cores()


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
    lines: printed each on a line, which is cut where it is long.
  """
  for line in lines:
    text = errors.printable(line)
    if len(text) > _LONGEST:
      text = f"{text[: _LONGEST - 3]}..."
    print(text, file=sys.stderr)
  sys.exit(1)


@contextlib.contextmanager
def one_line_errors():
  """Ends the program with one line where the user can put something right."""
  try:
    yield
    sys.stdout.flush()
  except (errors.ConfigError, errors.DivergedError) as error:
    fail([f"error: {error}"])
  except MemoryError as error:
    fail([f"error: not enough memory ({str(error) or 'none is left'})"])
  except KeyboardInterrupt:
    sys.exit(stopping.STOPPED)
  except BrokenPipeError:
    # The reader, such as head, has seen enough; Python writes once more.
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
