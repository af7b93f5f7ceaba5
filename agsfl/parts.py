"""The parts of a run, named or given as objects, and the round they make."""

import functools
import math
import types
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from agsfl import fingerprints
from agsfl.asynchrony import buffered
from agsfl.attendance import SAMPLINGS, sampled
from agsfl.clocks import Message
from agsfl.config import Config
from agsfl.controllers import CONTROLLERS
from agsfl.data.federated import FederatedData
from agsfl.data.samples import warn_of_range
from agsfl.delivery import Delivery
from agsfl.errors import refuse, require
from agsfl.feedback import Feedback
from agsfl.records import read, summary
from agsfl.registry import Registry
from agsfl.rounds import Metric, Round, build_round
from agsfl.sparsifiers import METHODS, per_layer
from agsfl.tasks import NEXT_TOKEN
from agsfl.training import models, optimizers
from agsfl.training.augmentation import AUGMENTATIONS
from agsfl.training.client import LocalTraining
from agsfl.training.lora import lora
from agsfl.training.schedules import Schedules, build_schedule
from agsfl.types import KController, Loss, Model, Sparsifier
from agsfl.weights import weights_of


class Numbers(NamedTuple):
  """Plain numbers of a run, [] f32 each; see `Config.structure`.

  Attributes:
    learning_rate: eta of the clients.
    server_learning_rate: of the server.
    comm_time: beta.
    k: of the first round.
  """

  learning_rate: jax.Array
  server_learning_rate: jax.Array
  comm_time: jax.Array
  k: jax.Array


class Turnout(NamedTuple):
  """How many clients take part in a round.

  Attributes:
    at_work: n; in asynchronous rounds more of them than arrive.
    arrivals: clients whose messages the server uses in a round.
    places: at least as many; the others are empty and fill the devices.
    num_clients: N.
  """

  at_work: int
  arrivals: int
  places: int
  num_clients: int


def turnout_of(
    config: Config, num_clients: int, multiple: int
) -> Turnout | None:
  """The turnout of a run; None if all clients take part.

  Args:
    config: the settings.
    num_clients: N.
    multiple: of places.

  Raises:
    ConfigError: there are not enough clients.
  """
  if not config.in_cohorts:
    return None
  arrivals = config.arrivals(num_clients)
  places = arrivals + -arrivals % multiple
  at_work = config.places(num_clients)
  return Turnout(at_work, arrivals, places, num_clients)


class Parts(NamedTuple):
  """A user's own objects in place of parts that settings name.

  Attributes:
    model: an `agsfl.Model`, or anything with init(key, features) and
      apply(params, features), such as a Flax module.
    sparsifier: in place of the method.
    controller: in place of the controller.
    loss: of samples, in place of the task's.
    metrics: pairs of a name and a function, see `rounds.build_round`.
  """

  model: Any = None
  sparsifier: Sparsifier | None = None
  controller: KController | None = None
  loss: Loss | None = None
  metrics: tuple[tuple[str, Metric], ...] = ()

  @classmethod
  def of(
      cls,
      model: Any = None,
      sparsifier: Sparsifier | None = None,
      controller: KController | None = None,
      loss: Loss | None = None,
      metrics: Mapping[str, Metric] | None = None,
  ) -> "Parts":
    """The parts, their types checked.

    Raises:
      ConfigError: one is of another type, or a metric has a name that rows or
        summaries need.
    """
    for name, part, kind in (
        ("sparsifier", sparsifier, Sparsifier),
        ("controller", controller, KController),
    ):
      require(
          part is None or isinstance(part, kind),
          name,
          type(part).__name__,
          f"an agsfl.{kind.__name__}, such as a factory of agsfl returns",
      )
    require(loss is None or callable(loss), "loss", loss, "a function")
    metrics = dict(metrics or {})
    for name, metric in metrics.items():
      require(
          isinstance(name, str) and name.isidentifier() and callable(metric),
          "metrics",
          name,
          "a name for each function of (state, info)",
      )
      require(
          name not in read.COLUMNS | summary.ADDED,
          "metrics",
          name,
          "another name; rows and summaries have this one already",
      )
    return cls(model, sparsifier, controller, loss, tuple(metrics.items()))

  def identity(self, config: Config) -> dict[str, Any]:
    """Entries of config.json for the user's own parts.

    Args:
      config: the settings, which may name parts that the user registered.

    Returns:
      "custom:NAME" in place of a setting for each object of `Parts`, and the
      `fingerprints` of all of the user's parts; None for a part without one.
    """
    named: list[tuple[str, str, Registry]] = [
        ("model", config.model, models.MODELS),
        ("method", config.method, METHODS),
        ("controller", config.used_controller, CONTROLLERS),
    ]
    said: dict[str, Any] = {}
    prints: dict[str, str | None] = {}
    for setting, name, registry in named:
      field = "sparsifier" if setting == "method" else setting
      part = getattr(self, field)
      if part is not None:
        said[setting] = f"custom:{fingerprints.name_of(part)}"
        prints[setting] = fingerprints.fingerprint(part)
      elif registry.is_added(name):
        prints[setting] = fingerprints.fingerprint(registry[name])
    if self.loss is not None:
      said["loss"] = f"custom:{fingerprints.name_of(self.loss)}"
      prints["loss"] = fingerprints.fingerprint(self.loss)
    return said | ({"fingerprints": prints} if prints else {})


