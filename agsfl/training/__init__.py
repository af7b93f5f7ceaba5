"""What a client trains, how it trains, and how the result is tested."""

from agsfl.training.client import LocalTraining, build_client
from agsfl.training.evaluation import Evaluation, build_evaluate
from agsfl.training.models import (
    MODELS,
    Network,
    as_model,
    flatten,
    register_model,
    standardized,
)
from agsfl.training.optimizers import OPTIMIZERS

__all__ = [
    "MODELS",
    "OPTIMIZERS",
    "Evaluation",
    "LocalTraining",
    "Network",
    "as_model",
    "build_client",
    "build_evaluate",
    "flatten",
    "register_model",
    "standardized",
]
