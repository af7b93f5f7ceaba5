"""The records that flow between the parts of a round; no logic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax

PyTree = Any


class Model(NamedTuple):
  """A network as two pure functions of a flat weight vector.

  Attributes:
    init: key -> [D] f32, the initial weights.
    apply: ([D] weights, [B, ...] f32 images) -> [B, L] logits.
    sizes: of the arrays of weights and biases in the vector, in its order.
  """

  init: Callable[[jax.Array], jax.Array]
  apply: Callable[[jax.Array, jax.Array], jax.Array]
  sizes: tuple[int, ...]

  @property
  def dim(self) -> int:
    """D."""
    return sum(self.sizes)


class Selection(NamedTuple):
  """What one round of sparsification decides; small, whatever N is.

  Attributes:
    mask: [D] bool, the downlink set J.
    aggregate: [D] f32, b_j: the data-size-weighted mean of what clients send.
    k_up: [] i32, elements that each client sends; where they differ, the most
      of any, for the round waits for it.
    k_down: [] i32, elements that the server sends, |J|.
    volume_up, volume_down: [] f32, what those cost, in numbers: an element of
      a sparse message is two, its index and its value.
    contributed: [N] i32, elements of each client that the server used.
    clients: a pytree of leading axis N, what `Sparsifier.split` needs beside
      the mask to tell each client's part.
  """

  mask: jax.Array
  aggregate: jax.Array
  k_up: jax.Array
  k_down: jax.Array
  volume_up: jax.Array
  volume_down: jax.Array
  contributed: jax.Array
  clients: PyTree


class Split(NamedTuple):
  """One client's accumulated gradient along a selection.

  Attributes:
    mask: [D] bool, what it sent and the server used (J_i in J).
    sent: [D] f32, `accumulated` on the mask, else 0.
    residual: [D] f32, `accumulated` off the mask, else 0.
  """

  mask: jax.Array
  sent: jax.Array
  residual: jax.Array


class Sparsifier(NamedTuple):
  """A way to pick what is sent.

  Attributes:
    init: (num_clients, dim) -> state.
    select: (key, accumulated [N, D] f32, weights [N] f32 summing to 1,
      k [] i32, state) -> (Selection, state). Pure, so a round may try another
      k beside the one it uses, under vmap, and drop the second state. With
      k = 0 nothing is sent, and clients of weight 0 send nothing.
    split: (accumulated [D], J [D], its part of `Selection.clients`) -> Split:
      ONE client's side, once it has the downlink. A step of its own, for a k
      that is only tried needs no arrays of [N, D].
  """

  init: Callable[[int, int], PyTree]
  select: Callable[..., tuple[Selection, PyTree]]
  split: Callable[..., Split]


class KProposal(NamedTuple):
  """Elements per message for the next round; both real numbers.

  Attributes:
    k: [] f32, k_m.
    k_probe: [] f32, k'_m < k_m; equal to k where the controller needs none.
  """

  k: jax.Array
  k_probe: jax.Array


class Observation(NamedTuple):
  """What a round shows of its cost; all [] f32.

  Attributes:
    k, k_probe: elements that each client sent, after rounding.
    time, time_probe: theta_m(k), theta_m(k'), in rounds of computation.
    loss_before, loss_after, loss_probe: one-sample losses at w(m-1), w(m)
      and w'(m), data-size-weighted means over clients.
  """

  k: jax.Array
  k_probe: jax.Array
  time: jax.Array
  time_probe: jax.Array
  loss_before: jax.Array
  loss_after: jax.Array
  loss_probe: jax.Array


class KController(NamedTuple):
  """A rule that picks k from round to round.

  Attributes:
    init: key -> (KProposal for round 1, state).
    update: (key, Observation, state) -> (KProposal for the next round, state).
    observes: whether the round must measure one-sample losses; without, update
      gets None for the Observation.
    probes: whether it must try k_probe too; without, the Observation's values
      of the probe are those of k.
  """

  init: Callable[[jax.Array], tuple[KProposal, PyTree]]
  update: Callable[..., tuple[KProposal, PyTree]]
  observes: bool
  probes: bool


@flax.struct.dataclass
class RoundState:
  """All that the next round needs; with the root key it resumes a run.

  Attributes:
    params: [D] f32, w(m).
    residual: [N, D] f32, accumulated and not yet sent.
    sparsifier: the sparsifier's state.
    server: the server optimiser's state.
    controller: the controller's state.
    proposal: k for the next round.
    round_index: [] i32, rounds done, m.
    elapsed: [] f32, normalised time; the unit is one round's computation.
    elapsed_rest: [] f32, what rounding left out of it, see `cost.add_time`.
  """

  params: jax.Array
  residual: jax.Array
  sparsifier: PyTree
  server: PyTree
  controller: PyTree
  proposal: KProposal
  round_index: jax.Array
  elapsed: jax.Array
  elapsed_rest: jax.Array


class RoundInfo(NamedTuple):
  """What a reader wants to know of a round; nothing reads it back.

  Attributes:
    round_index: [] i32, m, from 1.
    elapsed: [] f32, normalised time at the round's end.
    k, k_probe: [] f32, the controller's real numbers.
    k_up, k_down: [] i32, elements really sent each way.
    minibatch_loss: [] f32, data-size-weighted mean at w(m-1).
    sign: [] f32, the cost's estimated slope: -1, 0 or 1; NaN if none was had.
    contributed: [N] i32, elements of each client that the server used.
    finite: [] bool; False: a gradient was not finite and nothing was sent.
  """

  round_index: jax.Array
  elapsed: jax.Array
  k: jax.Array
  k_probe: jax.Array
  k_up: jax.Array
  k_down: jax.Array
  minibatch_loss: jax.Array
  sign: jax.Array
  contributed: jax.Array
  finite: jax.Array
