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
  too. The result is not to be differentiated if a rule has no derivative: take
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


def _rewrite(value, rules, done):
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
  if id(value) not in done:
    if getattr(value, "jaxpr", value) is not value:
      new = value.replace(jaxpr=_rewrite(value.jaxpr, rules, done))
    else:
      new = value.replace(
          eqns=[_exchange(equation, rules, done) for equation in value.eqns]
      )
    done[id(value)] = value, new
  return done[id(value)][1]


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
