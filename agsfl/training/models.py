"""Networks as pure functions of one flat weight vector."""

import functools
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.flatten_util import ravel_pytree

from agsfl import platforms
from agsfl.errors import refuse, refused
from agsfl.registry import Registry
from agsfl.training.networks import CNN, MLP, SmallCNN
from agsfl.types import Model, PyTree


class Network(Protocol):
  """What becomes a `Model`; Flax Linen modules have this form."""

  def init(self, key: jax.Array, features: jax.Array, /) -> PyTree:
    """Draws parameters, floating arrays, for [1, ...] f32 features."""

  def apply(self, params: PyTree, features: jax.Array, /) -> jax.Array:
    """[B, ...] f32 features -> [B, L] logits."""


# L -> a `Network` or `Model` of L outputs.
Factory = TypeVar("Factory", bound=Callable[[int], Any])

MODELS: Registry[Callable[[int], Any]] = Registry(
    "model", {"cnn": CNN, "cnn_small": SmallCNN, "mlp": MLP}
)


def register_model(name: str) -> Callable[[Factory], Factory]:
  """Gives a network a name, so that settings can ask for it.

  Args:
    name: letters, digits and underscores.

  Returns:
    A decorator for num_classes -> `Network` or `Model`, such as a Flax module
    whose one field is the number of classes.

  Raises:
    ConfigError: the name cannot be used.
  """

  def register(factory: Factory) -> Factory:
    MODELS.add(name, factory)
    return factory

  return register


# JAX's names for the three precisions of accelerators.
MATMUL_PRECISIONS = ("default", "high", "highest")


def build(
    name: str,
    feature_shape: tuple[int, ...],
    num_classes: int,
    standardize: bool = False,
    precision: str | None = None,
) -> Model:
  """A network of `MODELS`; equal arguments give the same object.

  Args:
    name: its key.
    feature_shape: of one sample, [H, W, C] for images.
    num_classes: L.
    standardize, precision: see `as_model`.

  Returns:
    The model.

  Raises:
    ConfigError: the network does not fit, see `as_model`, or has fewer
      outputs than there are classes.
  """
  # The factory is part of the key: a name may be registered again.
  return _build(
      MODELS[name],
      name,
      tuple(feature_shape),
      num_classes,
      standardize,
      precision,
  )


@functools.lru_cache(maxsize=16)
def _build(factory, name, feature_shape, num_classes, standardize, precision):
  model = as_model(
      factory(num_classes), feature_shape, standardize, precision, name
  )
  outputs = _traced_logits(model, feature_shape).shape[1]
  if outputs < num_classes:
    refuse(
        f"--model={name}",
        f"has {outputs} outputs, but the data have {num_classes} classes",
    )
  return model


def as_model(
    network: Network | Model,
    feature_shape: tuple[int, ...],
    standardize: bool = False,
    precision: str | None = None,
    name: str | None = None,
) -> Model:
  """Brings a network to the flat form.

  Flax Linen modules are networks already. For networks of other libraries,
  write the two functions of `Network`.

  Args:
    network: a `Network` or a `Model`.
    feature_shape: of one sample.
    standardize: whether its input is `standardized`.
    precision: of its products, and of those of its gradient, except where the
      network has gradients of its own (`jax.custom_vjp`); one of
      `MATMUL_PRECISIONS`, or None for JAX's default.
    name: for messages; None for the name of the network's type.

  Returns:
    The model.

  Raises:
    ConfigError: the network has no parameters, or some that are not floating.
      Or it has state, or needs random numbers. Or its logits are not [B, L].

  >>> class Linear:
  ...   def init(self, key, features):
  ...     return {"w": jax.random.normal(key, (features.size, 10))}
  ...   def apply(self, params, features):
  ...     return features.reshape(len(features), -1) @ params["w"]
  >>> as_model(Linear(), (8, 8)).dim
  640
  """
  setting = f"--model={name or type(network).__name__}"
  model = network if isinstance(network, Model) else _flat(
      setting, network, feature_shape
  )
  params = jax.eval_shape(model.init, jax.random.key(0))
  if (params.shape, params.dtype) != ((model.dim,), jnp.float32):
    refuse(
        setting,
        f"init must give float32[{model.dim}], the sum of sizes; "
        f"gives {_described(params)}",
    )
  if standardize:
    model = model._replace(apply=_of_standardized(model.apply))
  if precision is not None:
    model = model._replace(apply=_at_precision(model.apply, precision))
  _require_logits(setting, _traced_logits(model, feature_shape), 2)
  return model


def _of_standardized(apply):
  return lambda params, features: apply(params, standardized(features))


def _at_precision(apply, precision):
  def at_precision(params, features):
    with jax.default_matmul_precision(precision):
      return apply(params, features)

  return at_precision


def _traced_logits(model, feature_shape):
  """Shape and type of the logits of two samples; nothing is computed."""
  return jax.eval_shape(
      lambda: model.apply(
          model.init(jax.random.key(0)), _zeros(2, feature_shape)
      )
  )


def _zeros(num_samples, feature_shape):
  return jnp.zeros((num_samples, *feature_shape), jnp.float32)


