"""How many cases hypothesis tries: few by default, many on request.

  python -m pytest tests/data --hypothesis-profile=long -k test_any
"""

import gc

import hypothesis
import jax
import pytest

hypothesis.settings.register_profile("short", max_examples=50, deadline=None)
hypothesis.settings.register_profile("long", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("short")


def pytest_collection_finish():
  """Saves time: what is imported stays, and JAX makes many small objects."""
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)


# What these compute is tested elsewhere as users compile it.
_COMPILE_FAST = (
    "tests.experiments", "tests.records", "tests.doors_test",
    "tests.parts_test", "tests.simulation_test", "tests.recorder_test",
    "tests.rounds_together_test", "tests.devices_test", "tests.hosts_test",
    "tests.stored_test", "tests.sweeps_test",
    "tests.sparsifiers.contract_test", "tests.sparsifiers.later_methods_test",
    "tests.training.fedavg_test", "tests.training.epochs_test",
    "tests.training.optimizers_test", "tests.attendance_test",
    "tests.training.networks_test", "tests.training.lora_test",
    "tests.tasks_test", "tests.training.augmentation_test",
)


@pytest.fixture(scope="module", autouse=True)
def compile_fast(request):
  """Some tests do without most of the compiler's optimisations."""
  if not request.module.__name__.startswith(_COMPILE_FAST):
    yield
    return
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  # No program of theirs is left for others.
  jax.config.update("jax_disable_most_optimizations", False)
  jax.clear_caches()
