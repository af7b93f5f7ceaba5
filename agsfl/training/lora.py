"""LoRA: trains low-rank additions to the layers of a frozen network."""

import dataclasses
import inspect
import numbers
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from agsfl.errors import refuse, refused, require
from agsfl.training.models import Network
from agsfl.types import PyTree

# The names of A and B in a layer's parameters.
_A, _B = "lora_a", "lora_b"
# Layers that get adapters; a class that inherits from one may compute more.
_LAYERS = (nn.Dense, nn.DenseGeneral, nn.Conv, nn.Embed)
_gaussian = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
# A row for each token, so each row has a squared norm near 1.
_gaussian_rows = nn.initializers.variance_scaling(
    1.0, "fan_in", "normal", out_axis=0
)


def lora(
    module: nn.Module,
    weights: jax.Array | np.ndarray,
    rank: int,
    alpha: float | None = None,
) -> Network:
  """A network whose only parameters are low-rank adapters of a frozen one.

  Where a layer computes x W, the new network computes x W + (alpha / rank) x A
  B. W is frozen, and A and B are trained. B begins at 0, so the outputs are at
  first those of the frozen network. A begins as Gaussian noise of variance 1 /
  inputs; in Embed the variance is 1 / rank. W + A B is never computed, so all
  clients share one W.

  These layers of Flax Linen get adapters: Dense, DenseGeneral (also inside of
  attention), Conv without groups and mask (A is a convolution of `rank`
  channels, B has 1 x 1) and Embed. The last layer gets adapters as the others
  do. Biases, norms and all other layers are frozen and get none, such as the
  recurrent kernels of `lstm`.

  Args:
    module: the network.
    weights: [D of the module] f32, its weights in the order of its flat vector,
      as in params.npy of a run or in `ravel_pytree(module.init(...))[0]`.
    rank: r, the columns of A and the rows of B.
    alpha: the additions are multiplied by alpha / rank; None for `rank`.

  Returns:
    The network. It holds the frozen weights itself: compiled programs contain
    them as constants.

  Raises:
    ConfigError: `module` is of another type, or `rank` is below 1. Using the
      network raises it if the weights do not fit, or no layer gets adapters.

  Source: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR
  2022 (arXiv 2106.09685), Sec. 4.1. Its convolutions are those of its authors'
  code, where they give the same products.

  >>> module, images = nn.Dense(10), jnp.zeros((1, 64))
  >>> frozen = np.zeros(64 * 10 + 10, np.float32)
  >>> network = lora(module, frozen, rank=2)
  >>> adapters = network.init(jax.random.key(0), images)
  >>> sum(x.size for x in jax.tree.leaves(adapters))
  148
  """
  require(
      isinstance(module, nn.Module),
      "model",
      type(module).__name__,
      "a Flax Linen module, because only such a network can get adapters",
  )
  require(
      isinstance(rank, numbers.Integral) and rank >= 1,
      "lora_rank", rank, "a whole number, at least 1",
  )
  require(
      alpha is None or (isinstance(alpha, numbers.Real) and alpha > 0),
      "alpha", alpha, "a number above 0, or None",
  )
  scale = 1.0 if alpha is None else float(alpha / rank)
  has_noise = "train" in inspect.signature(module.__call__).parameters
  kind = LoRAWithNoise if has_noise else LoRA
  problem = "must be finite numbers"
  with refused("weights", problem, (TypeError, ValueError)):
    frozen = np.asarray(weights, np.float32)
  if not np.isfinite(frozen).all():
    refuse("weights", problem)
  return kind(module, frozen, int(rank), scale)


