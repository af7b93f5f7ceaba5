"""The methods, as (init, select, split): which gradient elements are sent.

"Differences from the authors' code" in experiments/paper/README.md lists how
that code differs.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from agsfl import platforms
from agsfl.registry import Registry
from agsfl.sparsifiers import accelerator, cpu, topk
from agsfl.sparsifiers.choice import (
  INDICES_KNOWN,
  SPARSE,
  Choice,
  Choose,
  check_arguments,
  common,
  for_one_k,
  selection,
  split,
  weighted_sum,
)
from agsfl.types import PyTree, Sparsifier, SparsifierInit


def _stateless(num_clients, dim):
  del num_clients, dim
  return ()


def _fastest(name):
  """The choice by this name that is fast on the platform in use."""

  def choose(accumulated, weights, ks):
    wing = platforms.fastest(on_cpu=cpu, on_accelerator=accelerator)
    return getattr(wing, name)(accumulated, weights, ks)

  return choose


def _top_k(choose):
  """A method without state, whose choices are sent as sparse messages."""
  choose_one = for_one_k(choose)

  def select(key, accumulated, weights, k, state):
    del key
    check_arguments(accumulated, weights, k)
    k = jnp.minimum(k, accumulated.shape[1])
    choice = choose_one(accumulated, weights, k)
    return selection(choice, k, SPARSE), state

  return Sparsifier(_stateless, select, split)


def fab_top_k(choose: Choose | None = None) -> Sparsifier:
  """Fairness-aware bidirectional top-k.

  J takes every client's kappa largest entries, with kappa as large as k
  allows, then the largest of the (kappa+1)-th entries. So |J| = k, and every
  client contributes at least floor(k / N) elements. Zeros count as entries. Of
  equal magnitudes the lower index comes first. k is clipped to D. A client of
  weight 0 sends nothing.

  Args:
    choose: how J is found; `plain.fab` says it as the paper does. None for
      the way that is fast on this platform.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FAB-top-k.
  """
  return _top_k(choose or _fastest("fab"))


def fub_top_k(choose: Choose | None = None) -> Sparsifier:
  """Fairness-unaware bidirectional top-k, flat: J is the k largest |b_j|.

  A client whose entries are small may contribute nothing, round after round.

  Args:
    choose: how J is found; `plain.fub` says it as the paper does. None for
      the way that is fast on this platform.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, FUB-top-k.
  """
  return _top_k(choose or _fastest("fub"))


def fub_top_k_tree(choose: Choose | None = None) -> Sparsifier:
  """FUB-top-k by pairwise merges, each cut to its k largest (gTop-k).

  What a merge drops goes back to the residuals of the clients below it. So no
  gradient is lost.

  Args:
    choose: how J is found; `plain.fub_tree` says it as the paper does. None for
      the way that is fast on this platform.

  Returns:
    A sparsifier without state.

  Source: Shi et al., "A Distributed Synchronous SGD Algorithm with Global
  Top-k Sparsification for Low Bandwidth Networks", ICDCS 2019; as FUB-top-k in
  Han, Wang, Leung, ICDCS 2020.
  """
  return _top_k(choose or _fastest("fub_tree"))


def unidirectional_top_k(choose: Choose | None = None) -> Sparsifier:
  """Top-k on the uplink only: J is all that any client sent, up to N k.

  Args:
    choose: how J is found; `plain.unidirectional` says it as the paper does.
      None for the way that is fast on this platform.

  Returns:
    A sparsifier without state.

  Source: Han, Wang, Leung, ICDCS 2020, unidirectional top-k.
  """
  return _top_k(choose or _fastest("unidirectional"))


class PeriodState(NamedTuple):
  """State of `periodic_k`.

  Attributes:
    left: [D] bool, what the current period has not sent yet; never empty.
  """

  left: jax.Array


def periodic_k() -> Sparsifier:
  """k random coordinates, the same for all clients; each once in a period.

  Every round sends exactly k different coordinates, drawn from those that the
  period has left. If fewer than k are left, all of them are sent; the others of
  this round are drawn from the rest and begin the next period. So each period
  sends each coordinate once. All know the seed of the indices, so an element is
  one number, its value.

  Returns:
    A sparsifier.

  Source: Han, Wang, Leung, ICDCS 2020, periodic-k.
  """

  def init(num_clients, dim):
    del num_clients
    return PeriodState(jnp.ones(dim, bool))

  def select(key, accumulated, weights, k, state):
    check_arguments(accumulated, weights, k)
    dim = accumulated.shape[1]
    k = jnp.minimum(k, dim)
    # First what the period has left, then the rest, each in random order.
    order = (jax.random.bits(key, dim, jnp.uint32) >> 2).astype(jnp.int32)
    order += state.left.astype(jnp.int32) << 30
    mask = topk.at_or_above(
        order, topk.nth_largest(order, topk.count(order), k)
    )
    # If nothing is left, the next period has begun with the rest.
    left = state.left & ~mask
    left = jnp.where(jnp.any(left), left, ~(mask & ~state.left))
    choice = common(accumulated, weights, mask)
    return selection(choice, k, INDICES_KNOWN), PeriodState(left)

  return Sparsifier(init, select, split)


def send_all() -> Sparsifier:
  """All D elements for every k > 0; none for k = 0.

  Returns:
    A sparsifier without state, whose residuals stay zero.

  Source: Han, Wang, Leung, ICDCS 2020, send-all.
  """

  def select(key, accumulated, weights, k, state):
    del key
    check_arguments(accumulated, weights, k)
    dim = accumulated.shape[1]
    choice = common(accumulated, weights, jnp.broadcast_to(k > 0, dim))
    k_up = jnp.where(k > 0, jnp.int32(dim), 0)
    return selection(choice, k_up, INDICES_KNOWN), state

  return Sparsifier(_stateless, select, split)


class Pick(Protocol):
  """Picks the entries that each client sends."""

  def __call__(
      self,
      key: jax.Array,
      accumulated: jax.Array,
      weights: jax.Array,
      k: jax.Array,
      state: PyTree,
      /,
  ) -> tuple[jax.Array, PyTree]:
    """Picks.

    Args:
      key: of the round's draws; the same for k and for the k that is tried.
      accumulated: [N, D] f32, a_i of all clients.
      weights: [N] f32, C_i / C. Clients of weight 0 send nothing, even if
        entries are picked for them. A state that depends on what was sent must
        leave these clients out.
      k: [] i32, 0..D.
      state: from the last round.

    Returns:
      [N, D] bool, all J_i; and the new state.
    """


def from_masks(pick: Pick, init: SparsifierInit = _stateless) -> Sparsifier:
  """A method of your own, from one function.

  Each client sends its picked entries as they are. The server sends their
  weighted sum back. The rest stays at the clients. Clients of weight 0 send
  nothing, and with k = 0 nobody does, whatever is picked.

      def largest(key, accumulated, weights, k, state):
        ranks = jnp.argsort(jnp.argsort(-jnp.abs(accumulated)))
        return ranks < k, state

      mine = from_masks(largest)

  Args:
    pick: see `Pick`. Its arrays have all clients, even over several devices.
    init: its state before round 1; by default it has no state.

  Returns:
    A sparsifier. Each element of its messages is an index and a value.
  """

  def select(key, accumulated, weights, k, state):
    check_arguments(accumulated, weights, k)
    k = jnp.minimum(k, accumulated.shape[1])
    picked, state = pick(key, accumulated, weights, k, state)
    used = picked & (weights > 0)[:, None] & (k > 0)
    contributed = jnp.sum(used, axis=1, dtype=jnp.int32)
    choice = Choice(
        mask=jnp.any(used, axis=0),
        clients=used,
        aggregate=weighted_sum(jnp.where(used, accumulated, 0.0), weights),
        contributed=contributed,
    )
    # The round waits for the client that sends most.
    return selection(choice, jnp.max(contributed), SPARSE), state

  return Sparsifier(init, select, split)


class Method(NamedTuple):
  """An entry of `METHODS`.

  Attributes:
    build: () -> Sparsifier.
    takes_k: whether k decides what is sent, so that it can be learned.
    numbers_per_element: of a message: 2, an index and a value; or 1, only the
      value, if both sides know the indices.
    sends_models: whether clients take many local steps between two messages,
      so that the average traffic is that of k sparse elements: FedAvg.
    k_by_client: whether k may differ between clients; its mean is then the
      size of J.
  """

  build: Callable[[], Sparsifier]
  takes_k: bool = True
  numbers_per_element: int = SPARSE
  sends_models: bool = False
  k_by_client: bool = False

  @property
  def sends_all(self) -> bool:
    """Whether clients send all D elements, so that none is left."""
    return self.build is send_all


METHODS = Registry(
    "method",
    {
        "fab_top_k": Method(fab_top_k, k_by_client=True),
        "fub_top_k": Method(fub_top_k, k_by_client=True),
        "fub_top_k_tree": Method(fub_top_k_tree),
        "unidirectional_top_k": Method(unidirectional_top_k),
        "periodic_k": Method(periodic_k, numbers_per_element=INDICES_KNOWN),
        "send_all": Method(
            send_all, takes_k=False, numbers_per_element=INDICES_KNOWN
        ),
        # Whole models after tau local steps: McMahan et al., AISTATS 2017.
        "fedavg": Method(
            send_all,
            takes_k=False,
            numbers_per_element=INDICES_KNOWN,
            sends_models=True,
        ),
    },
)


def register_method(
    name: str, *, takes_k: bool = True, numbers_per_element: int = SPARSE
) -> Callable[[Callable[[], Sparsifier]], Callable[[], Sparsifier]]:
  """Makes a method known by name, in `Config` and in the flags of all commands.

      @register_method("mine")
      def mine():
        return from_masks(pick)

  Args:
    name: letters, digits and underscores.
    takes_k: see `Method`.
    numbers_per_element: see `Method`.

  Returns:
    A decorator of a function () -> Sparsifier.

  Raises:
    ConfigError: the name has other characters, or is one of the package's.
  """

  def register(build):
    METHODS.add(name, Method(build, takes_k, numbers_per_element))
    return build

  return register
