"""The records that flow between the parts of a round; no logic."""

from typing import Any, NamedTuple, Protocol

import flax.struct
import jax

PyTree = Any


class ModelInit(Protocol):
  """Draws the initial weights."""

  def __call__(self, key: jax.Array, /) -> jax.Array:
    """Returns [D] f32."""


class Form(NamedTuple):
  """What a network sees of a sample, and what it must give for it.

  Attributes:
    feature_shape: of one sample; [H, W, C] for images, [T] for tokens.
    output_shape: (L,), or (T, L) where each of T tokens has a label.
    vocabulary: how many different tokens there are, if features are tokens,
      [T] whole numbers from 0; else None.
    is_whole: whether features are whole numbers, but no tokens.
  """

  feature_shape: tuple[int, ...]
  output_shape: tuple[int, ...]
  vocabulary: int | None = None
  is_whole: bool = False

  @property
  def dtype(self) -> str:
    """Of the features, "int32" or "float32"."""
    has_integers = self.is_whole or self.vocabulary is not None
    return "int32" if has_integers else "float32"


class ModelApply(Protocol):
  """Runs the network."""

  def __call__(
      self, params: jax.Array, features: jax.Array, /, *noise: Any
  ) -> jax.Array:
    """[D] f32 weights, [B, ...] features -> [B, *output_shape] f32.

    Only if `Model.needs_key`, training adds two arguments: a key and True.
    """


class Model(NamedTuple):
  """A network as two pure functions of a flat weight vector.

  Attributes:
    init: key -> [D] f32, the initial weights.
    apply: ([D] weights, [B, ...] features) -> [B, ...] f32 outputs, such as the
      logits [B, L] of classes.
    sizes: of each array of weights or biases, in the order of the vector.
    needs_key: whether training draws random numbers, as dropout does. Then
      training calls apply(params, features, key, True), and evaluation
      apply(params, features).
  """

  init: ModelInit
  apply: ModelApply
  sizes: tuple[int, ...]
  needs_key: bool = False

  @property
  def dim(self) -> int:
    """D, the number of weights."""
    return sum(self.sizes)


class Loss(Protocol):
  """The loss of each sample; training minimises its mean."""

  def __call__(self, outputs: jax.Array, labels: jax.Array, /) -> jax.Array:
    """[B, ...] f32 outputs of the network, [B, ...] labels -> [B] f32.

    Where labels are sequences of tokens, -1 is no label. The mean over a sample
    must then be over its labels, because evaluations weight it by their number.
    """


class Selection(NamedTuple):
  """What one round of sparsification decides.

  Attributes:
    mask: [D] bool, the downlink set J.
    aggregate: [D] f32, b_j: the data-size-weighted mean of what clients send.
    k_up: [] i32, elements that each client sends; if clients differ, the
      largest of these numbers, because the round waits for that client.
    k_down: [] i32, elements that the server sends: those of J where b is not 0;
      all of J if both sides know J, because then only values are sent.
    volume_up, volume_down: [] f32, numbers in these messages: an element of a
      sparse message is two numbers, its index and its value.
    contributed: [N] i32, elements of each client that the server used.
    clients: a pytree with a leading axis N: beside the mask, all that
      `Sparsifier.split` needs to know of each client.
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
  """One client's accumulated gradient, cut in two by a selection.

  Attributes:
    mask: [D] bool, what it sent and the server used (J_i and J).
    sent: [D] f32, `accumulated` on the mask, else 0.
    residual: [D] f32, `accumulated` off the mask, else 0.
  """

  mask: jax.Array
  sent: jax.Array
  residual: jax.Array


class SparsifierInit(Protocol):
  """The state before round 1."""

  def __call__(self, num_clients: int, dim: int, /) -> PyTree:
    """Returns a pytree of arrays."""


class Select(Protocol):
  """Decides what all clients send and what the server sends back."""

  def __call__(
      self,
      key: jax.Array,
      accumulated: jax.Array,
      weights: jax.Array,
      k: jax.Array,
      state: PyTree,
      /,
  ) -> tuple[Selection, PyTree]:
    """accumulated [N, D] f32, weights [N] f32 summing to 1, k [] i32."""


class SplitClient(Protocol):
  """ONE client's side of a selection, after the downlink."""

  def __call__(
      self, accumulated: jax.Array, mask: jax.Array, client: PyTree, /
  ) -> Split:
    """accumulated [D], J [D] bool, its part of `Selection.clients`."""


