"""The settings of a run, checked; plain values only."""

import dataclasses
import math
import numbers
import os
import typing

import numpy as np

from agsfl.data import sources
from agsfl.data.partitions import Partition
from agsfl.errors import ConfigError
from agsfl.sparsifiers import methods as sparsifiers
from agsfl.training.models import MODELS
from agsfl.training.optimizers import OPTIMIZERS

METHODS = (*sparsifiers.METHODS, "fedavg")
# There is no k to learn.
METHODS_WITHOUT_K = (
    *(name for name, one in sparsifiers.METHODS.items() if not one.takes_k),
    "fedavg",
)
CONTROLLERS = (
    "fixed", "sign", "sign_interval", "value", "exp3", "bandit", "replay"
)

_LARGEST = 1e30

# By a field's type: what may stand for it, and that in words.
_KINDS = {
    bool: ((bool, np.bool_), "True or False"),
    int: (numbers.Integral, "a whole number"),
    float: (numbers.Real, "a number"),
    str: ((str, os.PathLike), "text"),
}


def _require(condition, field, value, allowed):
  if not condition:
    raise ConfigError(f"--{field}={value}: must be {allowed}")


def _typed(field, value):
  """The value in its field's own type, NumPy's numbers as Python's."""
  kind, *others = typing.get_args(field.type) or (field.type,)
  if value is None and others:
    return None
  kinds, allowed = _KINDS[kind]
  # A bool is an integer to Python.
  fits = isinstance(value, kinds) and (
      kind is bool or not isinstance(value, bool)
  )
  _require(fits, field.name, repr(value), allowed)
  return kind(value)


