"""Rules for k by the names that settings give them."""

from collections.abc import Callable

from agsfl.controllers import balancing, bandits, descent
from agsfl.controllers.fixed import RULES as FIXED_RULES
from agsfl.controllers.rule import Build, Rule
from agsfl.registry import Registry

CONTROLLERS: Registry[Rule] = Registry(
    "controller",
    FIXED_RULES | descent.RULES | bandits.RULES | balancing.RULES,
)


def register_controller(
    name: str,
    *,
    learns: bool = True,
    uses_horizon: bool = True,
    uses_budget: bool = False,
) -> Callable[[Build], Build]:
  """Gives a rule a name, so that settings can ask for it.

  The controller's update must depend only on its arguments, the interval and
  the settings. The first k belongs in the state, because runs that differ in
  it share a compiled program.

  Args:
    name: letters, digits and underscores.
    learns: see `Rule`.
    uses_horizon, uses_budget: see `Rule`.

  Returns:
    A decorator for (k, k_min, k_max, settings) -> KController.

  Raises:
    ConfigError: the name cannot be used.

  >>> import jax.numpy as jnp
  >>> from agsfl.types import KController, KProposal
  >>> @register_controller("halving", uses_horizon=False)
  ... def halving(k, k_min, k_max, settings):
  ...   propose = lambda k: (KProposal(k, k), k)
  ...   init = lambda key: propose(jnp.float32(k))
  ...   update = lambda key, observed, k: propose(jnp.maximum(k / 2, k_min))
  ...   return KController(init, update, observes=False, probes=False)
  """

  def register(build: Build) -> Build:
    CONTROLLERS.add(name, Rule(build, learns, uses_horizon, uses_budget))
    return build

  return register
