"""Which gradient elements are sent.

`methods` has the factories of sparsifiers. `plain` makes their choices as the
papers describe them. `cpu` and `accelerator` make the same choices with less
work. The default is the one for this platform.
"""

from agsfl.sparsifiers import accelerator, cpu, plain
from agsfl.sparsifiers.choice import Choice, Choose
from agsfl.sparsifiers.methods import (
  METHODS,
  Method,
  fab_top_k,
  from_masks,
  fub_top_k,
  fub_top_k_tree,
  periodic_k,
  register_method,
  send_all,
  unidirectional_top_k,
)
from agsfl.sparsifiers.per_layer import per_layer

__all__ = [
    "METHODS",
    "Choice",
    "Choose",
    "Method",
    "accelerator",
    "cpu",
    "fab_top_k",
    "from_masks",
    "fub_top_k",
    "fub_top_k_tree",
    "per_layer",
    "periodic_k",
    "plain",
    "register_method",
    "send_all",
    "unidirectional_top_k",
]
