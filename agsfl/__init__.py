"""Federated learning with adaptive gradient sparsification, in JAX."""

from agsfl.config import Config, ConfigError
from agsfl.controllers import fixed, sign_descent, sign_interval
from agsfl.cost import cost_slope, round_time
from agsfl.data import ClientData, FederatedData, load
from agsfl.models import flatten
from agsfl.programs import build_sweep
from agsfl.rounds import build_round
from agsfl.simulation import DivergedError, build, run
from agsfl.sparsifiers import fab_top_k
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
    "Model",
    "Observation",
    "RoundInfo",
    "RoundState",
    "Selection",
    "Sparsifier",
    "Split",
    "build",
    "build_round",
    "build_sweep",
    "cost_slope",
    "fab_top_k",
    "fixed",
    "flatten",
    "load",
    "round_time",
    "run",
    "sign_descent",
    "sign_interval",
]
