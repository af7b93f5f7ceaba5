"""A compiled program with its arguments."""

import contextlib
import time
from typing import Any

import jax
from jax.sharding import Mesh


class Program:
  """Compiles a function when made, runs it when called.

  Attributes:
    arguments: of the next call.
    compile_seconds: that tracing and compiling took.
    memory_bytes: on each device, for arguments, results and all between; None
      where the compiler does not say.
  """

  def __init__(self, function: Any, *arguments: Any, mesh: Mesh | None = None):
    """Compiles.

    Args:
      function: from `jax.jit`.
      arguments: of every call.
      mesh: the devices; None for one.
    """
    self.arguments = list(arguments)
    self._mesh = mesh
    start = time.perf_counter()
    with self._on_mesh():
      self._compiled = function.lower(*arguments).compile()
    self.compile_seconds = time.perf_counter() - start
    memory = self._compiled.memory_analysis()
    self.memory_bytes = memory and (
        memory.argument_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
    )

  def _on_mesh(self):
    return jax.set_mesh(self._mesh) if self._mesh else contextlib.nullcontext()

  def __call__(self) -> Any:
    """Runs once, waits, and returns the result."""
    with self._on_mesh():
      return jax.block_until_ready(self._compiled(*self.arguments))