def build_model(config: Config, parts: Parts, data: FederatedData) -> Model:
  """The network, for the form of these data."""
  form = data.form
  for_tokens = _may_take_tokens(config, parts)
  if data.task == NEXT_TOKEN:
    if not for_tokens:
      names = " and ".join(filter(_takes_tokens, models.MODELS))
      refuse(f"--model={config.model}", f"does not take tokens; {names} do")
    require(
        not config.standardize, "standardize", config.standardize,
        "false with tokens",
    )
  if not config.standardize and (form.vocabulary is None or not for_tokens):
    warn_of_range(data.clients.features)
  about = form, config.standardize, config.matmul_precision
  if config.lora_rank is not None:
    return _build_adapters(config, parts, about)
  return _build_whole(config, parts, about)


def _may_take_tokens(config, parts):
  """Whether the network is one for tokens, or the user's own."""
  if parts.model is not None or models.MODELS.is_added(config.model):
    return True
  return _takes_tokens(config.model)


def _takes_tokens(name):
  return models.takes_tokens(models.MODELS[name])


def _build_whole(config, parts, about):
  """The network that settings or parts name; all of its weights are trained."""
  if parts.model is not None:
    if isinstance(parts.model, nn.Module) and _is_hashable(parts.model):
      return _shared_model(parts.model, *about)
    return models.as_model(parts.model, *about)
  return models.build(config.model, *about)


@functools.lru_cache(maxsize=16)
def _shared_model(module, form, standardize, precision):
  """Flax modules are values: equal ones share compiled programs."""
  return models.as_model(module, form, standardize, precision)


def _build_adapters(config, parts, about):
  """The adapters of this network; `lora_from` has its frozen weights."""
  require(
      parts.model is None or isinstance(parts.model, nn.Module),
      "lora_rank",
      config.lora_rank,
      f"unset, because {type(parts.model).__name__} is no Flax Linen module",
  )
  dim = _build_whole(config, parts, about).dim
  frozen = weights_of("lora_from", config.lora_from, dim)
  module, name = parts.model, None
  if module is None:
    name = config.model
    module = models.made(models.MODELS[name], about[0])
  given = module, frozen.tobytes(), config.lora_rank, *about, name
  if _is_hashable(module):
    return _shared_adapters(*given)
  return _shared_adapters.__wrapped__(*given)


@functools.lru_cache(maxsize=4)
def _shared_adapters(module, frozen, rank, form, standardize, precision, name):
  """Equal weights share compiled programs, wherever they were read."""
  network = lora(module, np.frombuffer(frozen, np.float32), rank)
  return models.as_model(network, form, standardize, precision, name)


def _is_hashable(part):
  try:
    hash(part)
  except TypeError:
    return False
  return True


def numbers_of(config: Config, dim: int) -> Numbers:
  """The numbers of the settings."""
  rate = config.learning_rate
  server_rate = config.server_learning_rate or rate
  k = config.k_range(dim).k
  return Numbers(*map(jnp.float32, (rate, server_rate, config.comm_time, k)))


def compose(
    config: Config,
    parts: Parts,
    model: Model,
    loss: Loss,
    numbers: Numbers,
    recorded_ks: tuple[float, ...] = (1.0,),
    turnout: Turnout | None = None,
) -> Round:
  """The round that the settings and the user's parts make.

  Args:
    config: the settings; `numbers` replaces its plain numbers.
    parts: the user's own objects.
    model: the network.
    loss: of samples.
    numbers: of the run; they may be traced.
    recorded_ks: k of each round, for the controller replay.
    turnout: how many clients take part; None for all.

  Returns:
    The round. Its step depends only on `config.structure()`, the parts and the
    model. All else is in the state that its init gives.

  Raises:
    ConfigError: k or its interval does not fit the model, or the controller
      cannot be used with these settings.
  """
  for name, unset in (
      ("deadline", None), ("buffer_size", None), ("k_by_speed", False)
  ):
    value = getattr(config, name)
    require(
        parts.sparsifier is None or value == unset,
        name,
        value,
        "unset with a sparsifier of your own, because the size of its messages "
        "must be known before; register it by `register_method`",
    )
  controller = _build_controller(
      config, parts, model.dim, numbers.k, recorded_ks
  )
  if controller.measures_lag:
    _check_lag(config)
  delivery = _build_delivery(config, model.dim)
  return build_round(
      model,
      _build_sparsifier(config, parts, model),
      controller,
      server=optimizers.server_of(
          config.server_optimizer, numbers.server_learning_rate
      ),
      batch_size=config.batch_size,
      comm_time=numbers.comm_time,
      learning_rate=numbers.learning_rate,
      training=_build_training(config, model.dim),
      loss=loss,
      augment=AUGMENTATIONS[config.augmentation],
      metrics=dict(parts.metrics),
      attendance=_build_attendance(config, turnout, model.dim),
      feedback=_build_feedback(config, parts, delivery),
      delivery=delivery,
      schedules=_build_schedules(config),
  )


