"""Settings for every test, before JAX starts."""

import jax

# Eight virtual devices, for the tests that split clients over them.
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
