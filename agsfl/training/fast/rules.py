"""Which operations are exchanged for which."""

from collections.abc import Callable
from typing import Any

from jax.extend.core import primitives

from agsfl.training.fast import convolution, windows
from agsfl.training.fast.rewriting import Rules, rewritten

_RULES: Rules = {
    primitives.conv_general_dilated_p: convolution.convolution,
    primitives.reduce_window_sum_p: windows.sums,
    primitives.select_and_scatter_add_p: windows.to_winners,
}


def faster(function: Callable[..., Any]) -> Callable[..., Any]:
  """The same function, with its operations in fast forms.

  The values are those of the plain operations, except for the order of sums.
  Differentiate the function before this call, not after it.

  Args:
    function: of pytrees of arrays, such as a gradient or the losses of a
      network of any library.

  Returns:
    A function of the same arguments.
  """
  return rewritten(function, _RULES)
