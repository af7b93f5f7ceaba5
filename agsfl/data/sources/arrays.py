"""Arrays that a program already has."""

from typing import Any

from agsfl.data.samples import (
  Names,
  Samples,
  as_array,
  coded,
  hold_out,
)

_NAMES = Names("x", "y", "is_train", "clients")


def samples_of(
    setting: str,
    x: Any,
    y: Any,
    clients: Any = None,
    is_train: Any = None,
    *,
    seed: int,
) -> Samples:
  """Makes samples of arrays; `samples.checked` checks them.

  Args:
    setting: what messages begin with.
    x, y, clients, is_train: see `federated.from_arrays`.
    seed: of `samples.hold_out`.

  Returns:
    The samples.

  Raises:
    ConfigError: the text names the array.
  """
  x, y = as_array(setting, "x", x), as_array(setting, "y", y)
  owners = owner_names = None
  if clients is not None:
    ids = as_array(setting, "clients", clients)
    if ids.dtype == object and all(isinstance(one, str) for one in ids.flat):
      ids = ids.astype(str)
    owners, owner_names = coded(setting, "clients", ids)
  if is_train is None:
    is_train = hold_out(len(x) if x.ndim else 0, seed)
  return Samples(
      setting,
      x,
      y,
      as_array(setting, "is_train", is_train),
      owners,
      owner_names,
      _NAMES,
  )