@dataclasses.dataclass(frozen=True, eq=False)
class _Adapters:
  """What the two networks of `lora` have in common.

  Attributes:
    module, weights, rank: see `lora`.
    scale: alpha / rank.
  """

  module: nn.Module
  weights: np.ndarray
  rank: int
  scale: float

  def init(self, key: jax.Array, features: jax.Array) -> PyTree:
    """Draws the adapters for [1, ...] features."""
    self._frozen(features)
    with nn.intercept_methods(self._add):
      variables = flatten_dict(self._init_module(key, features))
    adapters = {
        path: leaf
        for path, leaf in variables.items()
        if not {_A, _B}.isdisjoint(path)
    }
    require(
        adapters,
        "lora_rank",
        self.rank,
        "unset, because the network has no layer of "
        f"{', '.join(kind.__name__ for kind in _LAYERS)}",
    )
    return unflatten_dict(adapters)

  def _init_module(self, key, features):
    return self.module.init(key, features)

  def _outputs(self, params, features, **noise):
    """Of the module, with its adapters; `noise` is for Flax's `apply`."""
    variables = flatten_dict(self._frozen(features)) | flatten_dict(params)
    with nn.intercept_methods(self._add):
      return self.module.apply(unflatten_dict(variables), features, **noise)

  def _frozen(self, features):
    """The module's own variables, NumPy, in their own shapes and types."""
    shapes = jax.eval_shape(self._init_module, jax.random.key(0), features)
    leaves, structure = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    require(
        self.weights.shape == (ends[-1],),
        "weights",
        list(self.weights.shape),
        f"[{ends[-1]}], as the network has",
    )
    parts = np.split(self.weights, ends[:-1])
    return jax.tree.unflatten(structure, [
        part.reshape(leaf.shape).astype(leaf.dtype, copy=False)
        for part, leaf in zip(parts, leaves, strict=True)
    ])

  def _add(
      self, next_fun: Any, args: tuple[Any, ...], kwargs: Any, context: Any
  ) -> Any:
    """Adds the adapters' part to what a method of a layer gives.

    Args:
      next_fun, args, kwargs, context: see Flax's `intercept_methods`.
    """
    outputs = next_fun(*args, **kwargs)
    layer, method = context.module, context.method_name
    if method not in ("__call__", "attend") or not _gets_adapters(layer):
      return outputs

    # A is a layer of the same kind, with `rank` outputs. B is a matrix.
    inputs = [*args, *kwargs.values()].pop()
    changes: dict[str, Any] = {"embedding_init": _gaussian_rows}
    if not isinstance(layer, nn.Embed):
      changes = {"kernel_init": _gaussian, "use_bias": False}
    down = layer.clone(
        features=self.rank, parent=layer.scope.push(_A, reuse=True), **changes
    )


    # (W + A B)^T = W^T + B^T A^T.
    if method == "attend":
      up = _second(layer, (self.rank, inputs.shape[-1]))
      return outputs + down.attend(_product(layer, self.scale * inputs, up.T))
    hidden = down(inputs)
    up = _second(layer, (self.rank, *outputs.shape[hidden.ndim - 1 :]))
    return outputs + _product(layer, self.scale * hidden, up)


def _second(layer, shape):
  """B of a layer, of this shape; a layer may be used several times."""
  if layer.scope.has_variable("params", _B):
    return layer.scope.get_variable("params", _B)
  return layer.scope.param(_B, nn.initializers.zeros, shape, layer.param_dtype)


def _product(layer, x, matrix):
  """Over the last axis of x, in the type and precision of the layer."""
  x, matrix = layer.promote_dtype(x, matrix, dtype=layer.dtype)
  # An Embed has no precision.
  precision = getattr(layer, "precision", None)
  return jnp.tensordot(x, matrix, 1, precision=precision)


class LoRA(_Adapters):
  """The network of `lora`; its variables are those of the adapters."""

  def apply(self, params: PyTree, features: jax.Array) -> jax.Array:
    """Adapters, [B, ...] features -> outputs."""
    return self._outputs(params, features)


class LoRAWithNoise(_Adapters):
  """The same where the module's `__call__` has the parameter `train`."""

  def apply(
      self, params: PyTree, features: jax.Array, key: Any, train: bool
  ) -> jax.Array:
    """Adapters, [B, ...] features, key and train of `Network` -> outputs."""
    return self._outputs(params, features, rngs=key, train=train)

  def _init_module(self, key, features):
    return self.module.init(key, features, train=False)


def _gets_adapters(layer):
  """Whether it is a layer of a frozen network, and of a kind that fits."""
  if type(layer) not in _LAYERS or layer.path[-1:] == (_A,):
    return False
  return not isinstance(layer, nn.Conv) or (
      layer.feature_group_count == 1 and layer.mask is None
  )
