"""How many cases hypothesis tries: few by default, many on request.

  python -m pytest tests/data --hypothesis-profile=long -k test_any
"""

import gc

import hypothesis

hypothesis.settings.register_profile("short", max_examples=50, deadline=None)
hypothesis.settings.register_profile("long", max_examples=1000, deadline=None)
hypothesis.settings.load_profile("short")


def pytest_collection_finish():
  """Saves time: what is imported stays, and JAX makes many small objects."""
  gc.freeze()
  gc.set_threshold(100_000, 20, 100)
