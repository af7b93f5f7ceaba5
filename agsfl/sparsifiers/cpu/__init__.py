"""The choices of `agsfl.sparsifiers.plain` with less work on CPU.

Arguments and results are those of `plain`. No client's entries are sorted in
full. No other array of [N, D] is formed, except by `fub_tree`. If the clients
are split over the devices of a mesh, each device works on its own
clients; devices exchange arrays of [D] and smaller (`fub_tree`: messages).
"""

from agsfl.sparsifiers.cpu.fab import fab
from agsfl.sparsifiers.cpu.fub import fub, fub_tree
from agsfl.sparsifiers.cpu.uplink import WIDTH, unidirectional

__all__ = ["WIDTH", "fab", "fub", "fub_tree", "unidirectional"]
