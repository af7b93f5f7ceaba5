"""The settings of a run, checked; plain values only."""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from agsfl import clocks, settings
from agsfl.controllers import CONTROLLERS
from agsfl.data.partitions import Partition
from agsfl.data.sources import SourceOptions, known_names, require_known
from agsfl.errors import require
from agsfl.names import (
    AugmentationName,
    ControllerName,
    DatasetName,
    MatmulPrecision,
    MethodName,
    ModelName,
    OptimizerName,
    ScheduleName,
)
from agsfl.participation import Participation
from agsfl.settings import Amount, elements, setting
from agsfl.sparsifiers import METHODS
from agsfl.training.models import MODELS

_DEFAULT_K = 1000.0
# The smallest number above 0 whose inverse float32 can hold.
_TINY = 1 / settings.LARGEST


class KRange(NamedTuple):
  """The first k and the interval of k, in elements, as rounds have them.

  Rounds compute in float32, which does not have all whole numbers above 2^24.

  Attributes:
    k: of the first round.
    k_min, k_max: the interval K.
  """

  k: float
  k_min: float
  k_max: float

  def played(self, dim: int) -> "KRange":
    """The same range in float32 above 2^24, at most D = `dim`."""
    return KRange(*(_as_float32(k, dim) for k in self))


def _as_float32(k, dim):
  if k <= 2**24:
    return k
  nearest = np.float32(k)
  if float(nearest) > dim:
    nearest = np.nextafter(nearest, np.float32(0))
  return float(nearest)