@dataclasses.dataclass(frozen=True)
class Config:
  """One run.

  Attributes:
    dataset: a name or URI, see `data.load`.
    partition, num_clients, min_samples, shards_per_client, dirichlet_alpha,
      power: how samples go to clients, see `partitions.Partition`.
    standardize: whether each image is brought to mean 0 and deviation 1.
    model: a key of `models.MODELS`.
    method: one of `METHODS`; "fedavg" sends whole models after `local_steps`
      of training.
    per_layer: whether the method works on each array of weights by itself.
    controller: one of `CONTROLLERS`; None means "sign_interval", or "fixed"
      with `METHODS_WITHOUT_K`.
    k: elements per message; where k is learned, its first value.
    k_min, k_max: where k may move; None means 0.002 D, and D.
    stuck_rounds: of "sign" and "sign_interval", rounds in a row without a sign
      after which k rises by one step; None means never.
    exp3_arms: of "exp3", evenly spaced; None means every integer k.
    bandit_radius, bandit_step: of "bandit", in halves of the interval; None
      means T^(-1/4) and T^(-3/4), with T = num_rounds.
    replay: a run's folder, whose k "replay" plays.
    comm_time: beta, the time of sending D values both ways.
    learning_rate: eta, of the clients' steps, and of the server's if that is
      None.
    local_steps: tau, steps of each client per round; None means 1, and with
      "fedavg" ceil(D / 2k), the traffic of k sparse elements.
    local_optimizer: of the clients, a key of `optimizers.OPTIMIZERS`.
    server_optimizer: applies the aggregate, a key of it too.
    server_learning_rate: of that; None means learning_rate.
    batch_size: samples per minibatch.
    num_rounds: rounds at most.
    time_budget: normalised time after which no round begins, or None.
    eval_every: rounds between evaluations; the last round has one too.
    client_chunk: clients per vmapped piece; None means the platform's measured
      default.
    rounds_per_call: rounds that one call runs as one program; None means the
      platform's measured default.
    num_devices: devices that share the clients; None means all, but no more
      than clients.
    seed: of every draw.

  Raises:
    ConfigError: a value is of another type, or out of range.
  """

  dataset: str = "mnist_5k"
  partition: str = "one_class"
  num_clients: int | None = None
  min_samples: int = 1
  shards_per_client: int = 2
  dirichlet_alpha: float = 0.5
  power: float = 1.0
  standardize: bool = False
  model: str = "cnn"
  method: str = "fab_top_k"
  per_layer: bool = False
  controller: str | None = None
  k: float = 1000.0
  k_min: float | None = None
  k_max: float | None = None
  stuck_rounds: int | None = None
  exp3_arms: int | None = None
  bandit_radius: float | None = None
  bandit_step: float | None = None
  replay: str | None = None
  comm_time: float = 10.0
  learning_rate: float = 0.01
  local_steps: int | None = None
  local_optimizer: str = "sgd"
  server_optimizer: str = "sgd"
  server_learning_rate: float | None = None
  batch_size: int = 32
  num_rounds: int = 300
  time_budget: float | None = None
  eval_every: int = 20
  client_chunk: int | None = None
  rounds_per_call: int | None = None
  num_devices: int | None = None
  seed: int = 0

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = _typed(field, getattr(self, field.name))
      object.__setattr__(self, field.name, value)
      if isinstance(value, float):
        _require(math.isfinite(value), field.name, value, "a finite number")
        # JAX computes in float32: a larger number would become infinite.
        most = f"at most {_LARGEST:g}"
        _require(value <= _LARGEST, field.name, value, most)
    for field, names in (
        ("model", tuple(MODELS)),
        ("method", METHODS),
        ("controller", (None, *CONTROLLERS)),
        ("local_optimizer", tuple(OPTIMIZERS)),
        ("server_optimizer", tuple(OPTIMIZERS)),
    ):
      value = getattr(self, field)
      allowed = ", ".join(name for name in names if name)
      _require(value in names, field, value, f"one of {allowed}")
    self._check_combinations()
    known = sources.is_known(self.dataset)
    _require(known, "dataset", self.dataset, sources.ALLOWED)
    self.as_partition()
    for field, least in (
        ("k", 1),
        ("k_min", 2),
        ("k_max", 2),
        ("comm_time", 0),
        ("batch_size", 1),
        ("stuck_rounds", 1),
        ("exp3_arms", 1),
        ("local_steps", 1),
        ("num_rounds", 1),
        ("eval_every", 1),
        ("client_chunk", 1),
        ("rounds_per_call", 1),
        ("num_devices", 1),
    ):
      value = getattr(self, field)
      _require(
          value is None or value >= least, field, value, f"at least {least}"
      )
    for field, most, text in (
        ("batch_size", 2**20, "2^20"),
        ("local_steps", 2**20, "2^20"),
        ("stuck_rounds", 2**31 - 1, "2^31 - 1"),  # counted in int32
        ("bandit_radius", 1.0, "1"),
    ):
      value = getattr(self, field)
      _require(
          value is None or value <= most, field, value, f"at most {text}"
      )
    for field in (
        "learning_rate",
        "server_learning_rate",
        "bandit_radius",
        "bandit_step",
        "time_budget",
    ):
      value = getattr(self, field)
      _require(
          value is None or value >= 1 / _LARGEST,
          field,
          value,
          f"above 0, at least {1 / _LARGEST:g}",
      )

  def _check_combinations(self):
    if self.method in METHODS_WITHOUT_K:
      _require(
          self.controller in (None, "fixed"),
          "controller",
          self.controller,
          f"fixed with --method={self.method}, which has no k to learn",
      )
      _require(
          not self.per_layer,
          "per_layer",
          self.per_layer,
          f"false with --method={self.method}, which has no k to share out",
      )
    _require(
        (self.replay is not None) == (self.controller == "replay"),
        "replay",
        self.replay,
        "a run's folder with --controller=replay, and unset without",
    )

  def as_partition(self) -> Partition:
    """How samples go to clients; raises ConfigError where that cannot be."""
    names = [field.name for field in dataclasses.fields(Partition)]
    return Partition(**{name: getattr(self, name) for name in names})

  @property
  def used_controller(self) -> str:
    """The controller, where None is settled."""
    if self.controller is not None:
      return self.controller
    return "fixed" if self.method in METHODS_WITHOUT_K else "sign_interval"

  def used_local_steps(self, dim: int) -> int:
    """tau, where None is settled, for a model of D = `dim` weights."""
    if self.local_steps is not None:
      return self.local_steps
    return math.ceil(dim / (2 * self.k)) if self.method == "fedavg" else 1

  def k_interval(self, dim: int) -> tuple[float, float]:
    """The interval of k for a model of D = `dim` weights.

    Args:
      dim: D.

    Returns:
      (k_min, k_max), elements.

    Raises:
      ConfigError: the values do not fit the model or each other.
    """
    k_min = max(2.0, 0.002 * dim) if self.k_min is None else self.k_min
    k_max = float(dim) if self.k_max is None else self.k_max
    _require(self.k <= dim, "k", self.k, f"at most the model's {dim} weights")
    if self.used_controller in ("fixed", "replay"):
      return k_min, k_max
    _require(k_min <= dim, "k_min", k_min, f"at most the model's {dim} weights")
    _require(
        k_min <= k_max <= dim, "k_max", k_max, f"{k_min:g} (k_min) to {dim}"
    )
    _require(
        self.used_controller != "exp3" or math.ceil(k_min) <= k_max,
        "k_max",
        k_max,
        f"at least {math.ceil(k_min)}, the first whole k above k_min",
    )
    _require(
        k_min <= self.k <= k_max,
        "k",
        self.k,
        f"{k_min:g} (k_min) to {k_max:g} (k_max), where k is learned",
    )
    return k_min, k_max
