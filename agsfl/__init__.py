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

## How a round goes

`agsfl/rounds.py` reads from top to bottom in this order:

| file | what it does |
|---|---|
| `attendance.py` | who takes part |
| `asynchrony.py` | whose message arrives next |
| `training/client.py` | one client: minibatch -> gradient [D] |
| `for_each_client.py` | the same for all clients |
| `gradients.py`, `feedback.py` | accumulated = residual + gradient, [N, D] |
| `delivery.py` | whose message arrives, with which weight |
| `sparsifiers/plain.py` | J and J_i for k and k', as in the papers |
| `sparsifiers/cpu/` | the same choice, as a CPU is fast |
| `sparsifiers/accelerator/` | the same, as a GPU is fast |
| `rounds.py` | w <- w - eta b; residuals keep what was not sent |
| `clocks/` | seconds of the round, bits of a message |
| `controllers/cost.py` | time of the round, sign of its slope in k |
| `controllers/` | k and k' of the next round |

Around it: `data/` (data sets, and which client has which samples), `config.py`
(all settings), `parts.py` (the objects that settings name), `layout.py` (which
device has which samples), `programs.py` (compiled programs on devices),
`stored.py` and `stores/` (residuals that are not on the device), `hosts.py`
(several processes), `simulation.py` (a run), `recorder.py` and `records/` (its
files), `sweeps.py` (runs side by side).

The state is one pytree that contains the random key, and every function is
pure. k is a traced number: a run compiles its round once, and runs that differ
only in plain numbers share the program. Every random draw depends only on the
seed, the round and the client. So a run has the same draws on any number of
devices.
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
