"""Networks as pure functions of one flat weight vector."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from agsfl import platforms
from agsfl.errors import refuse, refused
from agsfl.names import MatmulPrecision, ModelName
from agsfl.registry import Registry
from agsfl.training import networks
from agsfl.types import Form, Model, PyTree


class Network(Protocol):
  """What becomes a `Model`; Flax Linen modules have this form.

  A network that draws random numbers in training, as dropout does, has two
  more parameters, apply(params, features, key, train); in evaluation key is
  None and train False. A Flax module says so by a parameter `train` of its
  `__call__`; its layers then find the key by `make_rng`.
  """

  def init(self, key: jax.Array, features: jax.Array, /) -> PyTree:
    """Draws parameters, floating arrays, for [1, ...] features."""

  @property
  def apply(self) -> Callable[..., jax.Array]:
    """(params, [B, ...] features) -> [B, *Form.output_shape]; a method."""


# L -> a `Network` or `Model` of L outputs.
Factory = TypeVar("Factory", bound=Callable[[int], Any])

MODELS: Registry[Callable[[int], Any]] = Registry(
    "model",
    {
        "cnn": networks.CNN,
        "cnn_small": networks.SmallCNN,
        "cnn_small_dropout": functools.partial(
            networks.SmallCNN, dropout=(0.25, 0.5)
        ),
        "resnet9": networks.ResNet9,
        "resnet18_gn": networks.ResNet18,
        "mlp": networks.MLP,
        "logistic": networks.Logistic,
        "lstm": networks.LSTM,
        "transformer": networks.Transformer,
    },
)


def register_model(name: str) -> Callable[[Factory], Factory]:
  """Gives a network a name, so that settings can ask for it.

  Args:
    name: letters, digits and underscores.

  Returns:
    A decorator for num_classes -> `Network` or `Model`, such as a Flax module
    whose first field is the number of classes. If it also has a parameter
    `vocabulary`, it gets `Form.vocabulary` by this name.

  Raises:
    ConfigError: the name cannot be used.
  """

  def register(factory: Factory) -> Factory:
    MODELS.add(name, factory)
    return factory

  return register


def build(
    name: ModelName | str,
    form: Form,
    standardize: bool = False,
    precision: MatmulPrecision | None = None,
) -> Model:
  """A network of `MODELS`; equal arguments give the same object.

  Args:
    name: its key.
    form, standardize, precision: see `as_model`.

  Returns:
    The model.

  Raises:
    ConfigError: the network does not fit, see `as_model`.
  """
  # The factory is part of the key: a name may be registered again.
  return _build(MODELS[name], name, form, standardize, precision)


@functools.lru_cache(maxsize=16)
def _build(factory, name, form, standardize, precision):
  network = made(factory, form)
  return as_model(network, form, standardize, precision, name)


def made(factory: Callable[..., Any], form: Form) -> Any:
  """The network of a factory, see `register_model`, before `as_model`."""
  settings = {"vocabulary": form.vocabulary} if takes_tokens(factory) else {}
  return factory(form.output_shape[-1], **settings)


def takes_tokens(factory: Callable[..., Any]) -> bool:
  """Whether the networks of a factory ask how many different tokens exist."""
  return "vocabulary" in inspect.signature(factory).parameters


def as_model(
    network: Network | Model,
    form: Form,
    standardize: bool = False,
    precision: MatmulPrecision | None = None,
    name: str | None = None,
) -> Model:
  """Brings a network to the flat form.

  Flax Linen modules are networks already. For networks of other libraries,
  write the two functions of `Network`.

  Args:
    network: a `Network` or a `Model`. One that gives outputs for each token,
      where a sample has one label, is cut to the last token.
    form: what it sees of a sample, and what it must give.
    standardize: whether its input is `standardized`.
    precision: of its products, and of those of its gradient, except where the
      network has gradients of its own (`jax.custom_vjp`); None for JAX's
      default.
    name: for messages; None for the name of the network's type.

  Returns:
    The model.

  Raises:
    ConfigError: the network has no parameters, or some that are not floating.
      Or it has state, or needs random numbers in evaluation, or parameters
      that are not known. Or its outputs do not fit `form`.

  >>> class Linear:
  ...   def init(self, key, features):
  ...     return {"w": jax.random.normal(key, (features.size, 10))}
  ...   def apply(self, params, features):
  ...     return features.reshape(len(features), -1) @ params["w"]
  >>> as_model(Linear(), Form((8, 8), (10,))).dim
  640
  """
  setting = f"--model={name or type(network).__name__}"
  model = network if isinstance(network, Model) else _flat(
      setting, network, form
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
  outputs = _traced_outputs(model, form)
  _require_outputs(setting, outputs, 2)
  tokens = form.feature_shape if form.vocabulary is not None else None
  if (outputs.shape[1:-1], len(form.output_shape)) == (tokens, 1):
    model = model._replace(apply=_of_last_token(model.apply))
  _require_form(setting, _traced_outputs(model, form), form)
  if model.needs_key:
    _require_form(setting, _traced_outputs(model, form, True), form)
  return model


def _of_standardized(apply):
  return lambda params, features, *noise: (
      apply(params, standardized(features), *noise)
  )


def _of_last_token(apply):
  return lambda *arguments: apply(*arguments)[:, -1]


def _at_precision(apply, precision):
  def at_precision(*arguments):
    with jax.default_matmul_precision(precision):
      return apply(*arguments)

  return at_precision


def _traced_outputs(model, form, train=False):
  """Shape and type of the outputs of two samples; nothing is computed."""
  def outputs(key):
    noise = (key, True) if train else ()
    return model.apply(model.init(key), _zeros(2, form), *noise)

  return jax.eval_shape(outputs, jax.random.key(0))


def _zeros(num_samples, form):
  return jnp.zeros((num_samples, *form.feature_shape), form.dtype)


def _flat(setting, network, form):
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
  init = lambda key: network.init(key, _zeros(1, form))
  apply = network.apply
  if isinstance(network, nn.Module):
    needs_key = _takes(setting, network.__call__, ("train",), after=1)
    if needs_key:
      init = lambda key: network.init(key, _zeros(1, form), train=False)
      apply = lambda params, features, key, train: network.apply(
          params, features, train=train, rngs=key
      )
  else:
    needs_key = _takes(setting, apply, ("key", "train"), after=2)
  if isinstance(network, nn.Module):
    state = set(jax.eval_shape(init, jax.random.key(0))) - {"params"}
    if state:
      refuse(
          setting,
          f"has state ({', '.join(sorted(state))}); use layers without, such "
          "as GroupNorm in place of BatchNorm",
      )
  return _flatten(setting, init, apply, needs_key)


def _takes(setting, function, names, after):
  """Whether a network's function has all of these parameters.

  Others that it needs, after the first ones, are refused.
  """
  parameters = inspect.signature(function).parameters
  for name, parameter in list(parameters.items())[after:]:
    is_needed = parameter.default is parameter.empty and parameter.kind in (
        parameter.POSITIONAL_ONLY,
        parameter.POSITIONAL_OR_KEYWORD,
        parameter.KEYWORD_ONLY,
    )
    if is_needed and name not in names:
      refuse(
          setting,
          f"{function.__name__} needs the parameter {name!r}; what a network "
          f"that draws random numbers may need is called {' and '.join(names)}",
      )
  return set(names) <= set(parameters)


def flatten(
    init: Callable[[jax.Array], PyTree],
    apply: Callable[..., jax.Array],
    needs_key: bool = False,
) -> Model:
  """Two functions of a network as a `Model`.

  Args:
    init: key -> a pytree of floating parameters. In the flat vector all are
      float32; before `apply` each gets its own type back.
    apply: (parameters, [B, ...] features) -> [B, ...] outputs; with
      `needs_key` it also gets `key` and `train` by name, in evaluation None
      and False.
    needs_key: whether it draws random numbers in training.

  Returns:
    The same network over a flat weight vector.

  Raises:
    ConfigError: there are no parameters, or some are not floating. Tracing
      `apply` later raises it if the outputs are not floating [B, ...].
  """
  return _flatten("model", init, apply, needs_key)


def _flatten(setting, init, apply, needs_key):
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

  def apply_flat(params, features, *noise):
    given = {}
    if needs_key:
      given["key"], given["train"] = noise or (None, False)
    with refused(
        setting,
        "must have no state (BatchNorm; take GroupNorm), and draw random "
        "numbers (Dropout) only in training: give __call__ a parameter train",
        (
            flax.errors.InvalidRngError,
            flax.errors.ModifyScopeVariableError,
        ),
    ):
      outputs = apply(by_layer(params), features, **given)
    _require_outputs(setting, outputs, features.shape[0])
    return outputs.astype(jnp.float32)

  return Model(
      init=lambda key: ravel_pytree(to_f32(init(key)))[0],
      apply=apply_flat,
      sizes=sizes,
      needs_key=needs_key,
  )


def _require_outputs(setting, outputs, num_samples):
  """Refuses all but floats [B, L] or [B, T, L]."""
  shape: tuple[int, ...] = getattr(outputs, "shape", ())
  if (
      len(shape) not in (2, 3)
      or shape[0] != num_samples
      or not jnp.issubdtype(outputs.dtype, jnp.floating)
  ):
    refuse(
        setting,
        "apply must give floating outputs [B, L], or [B, T, L] for T tokens; "
        f"gives {_described(outputs)} for B = {num_samples}",
    )


def _require_form(setting, outputs, form):
  """Refuses outputs that do not fit the labels of the data."""
  (*before, last), (*wanted, least) = outputs.shape[1:], form.output_shape
  if before != wanted or last < least:
    shape = "x".join(map(str, form.output_shape))
    refuse(
        setting,
        f"has outputs of shape {'x'.join(map(str, outputs.shape[1:]))} for a "
        f"sample, but the data need {shape}",
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
