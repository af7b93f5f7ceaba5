"""Ends that are asked for, by Ctrl-C or SIGTERM, and the command to go on."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from absl import flags

from agsfl import errors

STOPPED = 130  # exit code
# Set for a process whose standard input ends when its parent does.
PARENT = "AGSFL_STDIN_ENDS_WITH_PARENT"


def catch(handler: Callable) -> dict[int, Callable]:
  """Has Ctrl-C, SIGTERM and the terminal's end (SIGHUP) call `handler`.

  Returns:
    By signal, what was called before.
  """
  asked = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # by nohup
    asked.append(signal.SIGHUP)
  return {number: signal.signal(number, handler) for number in asked}


def give_back(before: dict[int, Callable]):
  """Undoes `catch`."""
  for number, handler in before.items():
    signal.signal(number, handler)


def end_with_parent():
  """Has SIGTERM come once the parent is gone, if `PARENT` is set.

  For a parent that ends by force, which can pass nothing on.
  """
  if os.environ.pop(PARENT, None) is None:
    return

  def wait():
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=wait, daemon=True).start()


class Signals:
  """Notes Ctrl-C, SIGTERM and SIGHUP.

  From then on the first two act as before. SIGHUP does not: it comes from the
  shell and from the kernel as a terminal closes.

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
    self._before = catch(self._note)
    return self

  def __exit__(self, *exception):
    give_back(self._before)

  def _note(self, number, frame):
    del frame
    first, self.seen = not self.seen, True
    if number != signal.SIGHUP:
      signal.signal(number, self._before[number])
    if first:
      with contextlib.suppress(OSError):  # the terminal may be gone
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
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(f"{why}; to go on: {shlex.join(_command(folder))}", file=sys.stderr)
    sys.exit(STOPPED)


def _command(folder):
  """How this program was started, with its folder named."""
  main = sys.modules["__main__"].__spec__
  program = ["-m", main.name] if main else [sys.argv[0]]
  place = [] if flags.FLAGS["workdir"].present else [f"--workdir={folder}"]
  return ["python", *program, *sys.argv[1:], *place]