def _flat(setting, network, feature_shape):
  """A `Network` as a `Model`."""
  fits = not isinstance(network, type) and all(
      callable(getattr(network, name, None)) for name in ("init", "apply")
  )
  if not fits:
    refuse(
        setting,
        "must be an agsfl.Model, or an object with init(key, features) and "
        "apply(params, features)",
    )
  init = lambda key: network.init(key, _zeros(1, feature_shape))
  if isinstance(network, nn.Module):
    state = set(jax.eval_shape(init, jax.random.key(0))) - {"params"}
    if state:
      refuse(
          setting,
          f"has state ({', '.join(sorted(state))}); use layers without, such "
          "as GroupNorm in place of BatchNorm",
      )
  return _flatten(setting, init, network.apply)


def flatten(
    init: Callable[[jax.Array], PyTree],
    apply: Callable[[PyTree, jax.Array], jax.Array],
) -> Model:
  """Two functions of a network as a `Model`.

  Args:
    init: key -> a pytree of floating parameters. In the flat vector all are
      float32; before `apply` each gets its own type back.
    apply: (parameters, [B, ...] features) -> [B, L] logits.

  Returns:
    The same network over a flat weight vector.

  Raises:
    ConfigError: there are no parameters, or some are not floating. Tracing
      `apply` later raises it if the logits are not [B, L].
  """
  return _flatten("model", init, apply)


def _flatten(setting, init, apply):
  """`flatten`; messages begin with `setting`."""
  # Only floating parameters can be trained.
  shapes = jax.eval_shape(init, jax.random.key(0))
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      where = jax.tree_util.keystr(path)
      refuse(setting, f"parameter {where} must be floating, is {leaf.dtype}")
  sizes = tuple(leaf.size for leaf in jax.tree.leaves(shapes))
  if not sum(sizes):
    refuse(setting, "has no parameters")

  # Between the flat vector and the parameters.
  to_f32 = lambda tree: jax.tree.map(lambda x: x.astype(jnp.float32), tree)
  flat, unravel = ravel_pytree(
      jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)
  )

  def parameters(params):
    return jax.tree.map(
        lambda leaf, like: leaf.astype(like.dtype), unravel(params), shapes
    )

  by_layer = jax.custom_vjp(parameters)

  def gather(_, tree):
    """The layers' gradients in one vector.

    Autodiff would concatenate them, which is best on accelerators. XLA's CPU
    backend fuses a concatenation with the code that uses the vector, which
    costs thirty times as much. There each is copied to its place.
    """
    leaves = [leaf.ravel() for leaf in jax.tree.leaves(to_f32(tree))]
    if not platforms.keeps_to_caches():
      return (jnp.concatenate(leaves),)
    vector, place = jnp.zeros_like(flat), 0
    for leaf in leaves:
      vector = lax.dynamic_update_slice(vector, leaf, (place,))
      place += leaf.size
    return (vector,)

  by_layer.defvjp(lambda params: (parameters(params), None), gather)

  def apply_flat(params, features):
    with refused(
        setting,
        "must need nothing but parameters and features, no state (BatchNorm) "
        "and no random numbers (Dropout)",
        (
            flax.errors.InvalidRngError,
            flax.errors.ModifyScopeVariableError,
        ),
    ):
      logits = apply(by_layer(params), features)
    _require_logits(setting, logits, features.shape[0])
    return logits.astype(jnp.float32)

  return Model(
      init=lambda key: ravel_pytree(to_f32(init(key)))[0],
      apply=apply_flat,
      sizes=sizes,
  )


def _require_logits(setting, logits, num_samples):
  """Refuses all but [B, L] floats."""
  shape: tuple[int, ...] = getattr(logits, "shape", ())
  if (
      len(shape) != 2
      or shape[0] != num_samples
      or not jnp.issubdtype(logits.dtype, jnp.floating)
  ):
    refuse(
        setting,
        "apply must give floating logits [B, L]; "
        f"gives {_described(logits)} for B = {num_samples}",
    )


def _described(array):
  """Such as float32[2, 10]; for other objects the name of their type."""
  if not hasattr(array, "shape"):
    return type(array).__name__
  return f"{array.dtype}{list(array.shape)}"


def standardized(features: jax.Array) -> jax.Array:
  """Each sample with mean 0 and deviation 1 over all its numbers.

  If the deviation of its n numbers is below 1 / (255 sqrt(n)), a sample is
  divided by this number instead. So bytes v / 255 give what the authors' code
  gives for v, where the least deviation is 1 / sqrt(n).

  Args:
    features: [B, ...] f32.

  Returns:
    The same shape.

  Source: the input of the paper's CIFAR-10 network in its authors' code.
  """
  axes = tuple(range(1, features.ndim))
  centred = features - jnp.mean(features, axes, keepdims=True)
  deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes, keepdims=True))
  least = math.prod(features.shape[1:]) ** -0.5 / 255
  return centred / jnp.maximum(deviation, least)


def sample_losses(logits: jax.Array, labels: jax.Array) -> jax.Array:
  """Cross entropy of each sample; a `types.Loss`.

  Args:
    logits: [B, L].
    labels: [B] i32.

  Returns:
    [B] f32, nats.
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
