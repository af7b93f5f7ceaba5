"""The choices of `agsfl.sparsifiers.plain` with less work, most of all on CPU.

Each takes and gives the same. No client's entries are sorted in full, and on
CPU no other array of [N, D] is formed (but by `fub_tree`). Where the clients
are split over the devices of the mesh in use, each device works on its own
clients, and only arrays of [D] and smaller travel between them.
"""

from agsfl.sparsifiers.fast.fab import fab
from agsfl.sparsifiers.fast.fub import fub, fub_tree
from agsfl.sparsifiers.fast.uplink import WIDTH, unidirectional

__all__ = ["WIDTH", "fab", "fub", "fub_tree", "unidirectional"]