class Sparsifier(NamedTuple):
  """A method: which elements of the gradients are sent.

  Its arrays have all clients, even if these are spread over several devices. So
  a sum over clients is `jnp.sum(..., axis=0)`.

  Attributes:
    init: (num_clients, dim) -> state.
    select: (key, accumulated, weights, k, state) -> (Selection, state). It is
      pure, so a round can try k and k' under vmap and drop the state of k'.
      With k = 0 nothing is sent. Clients of weight 0 never send.
    split: (accumulated, mask, client) -> Split. It is apart from `select`
      because a k that is only tried needs no arrays of [N, D].
  """

  init: SparsifierInit
  select: Select
  split: SplitClient


class KProposal(NamedTuple):
  """Elements per message for the next round; both real numbers.

  Attributes:
    k: [] f32, k_m.
    k_probe: [] f32, k'_m < k_m; equal to k if the controller does not probe.
  """

  k: jax.Array
  k_probe: jax.Array


class Observation(NamedTuple):
  """What a round measures of its cost; all [] f32, NaN if not measured.

  Attributes:
    k, k_probe: elements that each client sent, after rounding.
    time, time_probe: theta_m(k), theta_m(k'), in rounds of computation; with a
      clock in seconds, the seconds of a synchronous round.
    loss: one-sample loss at w(m-1), the data-size-weighted mean over clients;
      this and the falls are for controllers that observe.
    fall, fall_probe: by how much this loss is less at w(m) and at w'(m).
    time_silent: theta_m(0), the time of the round without any message.
    elapsed: time of the run after this round, in the same unit.
    lag: rounds by which the weights are behind, see `backlog.lag`; -1 if
      nothing was sent. It is for controllers that measure it.
  """

  k: jax.Array
  k_probe: jax.Array
  time: jax.Array
  time_probe: jax.Array
  loss: jax.Array
  fall: jax.Array
  fall_probe: jax.Array
  time_silent: jax.Array
  elapsed: jax.Array
  lag: jax.Array


class ControllerInit(Protocol):
  """Proposes k for round 1."""

  def __call__(self, key: jax.Array, /) -> tuple[KProposal, PyTree]:
    """Returns k for round 1, and the state."""


class ControllerUpdate(Protocol):
  """Proposes k for the next round."""

  def __call__(
      self, key: jax.Array, observed: Observation | None, state: PyTree, /
  ) -> tuple[KProposal, PyTree]:
    """Returns k for the next round, and the state."""


class KController(NamedTuple):
  """A rule that picks k from round to round.

  Numbers that change from run to run, such as the first k, belong in its state.
  Then runs that differ only in these numbers share a compiled program.

  Attributes:
    init: key -> (KProposal for round 1, state).
    update: (key, Observation, state) -> (KProposal for the next round, state).
    observes: whether the round must measure one-sample losses. This takes the
      time of one sample of each client.
    probes: whether the round must also try k_probe. If not, the Observation's
      values of the probe are those of k.
    measures_lag: whether the round must measure `Observation.lag`, from numbers
      that clients have anyway. This takes no simulated time.
  """

  init: ControllerInit
  update: ControllerUpdate
  observes: bool
  probes: bool
  measures_lag: bool = False

  @property
  def needs_observation(self) -> bool:
    """Whether `update` gets an Observation; else it gets None."""
    return self.observes or self.measures_lag


class Flights(NamedTuple):
  """Clients that work while the server goes on: asynchronous rounds.

  Attributes:
    began: [n] i32, after how many rounds each took the weights that it trains.
    left: [n] f32, seconds from now until its message arrives.
    trust: [n] f32, factor of its weight, less than 1 if it is stale; 0 if its
      weights are older than all that are stored.
    behind: [n] f32, numbers that it needed before it began, see
      `synced.missed`.
  """

  began: jax.Array
  left: jax.Array
  trust: jax.Array
  behind: jax.Array


class Cohort(NamedTuple):
  """The clients that take part in a round, in n places.

  Attributes:
    clients: [n] i32, their numbers, ascending; a place with a number >= N is
      empty.
    weights: [n] i32, what a client counts in the mean, before the division by
      the sum; in the paper C_i.
    flights: of clients that began in earlier rounds; None if all of them begin
      in this one.
  """

  clients: jax.Array
  weights: jax.Array
  flights: Flights | None = None


