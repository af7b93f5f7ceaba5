"""Fingerprints that distinguish a user's own objects of the same name."""

import dataclasses
import functools
import hashlib
import inspect
import types
from typing import Any

import numpy as np

# The names in functions of these libraries change only with their versions.
_LIBRARIES = ("jax", "flax", "optax", "numpy", "agsfl.")
_PLAIN = (type(None), bool, int, float, complex, str, bytes)


def name_of(part: Any) -> str:
  """A readable name of a function, a class, or what a factory has made.

  >>> def scaled(factor):
  ...   return lambda x: factor * x
  >>> name_of(scaled(2))
  'scaled'
  """
  if isinstance(part, tuple) and hasattr(part, "_fields"):
    # Of (init, select, split), (init, update) or (init, apply) the second.
    functions = [field for field in part if callable(field)]
    part = functions[1] if len(functions) > 1 else part
  name = getattr(part, "__qualname__", None) or type(part).__qualname__
  return name.split(".<locals>")[0].split(".")[0]


def fingerprint(part: Any) -> str | None:
  """16 hexadecimal digits made from an object's source code and numbers.

  For a function they depend on its source, its defaults, the values in its
  closure, and the numbers, arrays and functions of its module that it names.
  For an object they depend on the source of its class and on its fields.

  Args:
    part: a user's object.

  Returns:
    The digits, or None if a part of the object cannot be read.
  """
  digest = hashlib.blake2b(digest_size=8)
  try:
    _add(digest, part, {})
  except (OSError, TypeError, ValueError, RecursionError):
    return None
  return digest.hexdigest()


def _add(digest, part, seen):
  """Feeds one object to the digest.

  Args:
    digest: is changed.
    part: the object.
    seen: objects by id; while they are here, Python cannot use their ids again.

  Raises:
    OSError, TypeError: it has no source.
  """
  if isinstance(part, _PLAIN):
    digest.update(f"{type(part).__name__} {part!r};".encode())
    return
  if id(part) in seen:  # a function may refer to itself
    return
  seen[id(part)] = part
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
    digest.update(_source(part).encode())
  elif hasattr(part, "__array__"):
    array = np.ascontiguousarray(part)
    digest.update(f"{array.dtype} {array.shape};".encode())
    digest.update(array.tobytes())
  elif callable(getattr(part, "__wrapped__", None)):  # jax.jit and others
    _add(digest, part.__wrapped__, seen)
  elif not hasattr(part, "__dict__"):  # a slice, shapes, the form of a tree
    if " at 0x" in repr(part):
      raise TypeError("says nothing but its place in memory")
    digest.update(repr(part).encode())
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
    _add(digest, cell.cell_contents, seen)
  if _module_of(function).startswith(_LIBRARIES):
    return
  named = function.__globals__
  for name in sorted(_names_in(function.__code__) & named.keys()):
    value = named[name]
    own = callable(value) and _module_of(value) == function.__module__
    if own or isinstance(value, _PLAIN) or hasattr(value, "__array__"):
      _add(digest, value, seen)


def _source(kind):
  """The source code of a class; for a compiled class only its name."""
  try:
    return inspect.getsource(kind)
  except (OSError, TypeError):
    if kind.__module__ == "__main__":
      raise
    return f"{kind.__module__}.{kind.__qualname__}"


def _module_of(value):
  return getattr(value, "__module__", None) or ""


def _names_in(code):
  """What a function's code, and that of functions within it, looks up."""
  inner = [x for x in code.co_consts if isinstance(x, types.CodeType)]
  return set(code.co_names).union(*map(_names_in, inner))
