"""The flags of a run of several processes, on one host or on several."""

import faulthandler

from absl import flags

from agsfl import hosts
from experiments.lib import runner

_COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address",
    None,
    "For a run of several processes: host:port of process 0, with any free "
    "port. Under Slurm, Open MPI and Kubernetes, and on TPU pods, processes "
    "find each other without this flag and the next two.",
)
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "How many processes the run has."
)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id",
    None,
    "The number of this process, from 0. Process 0 writes the files in "
    "--workdir, which all must see, and prints.",
)


def join():
  """Joins the other processes of the run, if there are any.

  Raises:
    ConfigError: a flag is wrong, or the others cannot be reached.
  """
  hosts.join(
      _COORDINATOR_ADDRESS.value, _NUM_PROCESSES.value, _PROCESS_ID.value
  )
  if hosts.several():
    # If a process dies, JAX ends the others and says why; no stacks follow.
    faulthandler.disable()
  if not hosts.is_first():
    flags.FLAGS[runner.QUIET.name].value = True
