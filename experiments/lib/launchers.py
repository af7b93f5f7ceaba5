"""Where the runs of a sweep go: processes here, or jobs of Slurm.

A launcher is a function of {workdir: command}. It yields each workdir as its
run ends, with the reason if it failed, else None. When Ctrl-C, SIGTERM or
SIGHUP comes, or has come before, it starts nothing new and raises StoppedError.
"""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

from agsfl.errors import StoppedError, refuse
from experiments.lib import scripts, stopping

JOBS = flags.DEFINE_integer(
    "jobs",
    1,
    "How many runs go at once. They share the cores. On a GPU leave it at 1.",
    lower_bound=1,
)

# Seconds between looks at processes, and at jobs, whose files may lie on a
# slow disk.
_LOCAL_SECONDS = 0.1
_SLURM_SECONDS = 1.0
_TRACEBACK = "Traceback (most recent call last):"


@contextlib.contextmanager
def _bound_to(cores):
  """Processes that are started within use these cores alone; None means all.

  `preexec_fn` would fork, which is unsafe once JAX has started.
  """
  if cores is None:
    yield
    return
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)


def _python_path():
  """Where a child finds this project, and after it the user's own modules.

  The current folder is last: it may hold an `experiments` of the user's.
  """
  project = Path(__file__).resolve().parents[2]
  given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
  folders = [str(project), *filter(None, given), os.getcwd()]
  return os.pathsep.join(folders)


def _start(arguments, workdir, cores=None):
  """A process, and where in workdir/log.txt its output begins."""
  workdir.mkdir(parents=True, exist_ok=True)
  with (
      (workdir / "log.txt").open("a", encoding="utf-8") as log,
      _bound_to(cores),
  ):
    begin = log.tell()
    process = subprocess.Popen(
        arguments,
        stdout=log,
        stderr=subprocess.STDOUT,
        # A pipe closes when this process ends; so the child notices it.
        stdin=subprocess.PIPE,
        # In a session of its own, so that Ctrl-C reaches it only once, through
        # the launcher.
        start_new_session=True,
        env={
            **os.environ,
            "PYTHONPATH": _python_path(),
            stopping.PARENT: "1",
        },
    )
  return process, begin


def execute(arguments: list[str], workdir: Path) -> str | None:
  """Runs a command to its end; its output goes to workdir/log.txt.

  Args:
    arguments: the command.
    workdir: of the run.

  Returns:
    Why it failed, or None.
  """
  process, begin = _start(arguments, workdir)
  process.wait()
  return _why(process, workdir, begin)


def _why(process, workdir, begin):
  """Why a process failed, in one line; None if it did not."""
  process.stdin.close()
  code = process.returncode
  if not code:
    return None
  if code < 0:
    # The last lines of its log have nothing to do with this.
    memory = ", perhaps for want of memory" if code == -signal.SIGKILL else ""
    return f"killed by {signal.Signals(-code).name}{memory}"
  with (workdir / "log.txt").open(encoding="utf-8", errors="replace") as log:
    log.seek(begin)
    return " ".join([f"({code})", *_error_in(log.read().splitlines())])


def _error_in(lines: list[str]) -> list[str]:
  """The line of a log that names the error, if the log has any lines.

  It is the last line that begins with "error:". Without one it is the line
  that ends the last stack of a traceback: the text of an exception may have
  further lines, and JAX adds a remark. Else it is the last line.
  """
  # Other processes may write to the log, and dashboards write after an error.
  if own := [line for line in lines if line.startswith("error:")]:
    return own[-1:]
  if _TRACEBACK in lines:
    last = len(lines) - lines[::-1].index(_TRACEBACK)
    return [line for line in lines[last:] if line and line[0] != " "][:1]
  return lines[-1:]


@contextlib.contextmanager
def _counted(signals: stopping.Signals) -> Iterator[list[int]]:
  """A list of the signals that come from now on; the first is noted outside.

  SIGHUP counts only if it is the first one: it never means "stop at once".
  """
  came = []

  def note(number, frame):
    del frame
    signals.seen = True
    if number != signal.SIGHUP or not came:
      came.append(number)

  before = stopping.catch(note)
  try:
    yield came
  finally:
    stopping.give_back(before)


