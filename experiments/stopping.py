"""Ends that are asked for, by Ctrl-C or SIGTERM, and the command to go on."""

import contextlib
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from absl import flags

from agsfl import errors

STOPPED = 130  # exit code


class Signals:
  """Notes Ctrl-C and SIGTERM; each of them acts as before from then on.

  Attributes:
    seen: whether one came.
  """

  def __init__(self, on_first: Callable[[], None] = lambda: None):
    """Nothing is caught yet.

    Args:
      on_first: called when the first one comes.
    """
    self.seen = False
    self._on_first = on_first
    self._before = {}

  def __enter__(self):
    for name in (signal.SIGINT, signal.SIGTERM):
      self._before[name] = signal.signal(name, self._note)
    return self

  def __exit__(self, *exception):
    for name, handler in self._before.items():
      signal.signal(name, handler)

  def _note(self, number, frame):
    del frame
    first, self.seen = not self.seen, True
    signal.signal(number, self._before[number])
    if first:
      self._on_first()


@contextlib.contextmanager
def told_how_to_go_on(folder: Path):
  """Ends a stopped script with the command that takes it up, and its code.

  Args:
    folder: what the script's --workdir is, given or not.
  """
  try:
    yield
  except (errors.StoppedError, KeyboardInterrupt) as error:
    why = str(error) or "stopped"
    print(f"{why}; to go on: {shlex.join(_command(folder))}", file=sys.stderr)
    sys.exit(STOPPED)


def _command(folder):
  """How this program was started, with its folder named."""
  main = sys.modules["__main__"].__spec__
  program = ["-m", main.name] if main else [sys.argv[0]]
  place = [] if flags.FLAGS["workdir"].present else [f"--workdir={folder}"]
  return ["python", *program, *sys.argv[1:], *place]
