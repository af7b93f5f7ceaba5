"""Optimisers of clients and server, by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from agsfl.names import OptimizerName

# learning rate -> the optimiser.
Factory = Callable[[float | jax.Array], optax.GradientTransformation]


def _sgd(learning_rate):
  return optax.sgd(learning_rate)


def _momentum(learning_rate):
  """With the factor that most papers of the field use."""
  return optax.sgd(learning_rate, momentum=0.9)


def _adam(learning_rate):
  """With the constants that Reddi et al. use for FedAdam.

  Source: Reddi et al., "Adaptive Federated Optimization", ICLR 2021.
  """
  adam = optax.adam(learning_rate, b2=0.99, eps=1e-3)

  def update(updates, state, params=None):
    # Optax raises a float to an integer power, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
      return adam.update(updates, state, params)

  return optax.GradientTransformation(adam.init, update)


OPTIMIZERS: dict[OptimizerName, Factory] = {
    "sgd": _sgd,
    "momentum": _momentum,
    "adam": _adam,
}


def local(
    name: OptimizerName,
    weight_decay: float = 0.0,
    clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """A client's optimiser, with learning rate 1; see `client.LocalTraining`.

  It starts again in every round. So one local step of "momentum" is one of
  plain SGD.

  Args:
    name: a key of `OPTIMIZERS`.
    weight_decay: of each weight, this share is added to its gradient before the
      optimiser sees it, as in PyTorch's SGD and Adam.
    clip_norm: a gradient of a larger Euclidean norm is scaled down to this
      norm, before weight decay. None for no limit.

  Returns:
    The optimiser.
  """
  before = []
  if clip_norm is not None:
    before.append(optax.clip_by_global_norm(clip_norm))
  if weight_decay:
    before.append(optax.add_decayed_weights(weight_decay))
  optimizer = OPTIMIZERS[name](1.0)
  return optax.chain(*before, optimizer) if before else optimizer


def server_of(
    name: OptimizerName, learning_rate: float | jax.Array
) -> optax.GradientTransformation:
  """The server's optimiser, with the learning rate in its state.

  Args:
    name: a key of `OPTIMIZERS`.
    learning_rate: [] f32; it may be traced. `init` puts it into
      `state.hyperparams["learning_rate"]`, and `update` reads it only there.
      So servers of all learning rates have the same update.

  Returns:
    The optimiser.
  """
  with_rate_in_state = optax.inject_hyperparams(OPTIMIZERS[name])
  return with_rate_in_state(jnp.asarray(learning_rate, jnp.float32))