def local(
    jobs: int,
    signals: stopping.Signals,
    on_look: Callable[[], None] = lambda: None,
) -> Callable:
  """A launcher of processes on this machine, each with its share of cores.

  It passes a signal on to them as SIGTERM, and ends when they have ended.

  Args:
    jobs: processes at once.
    signals: of the command, already entered.
    on_look: called at each look at the processes, some times a second.

  Returns:
    The launcher. It raises StoppedError if a signal came.
  """
  shares = [None] * jobs
  if jobs > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[i::jobs]) or set(cores) for i in range(jobs)]

  def launch(commands):
    waiting, free, running = list(commands.items()), list(shares), {}
    passed_on = 0
    with _counted(signals) as came:
      while running or (waiting and not signals.seen):
        while waiting and free and not signals.seen:
          workdir, arguments = waiting.pop(0)
          try:
            running[workdir] = *_start(arguments, workdir, free[-1]), free.pop()
          except OSError as error:
            yield workdir, str(error)
        if len(came) > passed_on:
          if not passed_on:
            with contextlib.suppress(OSError):  # the terminal may be gone
              signals.on_first()
          passed_on += 1
          for process, *_ in running.values():
            process.terminate()
        time.sleep(_LOCAL_SECONDS)
        on_look()
        for workdir, (process, begin, share) in list(running.items()):
          if process.poll() is not None:
            del running[workdir]
            free.append(share)
            why = _why(process, workdir, begin)
            # A run that a signal ended has not failed.
            if not signals.seen or why is None:
              yield workdir, why
      signals.check()

  return launch


def _number(text):
  """An option's value: an int or a float if it is one, else text."""
  for kind in (int, float):
    with contextlib.suppress(ValueError):
      return kind(text)
  return text


def slurm(
    folder: Path, options: list[str], signals: stopping.Signals
) -> Callable:
  """A launcher of jobs of Slurm, which go on when the launcher is stopped.

  A run's job.txt names its job. A launcher that is started again waits for a
  job that is still alive.

  Args:
    folder: of the sweep, which all nodes see.
    options: name=value, of submitit's executor.
    signals: of the command, already entered.

  Raises:
    ConfigError: submitit or Slurm is missing, or an option is unknown.
  """
  executor = _executor(folder / "jobs", options)

  def launch(commands):
    jobs = {}
    # Slurm refuses jobs one by one, such as those beyond a user's limit.
    for workdir, arguments in commands.items():
      if signals.seen:
        break
      try:
        jobs[workdir] = _job(executor, arguments, workdir)
      except (OSError, RuntimeError) as error:
        yield workdir, scripts.first_line(error)
    # Jobs may wait and run for days. Each is yielded soon after its end.
    while jobs and not signals.seen:
      time.sleep(_SLURM_SECONDS)
      for workdir, job in list(jobs.items()):
        if job.done():
          del jobs[workdir]
          try:
            yield workdir, job.result()
          except RuntimeError as error:  # killed, or out of time
            yield workdir, re.sub(r"\s*\n\s*", " ", str(error).strip())
    if signals.seen:
      raise StoppedError("stopped waiting, Slurm's jobs go on")

  return launch


def _executor(folder, options):
  """What submits jobs; the folder is for its own files."""
  # It is imported here, because only this launcher needs it.
  try:
    import submitit
  except ImportError:
    refuse("--launcher=slurm", "needs submitit: pip install submitit")
  parsed = {}
  for option in options:
    name, equals, value = option.partition("=")
    if not equals:
      refuse(f"--slurm={option}", "must be name=value")
    parsed[name] = _number(value)
  try:
    executor = submitit.AutoExecutor(folder, cluster="slurm")
  except RuntimeError:
    refuse("--launcher=slurm", "must be started where Slurm's srun is")
  # A folder `experiments` of the user must not replace this one in a job.
  setup = [
      "export PYTHONSAFEPATH=1",
      f"export PYTHONPATH={shlex.quote(_python_path())}",
  ]
  try:
    executor.update_parameters(slurm_setup=setup, **parsed)
  except (AssertionError, NameError, TypeError, ValueError) as error:
    refuse(
        f"--slurm={','.join(options)}",
        f"must be options of submitit ({scripts.first_line(error)})",
    )
  return executor


def _job(executor, arguments, workdir):
  """The run's live job, or a new one."""
  import submitit

  # A job of an earlier start may be alive still. Slurm forgets old jobs; one
  # that it does not know is not alive.
  note = workdir / "job.txt"
  if note.exists():
    job_id = note.read_text(encoding="utf-8").strip()
    job = submitit.SlurmJob(executor.folder, job_id)
    if not job.done(force_check=True) and job.state != "UNKNOWN":
      return job
  workdir.mkdir(parents=True, exist_ok=True)
  job = executor.submit(execute, arguments, workdir)
  note.write_text(f"{job.job_id}\n", encoding="utf-8")
  return job
