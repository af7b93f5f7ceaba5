"""Federated learning with adaptive gradient sparsification, in JAX.

A run in three lines:

    import agsfl
    run = agsfl.simulate(agsfl.Config(model="mlp", num_rounds=50))
    print(run.summary["test_accuracy"], run.rows[-1]["k"])

`Config` names all settings; `load` and `Partition` deal a data set to clients.
Underneath are pure functions to compose by hand: sparsifiers (`fab_top_k` and
others), controllers (`sign_interval` and others), `build_round` of both, and
`build_sweep` of many. `types` has the records that pass between them.
"""

from agsfl.config import Config
from agsfl.controllers.bandits import bandit, exp3
from agsfl.controllers.cost import cost_slope, round_time
from agsfl.controllers.descent import (
    fixed,
    replay,
    sign_descent,
    sign_interval,
    value_descent,
)
from agsfl.data.federated import ClientData, FederatedData, load
from agsfl.data.partitions import Partition
from agsfl.errors import ConfigError, DivergedError, StoppedError
from agsfl.programs import build_sweep
from agsfl.rounds import build_round
from agsfl.runs import Run, simulate
from agsfl.simulation import build, run
from agsfl.sparsifiers.methods import (
    fab_top_k,
    fub_top_k,
    fub_top_k_tree,
    periodic_k,
    send_all,
    unidirectional_top_k,
)
from agsfl.sparsifiers.per_layer import per_layer
from agsfl.training.client import LocalTraining
from agsfl.training.models import flatten
from agsfl.types import (
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

__version__ = "0.1.0"

__all__ = [
    "ClientData",
    "Config",
    "ConfigError",
    "DivergedError",
    "FederatedData",
    "KController",
    "KProposal",
    "LocalTraining",
    "Model",
    "Observation",
    "Partition",
    "RoundInfo",
    "RoundState",
    "Run",
    "Selection",
    "Sparsifier",
    "Split",
    "StoppedError",
    "bandit",
    "build",
    "build_round",
    "build_sweep",
    "cost_slope",
    "exp3",
    "fab_top_k",
    "fixed",
    "flatten",
    "fub_top_k",
    "fub_top_k_tree",
    "load",
    "per_layer",
    "periodic_k",
    "replay",
    "round_time",
    "run",
    "send_all",
    "sign_descent",
    "sign_interval",
    "simulate",
    "unidirectional_top_k",
    "value_descent",
]
