"""Where the runs of a sweep go: processes here, or jobs of Slurm.

A launcher is a function of {workdir: command}. It yields each workdir as its
run ends, with the reason if it failed, else None. When Ctrl-C, SIGTERM or
SIGHUP comes it starts nothing new and raises StoppedError.
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

from agsfl.errors import ConfigError, StoppedError
from experiments.lib import scripts, stopping

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
            "JAX_COMPILATION_CACHE_DIR": os.environ.get(
                "JAX_COMPILATION_CACHE_DIR", str(workdir.parent / "compiled")
            ),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
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
def _signals() -> Iterator[list[int]]:
  """A list of the signals of `stopping.catch` that came so far.

  SIGHUP counts only if it is the first one: it never means "stop at once".
  """
  came = []

  def note(number, frame):
    del frame
    if number != signal.SIGHUP or not came:
      came.append(number)

  before = stopping.catch(note)
  try:
    yield came
  finally:
    stopping.give_back(before)


def local(jobs: int, on_stop: Callable[[], None] = lambda: None) -> Callable:
  """A launcher of processes on this machine, each with its share of cores.

  It passes a signal on to them as SIGTERM, and ends when they have ended.

  Args:
    jobs: processes at once.
    on_stop: called at the first signal.
  """
  shares = [None] * jobs
  if jobs > 1 and hasattr(os, "sched_setaffinity"):
    cores = sorted(os.sched_getaffinity(0))
    shares = [set(cores[i::jobs]) or set(cores) for i in range(jobs)]

  def launch(commands):
    waiting, free, running = list(commands.items()), list(shares), {}
    passed_on = 0
    with _signals() as came:
      while running or (waiting and not came):
        while waiting and free and not came:
          workdir, arguments = waiting.pop(0)
          try:
            running[workdir] = *_start(arguments, workdir, free[-1]), free.pop()
          except OSError as error:
            yield workdir, str(error)
        if len(came) > passed_on:
          if not passed_on:
            with contextlib.suppress(OSError):  # the terminal may be gone
              on_stop()
          passed_on += 1
          for process, *_ in running.values():
            process.terminate()
        time.sleep(_LOCAL_SECONDS)
        for workdir, (process, begin, share) in list(running.items()):
          if process.poll() is not None:
            del running[workdir]
            free.append(share)
            why = _why(process, workdir, begin)
            # A run that a signal ended has not failed.
            if not came or why is None:
              yield workdir, why
      if came:
        raise StoppedError("stopped")

  return launch


def _number(text):
  """An option's value: an int or a float if it is one, else text."""
  for kind in (int, float):
    with contextlib.suppress(ValueError):
      return kind(text)
  return text


def slurm(folder: Path, options: list[str]) -> Callable:
  """A launcher of jobs of Slurm, which go on when the launcher is stopped.

  A run's job.txt names its job. A launcher that is started again waits for a
  job that is still alive.

  Args:
    folder: of the sweep, which all nodes see.
    options: name=value, of submitit's executor.

  Raises:
    ConfigError: submitit or Slurm is missing, or an option is unknown.
  """
  try:
    import submitit
  except ImportError as error:
    raise ConfigError(
        "--launcher=slurm: needs submitit: pip install submitit"
    ) from error
  parsed = {}
  for option in options:
    name, equals, value = option.partition("=")
    if not equals:
      raise ConfigError(f"--slurm={option}: must be name=value")
    parsed[name] = _number(value)
  jobs_folder = folder / "jobs"
  try:
    executor = submitit.AutoExecutor(jobs_folder, cluster="slurm")
  except RuntimeError as error:
    raise ConfigError(
        "--launcher=slurm: must be started where Slurm's srun is"
    ) from error
  # A folder `experiments` of the user must not replace this one in a job.
  setup = [
      "export PYTHONSAFEPATH=1",
      f"export PYTHONPATH={shlex.quote(_python_path())}",
  ]
  try:
    executor.update_parameters(slurm_setup=setup, **parsed)
  except (AssertionError, NameError, TypeError, ValueError) as error:
    raise ConfigError(
        f"--slurm={','.join(options)}: must be options of submitit "
        f"({scripts.first_line(error)})"
    ) from error

  def job_of(arguments, workdir):
    """The run's live job, or a new one."""
    note = workdir / "job.txt"
    if note.exists():
      job_id = note.read_text(encoding="utf-8").strip()
      job = submitit.SlurmJob(jobs_folder, job_id)
      # Slurm forgets old jobs; one that it does not know is not alive.
      if not job.done(force_check=True) and job.state != "UNKNOWN":
        return job
    workdir.mkdir(parents=True, exist_ok=True)
    job = executor.submit(execute, arguments, workdir)
    note.write_text(f"{job.job_id}\n", encoding="utf-8")
    return job

  def launch(commands):
    jobs = {}
    with stopping.Signals() as signals:
      for workdir, arguments in commands.items():
        if signals.seen:
          break
        try:
          jobs[workdir] = job_of(arguments, workdir)
        except (OSError, RuntimeError) as error:
          yield workdir, scripts.first_line(error)
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
