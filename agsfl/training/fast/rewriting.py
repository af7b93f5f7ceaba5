"""Exchanges operations in the trace of a function."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.extend import core

# A primitive's parameters and arguments -> its results, in other operations.
Rule = Callable[..., Any]
Rules = Mapping[core.Primitive, Rule]


def rewritten(function: Callable[..., Any], rules: Rules) -> Callable[..., Any]:
  """The same function with some of its operations exchanged.

  Loops, branches and functions compiled by `jax.jit` inside it are rewritten
  too. If a rule has no derivative, the result cannot be differentiated: take
  the gradient first, and rewrite it.

  Args:
    function: of pytrees of arrays.
    rules: for each primitive to exchange, the function (*arguments,
      **parameters) -> results that takes its place.

  Returns:
    A function of the same arguments.
  """

  def exchanged(*args):
    trace, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
    results = core.jaxpr_as_fun(_rewrite(trace, rules, {}))(
        *jax.tree.leaves(args)
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), results)

  return exchanged


def _rewrite(value: Any, rules: Rules, done: dict[int, Any]) -> Any:
  """A trace with its equations exchanged; other values as they are.

  Args:
    value: a parameter of an equation, or the trace itself.
    rules: see `rewritten`.
    done: id -> (trace, rewritten trace). JAX compiles a trace once however
      often it is called, if it is one object.
  """
  if type(value) is tuple:
    return tuple(_rewrite(item, rules, done) for item in value)
  if not isinstance(value, (core.Jaxpr, core.ClosedJaxpr)):
    return value
  trace: Any = value  # versions of JAX differ in its type
  if id(trace) not in done:
    if getattr(trace, "jaxpr", trace) is not trace:
      new = trace.replace(jaxpr=_rewrite(trace.jaxpr, rules, done))
    else:
      new = trace.replace(
          eqns=[_exchange(equation, rules, done) for equation in trace.eqns]
      )
    done[id(trace)] = trace, new
  return done[id(trace)][1]


def _exchange(equation, rules, done):
  """One equation, in the form of its rule."""
  rule = rules.get(equation.primitive)
  if rule is None:
    return equation.replace(params={
        name: _rewrite(value, rules, done)
        for name, value in equation.params.items()
    })

  # The rule as one equation, a call, between the same variables.
  def call(*args):
    return rule(*args, **equation.params)

  avals = [variable.aval for variable in equation.invars]
  (new,) = jax.make_jaxpr(jax.jit(call))(*avals).eqns
  return new.replace(invars=equation.invars, outvars=equation.outvars)
