"""The choices of `agsfl.sparsifiers.plain` with less work on accelerators.

Arguments and results are those of `plain`. All clients, k and runs go side by
side: there is no loop over clients, and no scatter of as many elements as a
client has. No scatter adds floats, so results are the same every time. A few
passes over [N, D] count, mark or add up. If the clients are split over the
devices of a mesh, each device works on its own clients. The devices exchange
arrays of [D] and smaller; with `fub_tree` they exchange messages.
"""

from agsfl.sparsifiers.accelerator.fab import fab
from agsfl.sparsifiers.accelerator.fub import fub, fub_tree
from agsfl.sparsifiers.accelerator.uplink import WIDTH, unidirectional

__all__ = ["WIDTH", "fab", "fub", "fub_tree", "unidirectional"]
