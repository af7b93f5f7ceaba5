"""Commands compile fast: what they compute is tested elsewhere as users do."""

import jax
import pytest


@pytest.fixture(scope="package", autouse=True)
def compile_fast():
  """Without most of the compiler's optimisations; no program is left."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)
  jax.clear_caches()
