"""Many rounds as one program: in a row, or simulations side by side."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from agsfl.over_clients import map_clients
from agsfl.rounds import Round
from agsfl.types import PyTree, RoundInfo, RoundState

# Rounds per call of one program, by platform; where none is given, all that
# lie between two evaluations, which is not measured yet.
ROUNDS_PER_CALL = {"cpu": 1}


def build_chunk(step: Callable, length: int) -> Callable:
  """Rounds in a row as one program, without a return to the host.

  Args:
    step: of a `Round`.
    length: rounds at most.

  Returns:
    (root_key, ClientData, RoundState, num_rounds [] i32 <= length, time_budget
    [] f32) -> (RoundState, RoundInfo with a leading axis `length`, [] i32
    rounds done). It ends early after a round that spends the budget or whose
    gradients were not finite; infos past the rounds done are zeros.
  """

  def chunk(root_key, data, state, num_rounds, time_budget):
    _, shapes = jax.eval_shape(step, root_key, data, state)
    infos = jax.tree.map(
        lambda one: jnp.zeros((length, *one.shape), one.dtype), shapes
    )

    def goes_on(carry):
      state, _, done, finite = carry
      return finite & (done < num_rounds) & (state.elapsed < time_budget)

    def one_round(carry):
      state, infos, done, _ = carry
      state, info = step(root_key, data, state)
      infos = jax.tree.map(
          lambda rows, row: rows.at[done].set(row), infos, info
      )
      return state, infos, done + 1, info.finite

    carry = (state, infos, jnp.int32(0), jnp.bool_(True))
    state, infos, done, _ = lax.while_loop(goes_on, one_round, carry)
    return state, infos, done

  return chunk


class Sweep(NamedTuple):
  """Simulations side by side as two pure functions; each is one lane.

  Attributes:
    init: (root_keys [S], settings, num_clients) -> RoundState with a leading
      axis S.
    step: (root_keys [S], settings, ClientData, RoundState) -> (RoundState,
      RoundInfo), all but the data with a leading axis S; of the data `order`,
      `starts` and `counts` may have one: rows of each lane's own.
  """

  init: Callable[..., RoundState]
  step: Callable[..., tuple[RoundState, RoundInfo]]


def build_sweep(
    build: Callable[[PyTree], Round], lane_chunk: int | None
) -> Sweep:
  """Seeds and numeric settings as lanes of one program.

  Args:
    build: one lane's settings, traced numbers, -> its Round. Learning rate and
      comm_time may come from them; all that decides a shape may not.
    lane_chunk: lanes per vmapped piece, see `over_clients.map_clients`.

  Returns:
    The sweep.
  """

  def init(root_keys, settings, num_clients):
    one = lambda key, setting: build(setting).init(key, num_clients)
    return jax.vmap(one)(root_keys, settings)

  def step(root_keys, settings, data, states):
    rows = {}
    if data.starts.ndim == 2:
      names = ("order", "starts", "counts")
      rows = {name: getattr(data, name) for name in names}

    def one(key, setting, rows, state):
      return build(setting).step(key, data.replace(**rows), state)

    return map_clients(one, (root_keys, settings, rows, states), lane_chunk)

  return Sweep(init, step)
