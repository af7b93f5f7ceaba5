"""Graceful stop on Ctrl-C, SIGTERM and SIGHUP, and the command to go on."""

import contextlib
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from absl import flags

from agsfl import errors, hosts

STOPPED = 130  # exit code
# Set for a process whose standard input ends when its parent does.
PARENT = "AGSFL_STDIN_ENDS_WITH_PARENT"


def catch(handler: Callable) -> dict[int, Callable]:
  """Calls `handler` on Ctrl-C, SIGTERM and when the terminal ends (SIGHUP).

  Returns:
    By signal, the earlier handler.
  """
  caught = [signal.SIGINT, signal.SIGTERM]
  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # by nohup
    caught.append(signal.SIGHUP)
  return {number: signal.signal(number, handler) for number in caught}


def give_back(before: dict[int, Callable]):
  """Undoes `catch`."""
  for number, handler in before.items():
    signal.signal(number, handler)


def end_with_parent():
  """Sends this process SIGTERM when its parent ends, if `PARENT` is set.

  A parent that is killed cannot send anything itself.
  """
  if os.environ.pop(PARENT, None) is None:
    return

  def wait():
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=wait, daemon=True).start()


class Signals:
  """Notes Ctrl-C, SIGTERM and SIGHUP; loops ask `seen`.

  An exception that a handler raises is lost if it comes during a callback, such
  as JAX's at garbage collection. So the handler of the first signal raises
  none.

  After the first Ctrl-C or SIGTERM, both signals have their earlier handlers
  again, which end a command at once. SIGHUP does not do this: a terminal that
  closes sends it twice, once from the shell and once from the kernel.

  A command enters one `Signals` and passes it to all that it calls.

  Attributes:
    seen: whether one came.
    on_first: called when the first one comes.
  """

  def __init__(self, on_first: Callable[[], None] = lambda: None):
    """Nothing is caught yet.

    Args:
      on_first: called when the first one comes.
    """
    self.seen = False
    self.on_first = on_first
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
      for ends in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ends, self._before[ends])
    if first:
      # The terminal may be gone, or this signal came during a write to it.
      with contextlib.suppress(OSError, RuntimeError):
        self.on_first()

  def check(self):
    """Raises StoppedError if a signal came."""
    if self.seen:
      raise errors.StoppedError("stopped")


@contextlib.contextmanager
def continue_hint(folder: Path):
  """Ends a stopped command with its exit code and the command to go on.

  Args:
    folder: where it writes, whether --workdir is given or not.
  """
  try:
    yield
  except (errors.StoppedError, KeyboardInterrupt) as error:
    why = str(error) or "stopped"
    if not hosts.is_first():
      sys.exit(STOPPED)
    with contextlib.suppress(OSError):  # the terminal may be gone
      print(f"{why}; to go on: {shlex.join(_command(folder))}", file=sys.stderr)
    sys.exit(STOPPED)


def _command(folder):
  """How this program was started, with its folder named."""
  python, program, *arguments = sys.orig_argv
  del python  # its path may be long
  started = [program, *arguments]
  if Path(program).name == "agsfl":  # the console command
    started[0] = "agsfl"
  else:
    started.insert(0, "python")
  place = [] if flags.FLAGS["workdir"].present else [f"--workdir={folder}"]
  return [*started, *place]
