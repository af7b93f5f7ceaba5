"""What tells a user's own object from another one of the same name."""

import dataclasses
import functools
import hashlib
import inspect
import types
from typing import Any

import numpy as np

_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def name_of(part: Any) -> str:
  """A readable name of a function, a class, or what a factory has made.

  >>> def scaled(factor):
  ...   return lambda x: factor * x
  >>> name_of(scaled(2))
  'scaled'
  """
  if isinstance(part, tuple) and hasattr(part, "_fields"):
    functions = [field for field in part if callable(field)]
    part = functions[-1] if functions else part
  name = getattr(part, "__qualname__", None) or type(part).__qualname__
  return name.split(".<locals>")[0].split(".")[0]


def fingerprint(part: Any) -> str | None:
  """16 hexadecimal digits made of an object's source code and numbers.

  A function counts with its source, its defaults and the values it closes
  over; an object with its class's source and its fields.

  Args:
    part: a user's object.

  Returns:
    The digits, or None where some of it can't be looked at.
  """
  digest = hashlib.blake2b(digest_size=8)
  try:
    _add(digest, part, set())
  except (OSError, TypeError, ValueError, RecursionError):
    return None
  return digest.hexdigest()


def _add(digest, part, seen):
  """Feeds one object to the digest.

  Raises:
    OSError, TypeError: it has no source.
  """
  if isinstance(part, _PLAIN):
    digest.update(f"{type(part).__name__} {part!r};".encode())
    return
  if id(part) in seen:  # a function may refer to itself
    return
  seen.add(id(part))
  if isinstance(part, (types.ModuleType, types.BuiltinFunctionType)):
    digest.update(part.__name__.encode())
  elif isinstance(part, (tuple, list)):
    digest.update(f"{type(part).__name__} {len(part)};".encode())
    for item in part:
      _add(digest, item, seen)
  elif isinstance(part, (dict, types.MappingProxyType)):
    for key in sorted(part, key=repr):
      _add(digest, key, seen)
      _add(digest, part[key], seen)
  elif isinstance(part, functools.partial):
    for item in (part.func, part.args, part.keywords):
      _add(digest, item, seen)
  elif isinstance(part, types.MethodType):
    _add(digest, part.__func__, seen)
    _add(digest, part.__self__, seen)
  elif isinstance(part, types.FunctionType):
    _add_function(digest, part, seen)
  elif isinstance(part, type):
    digest.update(inspect.getsource(part).encode())
  elif hasattr(part, "__array__"):
    array = np.ascontiguousarray(part)
    digest.update(f"{array.dtype} {array.shape};".encode())
    digest.update(array.tobytes())
  elif callable(getattr(part, "__wrapped__", None)):  # jax.jit and others
    _add(digest, part.__wrapped__, seen)
  else:
    _add(digest, type(part), seen)
    if dataclasses.is_dataclass(part):
      names = [field.name for field in dataclasses.fields(part)]
      # A Flax module's parent is where it was made, not what it is.
      fields = {n: getattr(part, n) for n in names if n != "parent"}
    else:
      fields = vars(part)
    _add(digest, fields, seen)


def _add_function(digest, function, seen):
  digest.update(inspect.getsource(function).encode())
  _add(digest, function.__defaults__, seen)
  _add(digest, function.__kwdefaults__, seen)
  for cell in function.__closure__ or ():
    value = cell.cell_contents
    # The package's own functions are told apart by its version.
    if not getattr(value, "__module__", "").startswith(("jax", "agsfl.")):
      _add(digest, value, seen)
