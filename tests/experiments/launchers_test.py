"""Launchers: processes, signals and jobs, with small commands for runs."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

from absl.testing import absltest, parameterized

from agsfl.errors import ConfigError, StoppedError
from experiments.lib import launchers, stopping

# The first SIGTERM ends it after a moment, the second one at once.
PATIENT = """
import pathlib, signal, sys, time
def stop(*_):
  signal.signal(signal.SIGTERM, signal.SIG_DFL)
  pathlib.Path("AFTER").touch()
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, lambda *_: print("ctrl-c", flush=True))
pathlib.Path("READY").touch()
for _ in range(600):
  time.sleep(0.1)
"""

# Ends as an error within a compiled function does: JAX's remark comes last.
OF_JAX = """
import jax
def fails(x):
  try:
    raise KeyError("first")
  except KeyError as error:
    raise ValueError("two\\nlines") from error
jax.jit(fails)(1.0)
"""
KILLED = """
import os, signal
print("round 7", flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""

# What submitit needs of Slurm: a job is a process of its own, its id counts.
SLURM = {
    "srun": """
while [ "${1#--}" != "$1" ]; do
  case $1 in --output|--error) shift 2;; *) shift;; esac
done
exec "$@"
""",
    "sbatch": """
if grep -q partition=none "$1"; then
  echo "sbatch: error: invalid partition specified: none" >&2
  echo "sbatch: error: Batch job submission failed" >&2
  exit 1
fi
echo >>"$SLURM_STATE/ids"
id=$(wc -l <"$SLURM_STATE/ids" | tr -d ' ')
export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0
export SLURM_PROCID=0 SLURM_LOCALID=0
(bash "$1"; touch "$SLURM_STATE/$id.done") >/dev/null 2>&1 &
echo "Submitted batch job $id"
""",
    "sacct": """
echo "JobID|State|NodeList"
for id in $(seq "$(wc -l <"$SLURM_STATE/ids")"); do
  [ -e "$SLURM_STATE/$id.done" ] && state=COMPLETED || state=RUNNING
  echo "$id|$state|here"
done
""",
}


def python(code):
  return [sys.executable, "-c", code]


def waited_for(path):
  return f"import os, time\nwhile not os.path.exists({str(path)!r}): " + (
      "time.sleep(0.05)"
  )


class LauncherTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def signals(self, *paths, number=signal.SIGINT):
    """Sends this process a signal as each of these files appears."""

    def send():
      for path in paths:
        while not path.exists():
          if done.wait(0.02):  # the test ended without the file
            return
        os.kill(os.getpid(), number)

    done = threading.Event()
    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    self.addCleanup(thread.join)
    self.addCleanup(done.set)


class LocalTest(LauncherTest):

  @absltest.skipUnless(hasattr(os, "sched_getaffinity"), "no Linux")
  def test_shares_of_cores(self):
    """Law: processes at once have cores of their own, where there are enough.

    This one keeps all of its own.
    """
    before = os.sched_getaffinity(0)
    code = "import os, time; time.sleep(0.3); print(*os.sched_getaffinity(0))"
    places = [self.folder / "a", self.folder / "b"]
    commands = dict.fromkeys(places, python(code))
    ends = dict(launchers.local(2, stopping.Signals())(commands))
    self.assertEqual(set(ends.values()), {None})
    a, b = (set((p / "log.txt").read_text().split()) for p in places)
    self.assertEqual(a | b, set(map(str, before)))
    self.assertTrue(len(before) == 1 or not a & b)
    self.assertEqual(os.sched_getaffinity(0), before)

  def test_ends_and_failures(self):
    """A folder that cannot be made fails its run. Logs grow."""
    (self.folder / "file").touch()
    commands = {
        self.folder / "well": python("print('well')"),
        self.folder / "file" / "run": python(""),
        self.folder / "ill": python("print('first'); exit('last')"),
    }
    ends = dict(launchers.local(2, stopping.Signals())(commands))
    self.assertIsNone(ends[self.folder / "well"])
    self.assertEqual(ends[self.folder / "ill"], "(1) last")
    self.assertIn("Not a directory", ends[self.folder / "file" / "run"])
    del commands[self.folder / "file" / "run"]
    look = mock.Mock()
    list(launchers.local(1, stopping.Signals(), look)(commands))
    look.assert_called()
    log = (self.folder / "well" / "log.txt").read_text()
    self.assertEqual(log, "well\n" * 2)

  def test_why_it_failed(self):
    """Its own error line; not lines of other processes, nor later lines.

    Of a traceback the line with the error, and not what follows.
    """
    place = self.folder / "run"
    place.mkdir()
    (place / "log.txt").write_text("error: of an earlier start\n")
    for code, why in (
        ("print('error: mine'); exit('later')", "(1) error: mine"),
        ("exit('last')", "(1) last"),
        ("import sys; sys.exit(3)", "(3)"),
        (OF_JAX, "(1) ValueError: two"),
        (KILLED, "killed by SIGKILL, perhaps for want of memory"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGABRT)",
         "killed by SIGABRT"),
    ):
      ((_, reason),) = launchers.local(1, stopping.Signals())(
          {place: python(code)}
      )
      self.assertEqual(reason, why)

  def test_children_learn_that_it_was_killed(self):
    ready, after = self.folder / "ready", self.folder / "after"
    child = (
        f"import pathlib, sys; pathlib.Path({str(ready)!r}).touch(); "
        f"sys.stdin.read(); pathlib.Path({str(after)!r}).touch()"
    )
    commands = f"{{pathlib.Path({str(self.folder)!r}): {python(child)!r}}}"
    parent = subprocess.Popen(
        python(
            "import pathlib; from experiments.lib import launchers, stopping; "
            f"list(launchers.local(1, stopping.Signals())({commands}))"
        ),
        cwd=Path(__file__).resolve().parents[2],
    )
    while not ready.exists():
      self.assertIsNone(parent.poll())
      time.sleep(0.02)
    self.assertFalse(after.exists())
    parent.kill()
    parent.wait()
    end = time.monotonic() + 60
    while not after.exists():
      self.assertLess(time.monotonic(), end)
      time.sleep(0.02)

  @parameterized.parameters(
      (1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGHUP)
  )
  def test_signals_go_on_as_sigterm(self, count, number):
    """The first waits for children, which may take their time.

    The second does not, but for the other SIGHUP of a terminal that closes.
    """
    ready, after = self.folder / "ready", self.folder / "after"
    code = PATIENT.replace("READY", str(ready)).replace("AFTER", str(after))
    patient = count == 1 or number == signal.SIGHUP
    if patient:
      code = code.replace("range(600)", "range(20)")
    ended = self.folder / "ended"
    code += f"pathlib.Path({str(ended)!r}).touch()"
    self.signals(*[ready, after][:count], number=number)
    commands = {
        self.folder / "one": python(code),
        self.folder / "two": python(""),
    }
    stops = []

    def on_stop():
      stops.append(1)
      raise OSError("no terminal")

    launch = launchers.local(1, stopping.Signals(on_stop))
    ends = {}
    with self.assertRaisesRegex(StoppedError, "^stopped$"):
      ends.update(launch(commands))
    self.assertEqual(stops, [1])
    self.assertEqual(ended.exists(), patient)
    self.assertFalse((self.folder / "two").exists())
    # Neither Ctrl-C nor an answer of its own.
    self.assertEqual((self.folder / "one" / "log.txt").read_text(), "")


