"""How k changes from round to round."""

from agsfl.controllers.balancing import balance
from agsfl.controllers.bandits import bandit, exp3
from agsfl.controllers.by_name import CONTROLLERS, register_controller
from agsfl.controllers.cost import CostSlope, add_time, cost_slope, round_time
from agsfl.controllers.descent import (
    sign_descent,
    sign_interval,
    sign_log,
    value_descent,
)
from agsfl.controllers.fixed import fixed, replay
from agsfl.controllers.rule import Rule, RunSettings

__all__ = [
    "CONTROLLERS",
    "CostSlope",
    "Rule",
    "RunSettings",
    "add_time",
    "balance",
    "bandit",
    "cost_slope",
    "exp3",
    "fixed",
    "register_controller",
    "replay",
    "round_time",
    "sign_descent",
    "sign_interval",
    "sign_log",
    "value_descent",
]