@dataclasses.dataclass(frozen=True)
class Config(Partition, SourceOptions, Participation):
  """The settings of a run, of its data and of its clients.

  `python -m experiments.run --helpshort` lists all settings with their help;
  the fields below hold the same texts.

  Raises:
    ConfigError: a value is of another type, out of range, or contradicts
      another one.
  """

  dataset: DatasetName | str = setting(
      "mnist_5k",
      f"{known_names()}. mnist_5k is 5,000 real digits, without a download.",
  )
  standardize: bool = setting(
      False, "Bring each sample to mean 0 and deviation 1."
  )
  model: ModelName | str = setting("cnn", "Network.", choices=MODELS)
  method: MethodName | str = setting(
      "fab_top_k", "What is sent.", choices=METHODS
  )
  per_layer: bool = setting(
      False, "Use the method on each array of weights by itself."
  )
  controller: ControllerName | str | None = setting(
      None,
      "How k moves from round to round. Default: sign_interval, or fixed if "
      "the method has no k.",
      choices=CONTROLLERS,
  )
  k: Amount | None = setting(
      None,
      "Elements per message, or a share of D such as 1%. If k is learned, "
      "this is its first value. Default: 1000, brought into the interval of "
      "k. Above 2^24 = 16,777,216 it is rounded to float32.",
      least=1,
  )
  k_min: Amount | None = setting(
      None,
      "Least k if it is learned, in elements or per cent. Default: 0.2%.",
      least=2,
  )
  k_max: Amount | None = setting(
      None,
      "Largest k if it is learned, in elements or per cent. Default: 100%.",
      least=2,
  )
  stuck_rounds: int | None = setting(
      None,
      "Rounds in a row without a sign after which sign, sign_log and "
      "sign_interval raise k by one step. Default: never.",
      least=1,
      most=2**31 - 1,  # counted in int32
  )
  exp3_arms: int | None = setting(
      None, "Values of k that exp3 plays. Default: every integer.", least=1
  )
  bandit_radius: float | None = setting(
      None,
      "How far bandit explores, in halves of the interval. Default: "
      "num_rounds^(-1/4).",
      least=_TINY,
      most=1.0,
  )
  bandit_step: float | None = setting(
      None,
      "How far bandit moves, in halves of the interval. Default: "
      "num_rounds^(-3/4).",
      least=_TINY,
  )
  replay: str | None = setting(
      None, "Folder of a run whose k the controller replay plays again."
  )
  comm_time: float = setting(
      10.0,
      "beta: the time to send all D weights up and down, where 1 is the time "
      "to compute one round's gradients.",
      least=0,
  )
  learning_rate: float = setting(
      0.01,
      "eta: the step of the clients, and by default of the server.",
      least=_TINY,
  )
  local_steps: int | None = setting(
      None,
      "tau: steps of each client per round. Default: 1. With fedavg it is "
      "ceil(D / 2k), which makes its traffic equal to that of k sparse "
      "elements.",
      least=1,
      most=2**20,
  )
  local_epochs: int | None = setting(
      None,
      "Passes of each client over its own samples per round, in place of "
      "local_steps. The last minibatch of a pass may be short.",
      least=1,
      most=1000,
  )
  sample_without_replacement: bool = setting(
      False,
      "Take the minibatches of a client from passes over its samples in random "
      "order; a round begins a new pass. With local_epochs it is always so.",
  )
  local_optimizer: OptimizerName = setting(
      "sgd",
      "Optimiser of the clients. It begins anew every round, so momentum needs "
      "several local steps.",
  )
  weight_decay: float = setting(
      0.0,
      "Clients add this share of their weights to each gradient, before "
      "momentum.",
      least=0,
  )
  clip_norm: float | None = setting(
      None,
      "Largest norm of a client's gradient; a larger one is scaled down to it, "
      "before weight decay. Default: no limit.",
      least=_TINY,
  )
  server_optimizer: OptimizerName = setting(
      "sgd", "What applies the aggregate to the weights."
  )
  server_learning_rate: float | None = setting(
      None, "Step of the server. Default: learning_rate.", least=_TINY
  )
  learning_rate_schedule: ScheduleName = setting(
      "constant",
      "How the learning rate of the clients goes from round to round.",
  )
  server_learning_rate_schedule: ScheduleName | None = setting(
      None, "The same for the server. Default: learning_rate_schedule."
  )
  warmup_rounds: int = setting(
      0,
      "Number of rounds at the beginning in which both learning rates grow in "
      "equal steps: round m has the share m / warmup_rounds of them.",
      least=0,
      most=2**31 - 2,
  )
  schedule_rounds: int | None = setting(
      None,
      "Rounds, including the warm-up, after which cosine and linear are 0. "
      "The drops of step are spread over these rounds. Default: num_rounds.",
      least=1,
      most=2**31 - 2,
  )
  schedule_drops: int = setting(
      2,
      "step: how many times the learning rate drops, at equal distances.",
      least=1,
      most=100,
  )
  schedule_drop_factor: float = setting(
      0.1, "step: the factor of each drop.", least=_TINY, most=1.0
  )
  batch_size: int = setting(32, "Samples per minibatch.", least=1, most=2**20)
  num_rounds: int = setting(300, "Rounds at most.", least=1, most=2**31 - 2)
  time_budget: float | None = setting(
      None, "Normalised time after which no round begins.", least=_TINY
  )
  seconds_budget: float | None = setting(
      None,
      "Simulated seconds after which no round begins; needs --clock.",
      least=_TINY,
  )
  eval_every: int = setting(
      20, "Rounds between evaluations; the last round has one too.", least=1
  )
  eval_train_samples: int | None = setting(
      None,
      "Number of training samples, at equal distances in the data set, over "
      "which an evaluation computes the training loss. Default: all.",
      least=1,
  )
  init_from: str | None = setting(
      None,
      "Weights to begin with: the folder of a finished run, or a params.npy. "
      "Default: drawn by the seed.",
  )
  lora_rank: int | None = setting(
      None,
      "Train only low-rank adapters of this rank beside the frozen weights of "
      "lora_from. D is then the number of weights of the adapters. Default: "
      "all weights are trained.",
      least=1,
  )
  lora_from: str | None = setting(
      None,
      "The frozen weights of lora_rank: the folder of a finished run of the "
      "whole model, or its params.npy.",
  )
  rounds_per_call: int | None = setting(
      None,
      "Rounds that one call runs as one program. Default: the number that was "
      "fastest on the platform.",
      least=1,
  )
  num_devices: int | None = setting(
      None,
      "Devices that share the clients; on CPU, cores. Default: all, but no "
      "more than clients.",
      least=1,
  )

  augmentation: AugmentationName = setting(
      "none",
      "Random changes of the images in each minibatch: flip mirrors half of "
      "them; crop_flip also moves them by up to 4 pixels.",
  )
  matmul_precision: MatmulPrecision | None = setting(
      None,
      "Precision of the network's products on accelerators, which by default "
      "is lower than float32; highest is float32. A CPU always has float32.",
  )

  def __post_init__(self) -> None:
    settings.check(self)
    clocks.require_consistent(self)
    self._check_participation()
    require_known(self.dataset)
    if not METHODS[self.method].takes_k:
      require(
          self.controller in (None, "fixed"),
          "controller",
          self.controller,
          f"fixed with --method={self.method}, which has no k to learn",
      )
      require(
          not self.per_layer,
          "per_layer",
          self.per_layer,
          f"false with --method={self.method}, which has no k to share out",
      )
    require(
        not self.k_by_speed or METHODS[self.method].k_by_client,
        "k_by_speed",
        self.k_by_speed,
        f"false with --method={self.method}, whose clients send alike",
    )
    require(
        self.local_optimizer != "momentum" or not self._has_one_local_step,
        "local_optimizer",
        self.local_optimizer,
        "sgd or adam with one local step, because clients begin their momentum "
        "anew in every round; see --local_steps",
    )
    require(
        self.local_epochs is None or self.local_steps is None,
        "local_epochs",
        self.local_epochs,
        "unset with --local_steps",
    )
    self._check_schedules()
    require(
        self.seconds_budget is None or self.clock is not None,
        "seconds_budget",
        self.seconds_budget,
        "unset without --clock",
    )
    require(
        self.lora_rank is None or self.lora_from is not None,
        "lora_rank",
        self.lora_rank,
        "unset without --lora_from, which has the frozen weights",
    )
    require(
        self.lora_from is None or self.lora_rank is not None,
        "lora_from",
        self.lora_from,
        "unset without --lora_rank",
    )
    require(
        (self.replay is not None) == (self.controller == "replay"),
        "replay",
        self.replay,
        "a run's folder with --controller=replay, and unset without",
    )

  def _check_schedules(self):
    """Refuses a warm-up or drops that do not fit into the horizon."""
    horizon = self.used_schedule_rounds
    require(
        self.used_schedules == {"constant"} or self.warmup_rounds < horizon,
        "warmup_rounds",
        self.warmup_rounds,
        f"less than the {horizon} rounds of the schedule; see "
        "--schedule_rounds",
    )
    decay_rounds = horizon - self.warmup_rounds
    require(
        "step" not in self.used_schedules or self.schedule_drops < decay_rounds,
        "schedule_drops",
        self.schedule_drops,
        f"less than the {decay_rounds} rounds of the schedule after its "
        "warm-up; see --schedule_rounds",
    )

  @property
  def used_schedules(self) -> set[ScheduleName]:
    """The names of the clients' and the server's schedule."""
    return {
        self.learning_rate_schedule,
        self.server_learning_rate_schedule or self.learning_rate_schedule,
    }

  @property
  def used_schedule_rounds(self) -> int:
    """The horizon of the schedules; the default if it is not set."""
    return self.schedule_rounds or self.num_rounds

  @property
  def budget(self) -> float | None:
    """The budget of time in the unit of `Observation.time`; None for none."""
    return self.time_budget if self.clock is None else self.seconds_budget

  @property
  def _horizon(self) -> set[str]:
    """The limits of the run, such as num_rounds, on which its rounds depend."""
    rule, found = CONTROLLERS[self.used_controller], set()
    if rule.uses_horizon or (
        self.schedule_rounds is None and self.used_schedules != {"constant"}
    ):
      found |= {"num_rounds"}
    if rule.uses_budget:
      found |= {"time_budget", "seconds_budget"}
    return found

  @property
  def _has_one_local_step(self) -> bool:
    """Whether this is so for all models; with FedAvg's default it may be."""
    if self.local_epochs is not None:
      return False
    if self.local_steps is None:
      return not METHODS[self.method].sends_models
    return self.local_steps == 1

  @property
  def sends_plain_gradients(self) -> bool:
    """Whether clients send gradients, without their learning rate."""
    return self._has_one_local_step and self.local_optimizer == "sgd"

  @property
  def used_controller(self) -> str:
    """The controller; the default if none is set."""
    if self.controller is not None:
      return self.controller
    return "sign_interval" if METHODS[self.method].takes_k else "fixed"

  def data_settings(self) -> tuple[str, Partition, SourceOptions]:
    """The arguments of `data.load`; equal for runs that share their data."""
    partition, options = (
        {field.name: getattr(self, field.name) for field in fields}
        for fields in map(dataclasses.fields, (Partition, SourceOptions))
    )
    partition |= {"seed": self.used_data_seed, "data_seed": None}
    return self.dataset, Partition(**partition), SourceOptions(**options)

  def used_local_steps(self, dim: int) -> int | None:
    """tau for a model of D = `dim` weights; None with `local_epochs`."""
    if self.local_steps is not None or self.local_epochs is not None:
      return self.local_steps
    if METHODS[self.method].sends_models:
      return math.ceil(dim / (2 * self.k_range(dim).k))
    return 1

  def k_range(self, dim: int) -> KRange:
    """k and its interval for a model of D = `dim` weights.

    Defaults are adapted to the values that are set.

    Args:
      dim: D.

    Returns:
      The first k, and the interval; if k is not learned, this is 1 to D.

    Raises:
      ConfigError: the set values do not fit the model or each other.
    """
    model = f"the model's {dim:,} weights"
    if not CONTROLLERS[self.used_controller].learns:
      k = min(_DEFAULT_K, dim) if self.k is None else elements(self.k, dim)
      require(k <= dim, "k", self.k, f"at most {model}")
      return KRange(k, 1.0, float(dim)).played(dim)
    # Shares of D below 2 elements mean 2, as there k and k' differ.
    least = min(2.0, dim)
    k_max = max(least, elements(self.k_max or "100%", dim))
    k_min = max(least, elements(self.k_min or "0.2%", dim))
    if self.k_min is None:
      k_min = min(k_min, k_max)
    require(k_min <= dim, "k_min", self.k_min, f"at most {model}")
    require(
        k_min <= k_max <= dim,
        "k_max",
        self.k_max,
        f"from {k_min:g} (k_min) to {model}",
    )
    if self.k is None:
      k = min(max(_DEFAULT_K, k_min), k_max)
      return KRange(k, k_min, k_max).played(dim)
    k = elements(self.k, dim)
    require(
        k_min <= k <= k_max,
        "k",
        self.k,
        f"from {k_min:g} (k_min) to {k_max:g} (k_max), where k is learned",
    )
    return KRange(k, k_min, k_max).played(dim)

  def identity(self) -> dict[str, Any]:
    """The settings that make two runs different.

    The extent of a run and its evaluations are not among them, because a run
    may go on with more rounds. But some controllers, and learning-rate
    schedules, depend on how far the run is to go; for them it is included.
    """
    free = {"num_rounds", "time_budget", "seconds_budget", "eval_every"}
    free -= self._horizon
    return {
        name: value
        for name, value in dataclasses.asdict(self).items()
        if name not in free
    }

  def structure(self) -> "Config":
    """The same settings with all plain numbers at their defaults.

    Runs of equal structure share a compiled program: the numbers are in the
    state of the round, or are arguments of the program.
    """
    numbers = {
        "seed", "data_seed", "learning_rate", "server_learning_rate",
        "comm_time", "num_rounds", "time_budget", "seconds_budget",
        "eval_every", "init_from",
        # These are in the data, as the speeds of each client.
        "seconds_per_sample", "up_mbit", "down_mbit", "latency", "speed_spread",
    }
    if not METHODS[self.method].sends_models:
      numbers.add("k")  # with models, k decides the number of local steps
    numbers -= self._horizon
    defaults: dict[str, Any] = {
        field.name: field.default
        for field in dataclasses.fields(self)
        if field.name in numbers
    }
    if self.replay is not None:
      defaults["replay"] = ""  # its k lie in the controller's state
    if self.lora_from is not None:
      defaults["lora_from"] = ""  # the model holds these weights
    return dataclasses.replace(self, **defaults)