class StoppingTest(absltest.TestCase):

  def wait_for(self, signals):
    end = time.monotonic() + 60
    while not signals.seen:
      self.assertLess(time.monotonic(), end)
      time.sleep(0.01)

  def test_the_parent_ends(self):
    """Its end of the pipe closes: SIGTERM comes once, if it was asked for."""
    reading, writing = os.pipe()
    stopping.end_with_parent()  # not asked: reads nothing
    with (
        open(reading) as pipe,
        mock.patch.object(sys, "stdin", pipe),
        mock.patch.dict(os.environ, {stopping.PARENT: "1"}),
        stopping.Signals() as signals,
    ):
      stopping.end_with_parent()
      self.assertNotIn(stopping.PARENT, os.environ)
      self.assertFalse(signals.seen)
      os.close(writing)
      self.wait_for(signals)

  def test_a_second_signal_of_the_other_kind(self):
    """Law: after Ctrl-C or SIGTERM either of them acts as before."""
    before = signal.signal(signal.SIGTERM, mock.Mock())
    self.addCleanup(signal.signal, signal.SIGTERM, before)
    with stopping.Signals() as signals:
      signal.raise_signal(signal.SIGINT)
      self.assertTrue(signals.seen)
      signal.getsignal(signal.SIGTERM).assert_not_called()
      signal.raise_signal(signal.SIGTERM)
      signal.getsignal(signal.SIGTERM).assert_called_once()

  def test_the_terminal_closes(self):
    """Nothing can be printed, and nohup goes on."""
    before = signal.getsignal(signal.SIGHUP)
    self.addCleanup(signal.signal, signal.SIGHUP, before)
    on_first = mock.Mock(side_effect=OSError("no terminal"))
    with stopping.Signals(on_first) as signals:
      signal.raise_signal(signal.SIGHUP)
      self.wait_for(signals)
      signal.raise_signal(signal.SIGHUP)  # bash and the kernel send one each
    on_first.assert_called_once_with()
    self.assertEqual(signal.getsignal(signal.SIGHUP), before)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopping.Signals() as signals:
      signal.raise_signal(signal.SIGHUP)
      self.assertFalse(signals.seen)


