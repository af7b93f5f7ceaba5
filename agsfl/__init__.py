"""Federated learning with adaptive gradient sparsification, in JAX.

In Python, a run is three lines:

    import agsfl
    run = agsfl.simulate(agsfl.Config(model="mlp", num_rounds=50))
    print(run.summary["test_accuracy"], run.rows[-1]["k"])

`Config` has all settings. Hand over your own parts as objects, as in
`agsfl.simulate(config, model=..., data=agsfl.from_arrays(x, y))`. Or register
them under a name that every command then knows: `register_model`,
`register_method`, `register_controller`, `register_partition` and
`register_source`.

Below are pure functions that you can compose: sparsifiers (`fab_top_k` and
others), controllers (`sign_interval` and others), and `build_round`, which
makes a round of them. `types` has the records that pass between them.
"""

from agsfl.asynchrony import buffered
from agsfl.attendance import SAMPLINGS, sampled
from agsfl.clocks import Message, Speeds
from agsfl.config import Config
from agsfl.controllers import (
  balance,
  bandit,
  cost_slope,
  exp3,
  fixed,
  register_controller,
  replay,
  round_time,
  sign_descent,
  sign_interval,
  sign_log,
  value_descent,
)
from agsfl.data.federated import ClientData, FederatedData, from_arrays, load
from agsfl.data.partitions import Partition, register_partition
from agsfl.data.sources import SourceOptions, register_source
from agsfl.delivery import Delivery
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.feedback import Feedback
from agsfl.for_each_client import one_by_one, over_devices
from agsfl.frame import read_runs
from agsfl.programs import build
from agsfl.records.read import Run, read_run
from agsfl.rounds import build_round
from agsfl.simulation import simulate
from agsfl.sparsifiers import (
  fab_top_k,
  from_masks,
  fub_top_k,
  fub_top_k_tree,
  per_layer,
  periodic_k,
  register_method,
  send_all,
  unidirectional_top_k,
)
from agsfl.training.client import LocalTraining
from agsfl.training.lora import lora
from agsfl.training.models import flatten, register_model
from agsfl.training.schedules import Schedules, build_schedule
from agsfl.types import (
  Form,
  KController,
  KProposal,
  Model,
  Observation,
  RoundInfo,
  RoundState,
  Selection,
  Sparsifier,
  Split,
)

__version__ = "0.2.0"

__all__ = [
  "SAMPLINGS",
  "ClientData",
  "Config",
  "ConfigError",
  "Delivery",
  "DivergedError",
  "FederatedData",
  "Feedback",
  "Form",
  "KController",
  "KProposal",
  "LocalTraining",
  "Message",
  "Model",
  "Observation",
  "Partition",
  "RoundInfo",
  "RoundState",
  "Run",
  "Schedules",
  "Selection",
  "SourceOptions",
  "Sparsifier",
  "Speeds",
  "Split",
  "StoppedError",
  "balance",
  "bandit",
  "buffered",
  "build",
  "build_round",
  "build_schedule",
  "cost_slope",
  "exp3",
  "fab_top_k",
  "fixed",
  "flatten",
  "from_arrays",
  "from_masks",
  "fub_top_k",
  "fub_top_k_tree",
  "load",
  "lora",
  "one_by_one",
  "over_devices",
  "per_layer",
  "periodic_k",
  "read_run",
  "read_runs",
  "register_controller",
  "register_method",
  "register_model",
  "register_partition",
  "register_source",
  "replay",
  "round_time",
  "sampled",
  "send_all",
  "sign_descent",
  "sign_interval",
  "sign_log",
  "simulate",
  "unidirectional_top_k",
  "value_descent",
]