def _check_lag(config):
  """Refuses settings with which a round cannot measure what lag costs."""
  for name, unset in (
      ("stateless", False), ("deadline", None), ("buffer_size", None)
  ):
    value = getattr(config, name)
    require(
        value == unset,
        name,
        value,
        "unset with a controller that measures the lag, such as balance",
    )
  require(
      config.clock is None
      or config.time_budget is None
      or config.seconds_budget is not None,
      "time_budget",
      config.time_budget,
      "unset where a controller such as balance plans in seconds; use "
      "seconds_budget",
  )


def _build_attendance(config, turnout, dim):
  """Who takes part; None for all clients."""
  if turnout is None:
    return None
  sampling = SAMPLINGS[config.sampling]
  if config.buffer_size is None:
    return sampled(
        sampling, turnout.arrivals, turnout.places, turnout.num_clients, dim
    )
  return buffered(
      sampling,
      turnout.at_work,
      turnout.arrivals,
      turnout.places,
      config.max_staleness,
      turnout.num_clients,
      dim,
  )


def _build_feedback(config, parts, delivery):
  sends_all = (
      parts.sparsifier is None
      and METHODS[config.method].sends_all
      and delivery.is_certain
      and delivery.message.value_bits == 32
      and not config.stateless
  )
  return Feedback(
      config.residual_decay,
      config.residual_preview,
      config.stateless,
      sends_all,
  )


def _build_delivery(config, dim):
  method = METHODS[config.method]
  return Delivery(
      message=Message(config.index_coding, config.value_bits),
      in_seconds=config.clock is not None,
      deadline=config.deadline or math.inf,
      ends_together=config.k_by_speed,
      dropout=config.dropout,
      elements=None if method.takes_k else dim,
      numbers_per_element=method.numbers_per_element,
  )


def _build_sparsifier(config, parts, model):
  sparsifier = parts.sparsifier or METHODS[config.method].build()
  return per_layer(sparsifier, model.sizes) if config.per_layer else sparsifier


def _build_controller(config, parts, dim, k, recorded_ks):
  if parts.controller is not None:
    return parts.controller
  _, k_min, k_max = config.k_range(dim)
  settings = types.SimpleNamespace(
      num_rounds=config.num_rounds,
      stuck_rounds=config.stuck_rounds,
      exp3_arms=config.exp3_arms,
      bandit_radius=config.bandit_radius,
      bandit_step=config.bandit_step,
      recorded_ks=list(recorded_ks),
  )
  rule = CONTROLLERS[config.used_controller]
  if rule.uses_budget:
    settings.budget = config.budget
  return rule.build(k, k_min, k_max, settings)


def _build_training(config, dim):
  """What clients do between exchanges; None for one plain gradient."""
  steps = config.used_local_steps(dim)
  require(
      steps != 1 or config.local_optimizer != "momentum",
      "local_optimizer",
      config.local_optimizer,
      "sgd or adam where k makes one local step, ceil(D / 2k), because clients "
      "begin their momentum anew in every round",
  )
  require(
      (steps or 1) * config.batch_size < 2**31,  # samples are counted in int32
      "batch_size",
      config.batch_size,
      f"less than 2^31 in all {steps} local steps together",
  )
  training = LocalTraining(
      steps,
      optimizers.local(
          config.local_optimizer, config.weight_decay, config.clip_norm
      ),
      config.local_epochs,
      config.sample_without_replacement,
  )
  is_plain = config.local_optimizer == "sgd" and not (
      config.weight_decay or config.clip_norm or training.without_replacement
  )
  return None if steps == 1 and is_plain else training


def _build_schedules(config):
  """Factors of the learning rates in each round; None if all are 1."""
  if config.used_schedules == {"constant"} and not config.warmup_rounds:
    return None
  build = functools.partial(
      build_schedule,
      warmup_rounds=config.warmup_rounds,
      horizon=config.used_schedule_rounds,
      drops=config.schedule_drops,
      drop_factor=config.schedule_drop_factor,
  )
  client = config.learning_rate_schedule
  server = config.server_learning_rate_schedule or client
  return Schedules(build(client), build(server))