class SlurmTest(LauncherTest):

  def setUp(self):
    super().setUp()
    programs = self.folder / "bin"
    programs.mkdir()
    for name, text in SLURM.items():
      (programs / name).write_text(f"#!/bin/bash{text}")
      (programs / name).chmod(0o755)
    self.enterContext(mock.patch.dict(os.environ, {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "SLURM_STATE": str(self.folder),
    }))
    # A folder of the user's with the name of ours, where the jobs start.
    (self.folder / "experiments").mkdir()
    (self.folder / "experiments" / "__init__.py").write_text("raise 1\n")
    self.enterContext(contextlib.chdir(self.folder))

  def slurm(self, *options):
    return launchers.slurm(self.folder, options, stopping.Signals())

  def test_jobs_go_on_and_are_waited_for(self):
    """Law: a run has one live job, however often the sweep is started."""
    release = self.folder / "release"
    commands = {
        self.folder / "long": python(waited_for(release)),
        self.folder / "ill": python("exit('last')"),
    }
    start = lambda signals: launchers.slurm(
        self.folder, ["timeout_min=5", "mem_gb=4.5"], signals
    )(commands)
    with stopping.Signals() as signals:
      launch = start(signals)
      self.assertEqual(next(launch), (self.folder / "ill", "(1) last"))
      self.signals(self.folder)
      with self.assertRaisesRegex(StoppedError, "jobs go on"):
        list(launch)
      # Law: a second signal ends the command at once.
      with self.assertRaises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    self.assertEqual((self.folder / "long" / "job.txt").read_text(), "1\n")

    launch = start(stopping.Signals())
    self.assertEqual(next(launch)[0], self.folder / "ill")
    release.touch()
    self.assertEqual(list(launch), [(self.folder / "long", None)])
    jobs = (self.folder / "ids").read_text()
    self.assertLen(jobs, 3)  # the one that failed has two

  def test_refused_by_sbatch(self):
    """A line for each run, and no job.txt."""
    launch = self.slurm("slurm_partition=none")
    ends = dict(launch({self.folder / "run": python("")}))
    (why,) = ends.values()
    self.assertEqual(why, "sbatch: error: invalid partition specified: none")
    self.assertFalse((self.folder / "run" / "job.txt").exists())

  @parameterized.parameters("no_such=1", "timeout_min=1h", "timeout_min", "x=")
  def test_bad_options(self, option):
    with self.assertRaises(ConfigError) as caught:
      self.slurm(option)
    self.assertStartsWith(str(caught.exception), f"--slurm={option}: must be ")
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_no_slurm(self):
    with mock.patch.dict(os.environ, PATH="/nowhere"):
      with self.assertRaisesRegex(ConfigError, "^--launcher=slurm: must "):
        self.slurm()


if __name__ == "__main__":
  absltest.main()