@flax.struct.dataclass
class RoundState:
  """All that the next round needs, beside the data.

  A part that the settings do not need is (), which has no arrays.

  Attributes:
    key: [] the root key of every draw; it never changes.
    learning_rate: [] f32, eta of the clients' steps.
    comm_time: [] f32, beta.
    params: [D] f32, w(m).
    residual: [N, D] f32, accumulated and not yet sent; () if clients keep none.
    sparsifier: the sparsifier's state.
    server: the server optimiser's state, its learning rate in it.
    controller: the controller's state.
    proposal: k for the next round.
    round_index: [] i32, rounds done, m.
    elapsed: [] f32, normalised time; the unit is one round's computation.
    elapsed_rest: [] f32, what `elapsed` lost by rounding, see `cost.add_time`.
    feedback: what clients without a residual, or with one that decays, need;
      see `feedback.Feedback`.
    seconds: the simulated time, (seconds [] f32, what they lost by rounding).
    attendance: what the choice of the next cohort needs.
  """

  key: jax.Array
  learning_rate: jax.Array
  comm_time: jax.Array
  params: jax.Array
  residual: PyTree
  sparsifier: PyTree
  server: PyTree
  controller: PyTree
  proposal: KProposal
  round_index: jax.Array
  elapsed: jax.Array
  elapsed_rest: jax.Array
  feedback: PyTree = ()
  seconds: PyTree = ()
  attendance: PyTree = ()


class Timing(NamedTuple):
  """The simulated seconds of a round.

  Attributes:
    seconds: [] f32, at the round's end, since the start of the run.
    duration: [] f32, seconds of the round.
    late: [] i32, clients that the deadline left out.
    slowest: [] i32, the number of the client that the round waited for; -1 if
      there is none.
    cause: [] i32, what took it most of its time, a place in `clocks.CAUSES`.
  """

  seconds: jax.Array
  duration: jax.Array
  late: jax.Array
  slowest: jax.Array
  cause: jax.Array


class RoundInfo(NamedTuple):
  """What a reader wants to know of a round; no later round uses it.

  Attributes:
    round_index: [] i32, m, from 1.
    elapsed: [] f32, normalised time at the round's end.
    k, k_probe: [] f32, the controller's real numbers.
    k_up, k_down: [] i32, elements really sent each way.
    volume_up, volume_down: [] f32, numbers in a client's message and in the
      server's.
    minibatch_loss: [] f32, data-size-weighted mean at w(m-1).
    sign: [] f32, of the cost's estimated slope: -1, 0 or 1.
    has_sign: [] bool, whether there was an estimate. If not, sign is 0.
    contributed: [n] i32, elements of each client that the server used.
    finite: [] bool, whether all gradients were finite. If not, nothing is sent.
    metrics: [] each by name, the user's own numbers; see `build_round`.
    clients: [n] i32, the numbers of the clients that took part; a place with a
      number >= N is empty. None if all N take part in order.
    behind: [] f32, numbers that the client needed first that had missed most of
      the server's messages, see `synced.missed`; None where all take part.
    all_up, all_down: [] f32, numbers in the messages of all clients of the
      round, and to all of them; None where all take part with messages of one
      size, since these are then N times the volumes.
    heard: [] i32, clients whose message the server had in time; None if all
      clients are always heard.
    lost: [] i32, clients that dropped out; None as `heard`.
    timing: of the simulated seconds; None without a clock in seconds.
  """

  round_index: jax.Array
  elapsed: jax.Array
  k: jax.Array
  k_probe: jax.Array
  k_up: jax.Array
  k_down: jax.Array
  volume_up: jax.Array
  volume_down: jax.Array
  minibatch_loss: jax.Array
  sign: jax.Array
  has_sign: jax.Array
  contributed: jax.Array
  finite: jax.Array
  metrics: dict[str, jax.Array]
  clients: jax.Array | None = None
  behind: jax.Array | None = None
  all_up: jax.Array | None = None
  all_down: jax.Array | None = None
  heard: jax.Array | None = None
  lost: jax.Array | None = None
  timing: Timing | None = None
