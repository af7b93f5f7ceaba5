"""The recurrence of an LSTM, with one product for the gradient of its kernel.

Autodiff would add a product to the kernel's gradient [H, 4 H] at each of T time
steps. So it would read and write this large array T times. Here the backward
pass keeps the gradients of the gates, and one product over all time steps gives
the same sum.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


def lstm(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
  """All outputs of an LSTM whose first state is zero.

  Args:
    inputs: [T, B, 4 H], what the gates get from the layer's input, with their
      biases; the order of the gates is i, f, g, o.
    kernel: [H, 4 H], what the gates get from the last output.

  Returns:
    [T, B, H], the output of each time step.

  Source: Hochreiter and Schmidhuber, "Long Short-Term Memory", 1997, with the
  forget gate of Gers et al., 2000.
  """
  # The gradient is traced later, where another precision may be set.
  settings: Any = jax.config
  precision = settings.jax_default_matmul_precision
  return _lstm(inputs, kernel, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _lstm(inputs, kernel, precision):
  return _forward(inputs, kernel, precision)[0]


def _cell(gates, c):
  """(gates [B, 4 H], c [B, H]) -> the new output and c, [B, H] each."""
  i, f, g, o = jnp.split(gates, 4, axis=-1)
  c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
  return jax.nn.sigmoid(o) * jnp.tanh(c), c


def _forward(inputs, kernel, precision):
  def step(carry, x):
    h, c = carry
    gates = x + jnp.dot(h, kernel, precision=precision)
    new, c_new = _cell(gates, c)
    return (new, c_new), (new, gates, c)

  zero = jnp.zeros((inputs.shape[1], len(kernel)), inputs.dtype)
  _, (outputs, gates, cs) = lax.scan(step, (zero, zero), inputs)
  return outputs, (outputs, gates, cs, kernel)


def _backward(precision, saved, d_outputs):
  outputs, gates, cs, kernel = saved

  # From the last step to the first.
  def step(carry, at):
    dh, dc = carry
    gates, c, d_output = at
    d_gates, dc = jax.vjp(_cell, gates, c)[1]((dh + d_output, dc))
    dh = jnp.dot(d_gates, kernel.T, precision=precision)
    return (dh, dc), d_gates

  zero = jnp.zeros_like(outputs[0])
  _, d_inputs = lax.scan(
      step, (zero, zero), (gates, cs, d_outputs), reverse=True
  )
  d_kernel = jnp.einsum(
      "tbh,tbg->hg", outputs[:-1], d_inputs[1:], precision=precision
  )
  return d_inputs, d_kernel


_lstm.defvjp(_forward, _backward)
