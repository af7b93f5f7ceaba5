"""What all scripts begin with; no flags."""

import contextlib
import logging as python_logging
import os
import signal
import sys

import jax
from absl import flags, logging

from agsfl import errors
from experiments.lib import stopping


def start(argv: list[str]):
  """What every script does first: refuses stray words, sets up JAX.

  From then on SIGTERM ends it with the code 143, as Ctrl-C does with 130: files
  that are not whole are removed. Scripts that can go on take both themselves.
  """
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
  if len(argv) > 1:
    sys.exit(f"error: unknown argument {argv[1]!r}; settings are --flags")
  if not flags.FLAGS["verbosity"].present:
    logging.set_verbosity(logging.INFO)
  # Orbax tells of every step, and of errors that come to us too; JAX names
  # every backend that is not there.
  logging.get_absl_handler().addFilter(
      lambda record: "orbax" not in record.pathname
      or record.levelno > logging.converter.ABSL_TO_STANDARD[logging.ERROR]
  )
  python_logging.getLogger("jax").setLevel(python_logging.WARNING)
  # One CPU device for each core, before JAX starts; other platforms ignore it.
  cores = os.cpu_count()
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  jax.config.update("jax_num_cpu_devices", cores)


@contextlib.contextmanager
def one_line_errors():
  """Ends the program with one line at most where nothing is wrong in it."""
  try:
    yield
    sys.stdout.flush()
  except (errors.ConfigError, errors.DivergedError) as error:
    sys.exit(f"error: {error}")
  except MemoryError as error:
    sys.exit(f"error: not enough memory ({str(error) or 'none is left'})")
  except KeyboardInterrupt:
    sys.exit(stopping.STOPPED)
  except BrokenPipeError:
    # The reader, such as head, has seen enough; Python writes once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(141)
