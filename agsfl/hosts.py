"""One run of several processes, each with its own devices.

All processes run the same program on one mesh of all their devices. Every
process reads the data set, then has only the samples of its own clients. The
first process alone writes the records and prints; each process writes its part
of the checkpoints. A run of one process does none of this.

A run of one process cannot go on from a checkpoint of several processes, and
several cannot go on from one of a single process. In all tests, k and the
selections were equal to those of one process. The last bits of the weights
differ.
"""

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from agsfl.errors import ConfigError, refuse, refused, require

# Seconds until a silent process counts as dead, and for which a process that
# ends waits for the others.
_PATIENCE = 20


def join(
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
):
  """Makes this process one of several, if there are several.

  Call it before anything else uses JAX. Without arguments JAX finds the other
  processes by itself under Slurm, Open MPI and Kubernetes, and on TPU pods.

  Args:
    coordinator_address: host:port of process 0, with any free port.
    num_processes: of the run.
    process_id: of this process, from 0.

  Raises:
    ConfigError: one argument is missing or does not fit, or the processes
      cannot reach each other.
  """
  given = {
      "coordinator_address": coordinator_address,
      "num_processes": num_processes,
      "process_id": process_id,
  }
  missing = [name for name, value in given.items() if value is None]
  if len(missing) == len(given):
    if not is_one_of_several(os.environ):
      return
  elif missing:
    refuse(
        f"--{missing[0]}",
        "must be given, because --coordinator_address, --num_processes and "
        "--process_id belong together",
    )
  else:
    _check(coordinator_address, num_processes, process_id)
  with refused(
      f"--coordinator_address={coordinator_address}",
      "must be an address where all processes of the run reach each other",
      (RuntimeError, ValueError),
  ):
    # SIGTERM is for this program to handle.
    jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        coordinator_address,
        num_processes,
        process_id,
        heartbeat_timeout_seconds=_PATIENCE,
        shutdown_timeout_seconds=_PATIENCE,
    )
  _connect()


def _connect():
  """Connects all devices, and those of the same place in each process.

  The first message on CPU waits for 30 seconds only, so it is sent before one
  process may be slower at reading or compiling. Later ones wait for minutes.
  """
  mesh = Mesh(np.array(jax.devices()), ("all",))
  one_each = jax.make_array_from_callback(
      (mesh.size,),
      NamedSharding(mesh, PartitionSpec("all")),
      lambda index: np.zeros(1, np.int32),
  )
  everywhere = NamedSharding(mesh, PartitionSpec())
  jax.block_until_ready(jax.jit(jnp.sum, out_shardings=everywhere)(one_each))
  from_first(int)
  wait_for_all()


def _check(address, num_processes, process_id):
  """Refuses a place among the processes that does not fit."""
  host, _, port = address.rpartition(":")
  require(
      host and port.isdecimal() and 0 < int(port) < 2**16,
      "coordinator_address",
      address,
      "host:port, such as 10.0.0.1:1234",
  )
  require(num_processes >= 1, "num_processes", num_processes, "at least 1")
  require(
      0 <= process_id < num_processes,
      "process_id",
      process_id,
      f"from 0 to {num_processes - 1}",
  )


def is_one_of_several(environment: Mapping[str, str]) -> bool:
  """Whether a cluster has started more processes than this one.

  Args:
    environment: the variables by which clusters say so.
  """
  # Slurm's srun, and Open MPI's mpirun.
  for name in ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE"):
    if int(environment.get(name, 1)) > 1:
      return True
  # A pod of a numbered Kubernetes job, a host of a TPU pod, a slice of TPUs.
  return (
      {"KUBERNETES_SERVICE_HOST", "JOB_COMPLETION_INDEX"} <= environment.keys()
      or "," in environment.get("TPU_WORKER_HOSTNAMES", "")
      or "MEGASCALE_COORDINATOR_ADDRESS" in environment
  )


def several() -> bool:
  """Whether this is one of several processes."""
  return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
  """Whether this is the process that writes and prints."""
  return not several() or jax.process_index() == 0


def from_first(function: Callable[[], Any]) -> Any:
  """What a function returns in the first process, for all processes.

  Args:
    function: called in the first process alone; returns what JSON can hold.

  Returns:
    The result.

  Raises:
    ConfigError: the function raised it; now all processes do.
  """
  if not several():
    return function()
  message: dict[str, Any] = {}
  if is_first():
    try:
      message = {"result": function()}
    except ConfigError as error:
      message = {"error": str(error)}

  # All processes take part with arrays of the same shape: first the size.
  content = np.frombuffer(json.dumps(message).encode(), np.uint8)
  size = multihost_utils.broadcast_one_to_all(np.int32(len(content)))
  content = multihost_utils.broadcast_one_to_all(np.resize(content, int(size)))
  message = json.loads(np.asarray(content, np.uint8).tobytes())
  if "error" in message:
    raise ConfigError(message["error"])
  return message["result"]


def any_of(flag: bool) -> bool:
  """Whether the flag is set in any process."""
  if not several():
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.bool_(flag))))


def wait_for_all():
  """Returns when all processes are here."""
  if several():
    multihost_utils.sync_global_devices("all")
