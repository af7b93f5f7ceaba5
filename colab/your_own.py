# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # agsfl: your own sparsifier, your own controller
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/agsfl/agsfl/blob/main/colab/your_own.ipynb)
#
# A sparsifier is three pure functions, `(init, select, split)`; a controller is
# two, `(init, update)`. `agsfl.build_round` composes any of them with any
# network. Here are one of each that the package does not have, checked and run.
# A minute on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # %pip install -q git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %%
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import agsfl
from agsfl.over_clients import CLIENT_CHUNK

ROUNDS = 120

# %% [markdown]
# ## A sparsifier whose k is an output
#
# Top-k fixes how much is sent, whatever there is to say. Turn it round: each
# client sends the entries that stand out, those above some times the root mean
# square of its own accumulated gradient. How many that are is up to the
# gradient, so a client with much to say says more.
#
# - `init(num_clients, dim)` is its state; it has none.
# - `select(key, accumulated, weights, k, state)` decides, with `accumulated`
#   [N, D] and `weights` [N] = C_i / C. It may ignore the k asked for, with one
#   exception: k = 0 means that nothing may be sent. A client of weight 0 sends
#   nothing either.
# - `split(accumulated, mask, own)` is one client's side of it, [D]: what was
#   sent, and what stays. `own` is its row of `Selection.clients`, here its
#   threshold.


# %%
def above_rms(factor):
  """Each client sends its entries above `factor` times its own RMS."""

  def init(num_clients, dim):
    return ()

  def select(key, accumulated, weights, k, state):
    rms = jnp.sqrt(jnp.mean(accumulated**2, axis=1))
    cut = jnp.where((weights > 0) & (k > 0), factor * rms, jnp.inf)
    used = jnp.abs(accumulated) > cut[:, None]
    counts, mask = jnp.sum(used, axis=1), jnp.any(used, axis=0)
    k_up, k_down = jnp.max(counts), jnp.sum(mask)  # the longest message
    volumes = 2.0 * k_up, 2.0 * k_down  # an index and a value per element
    sent = jnp.where(used, accumulated, 0.0)
    mean = jnp.sum(weights[:, None] * sent, axis=0)
    return agsfl.Selection(
        mask, mean, k_up, k_down, *volumes, contributed=counts, clients=cut
    ), state

  def split(accumulated, mask, cut):
    used = mask & (jnp.abs(accumulated) > cut)
    sent = jnp.where(used, accumulated, 0.0)
    return agsfl.Split(used, sent, jnp.where(used, 0.0, accumulated))

  return agsfl.Sparsifier(init, select, split)


# %% [markdown]
# ## Does it keep its promises?
#
# These hold for every sparsifier, so the same check takes the package's own:
# nothing is lost (sent + residual == accumulated, bit for bit), the server
# gets the weighted mean of what was sent, and those who must be silent are.


# %%
@functools.partial(jax.jit, static_argnums=0)
def tried(sparsifier, accumulated, weights, k):
  """One selection, and every client's side of it."""
  state = sparsifier.init(*accumulated.shape)
  selection, _ = sparsifier.select(
      jax.random.key(0), accumulated, weights, k, state
  )
  split = jax.vmap(sparsifier.split, in_axes=(0, None, 0))
  return selection, split(accumulated, selection.mask, selection.clients)


def check(sparsifier):
  """Conservation, the aggregate, the counts and silence."""
  key = jax.random.key(1)
  # Heavy tails, as gradients have; the last client has no samples.
  accumulated = jax.random.t(key, 2.0, (5, 2000), jnp.float32)
  weights = jnp.array([0.1, 0.2, 0.3, 0.4, 0.0])
  selection, clients = tried(sparsifier, accumulated, weights, jnp.int32(50))
  np.testing.assert_array_equal(
      clients.sent + clients.residual, accumulated
  )
  mean = jnp.sum(weights[:, None] * clients.sent, axis=0)
  np.testing.assert_allclose(selection.aggregate, mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(clients.mask.sum(axis=1), selection.contributed)
  assert selection.k_down == selection.mask.sum()
  assert not clients.sent[-1].any()
  _, silent = tried(sparsifier, accumulated, weights, jnp.int32(0))
  assert not silent.sent.any()
  return selection.contributed.tolist()


print("above_rms:", check(above_rms(3.0)), "elements by client")
print("fab_top_k:", check(agsfl.fab_top_k()), "elements by client")

# %% [markdown]
# ## It runs
#
# `agsfl.build` gives the network and an evaluation for any settings, and
# `agsfl.build_round` puts a simulation of your parts together: `init` and
# `step`, two pure functions, to be jitted, scanned or vmapped.

# %%
config = agsfl.Config(model="mlp", controller="fixed", num_devices=1)
data = agsfl.load(config.dataset, config.as_partition())
built = agsfl.build(config, data)
clients = jax.device_put(data.clients)
CHUNK = CLIENT_CHUNK.get(jax.default_backend())  # clients at a time


def run(sparsifier, controller):
  """RoundInfo of all rounds, and (time, training loss) now and then."""
  simulated = agsfl.build_round(
      built.model,
      sparsifier,
      controller,
      server=optax.sgd(0.05),
      batch_size=32,
      comm_time=10.0,
      client_chunk=CHUNK,
  )
  key = jax.random.key(0)
  state = simulated.init(key, len(data.clients.counts))
  step = jax.jit(simulated.step)
  infos, losses = [], []
  for done in range(1, ROUNDS + 1):
    state, info = step(key, clients, state)
    infos.append(jax.device_get(info))
    if done % 10 == 0:
      losses.append((info.elapsed, built.evaluate(state.params).train_loss))
  stacked = jax.tree.map(lambda *x: np.stack(x), *infos)
  return stacked, np.array(losses).T


# %%
fab = agsfl.fab_top_k(client_chunk=CHUNK)
of_sparsifier = {
    "above_rms, 4 times": run(above_rms(4.0), agsfl.fixed(1)),
    "fab_top_k, k = 1000": run(fab, agsfl.fixed(1000)),
}

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(12, 4), layout="constrained"
)
for label, (infos, losses) in of_sparsifier.items():
  loss.plot(*losses, marker=".", label=label)
  mean = infos.contributed.mean(axis=1)
  (line,) = elements.plot(infos.round_index, mean, label=f"{label}: mean")
  elements.fill_between(
      infos.round_index,
      infos.contributed.min(axis=1),
      infos.contributed.max(axis=1),
      color=line.get_color(),
      alpha=0.2,
      label="least to most of a client",
  )
loss.set(
    title="Training loss, $\\beta$ = 10",
    xlabel="normalised time (rounds of computation)",
    ylabel="cross entropy",
)
elements.set(
    title="What the server used of each client",
    xlabel="round m",
    ylabel="elements",
    yscale="log",
    ylim=(10, 20_000),
)
for axes in (loss, elements):
  axes.grid(alpha=0.3)
  axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# No k was asked for: at first many entries stand out, later few, and clients
# differ. Try other factors than 4.
#
# ## A controller
#
# The package's rules take steps of B / sqrt(2 m), whatever they find. Rprop
# (Riedmiller and Braun, 1993) does not settle its steps beforehand: they grow
# while the sign stays and shrink when it turns. With factors in the place of
# differences, for what matters of k is its order of magnitude, that is a
# controller.
#
# - `init(key)` gives a `KProposal` for the first round, and the state.
#   `k_probe` is tried beside k in each round, and never used.
# - `update(key, observed, state)` gives the next. `agsfl.cost_slope` has the
#   sign of the slope of the cost in k; 0 where the losses told nothing.


# %%
class Steps(NamedTuple):
  """k, the logarithm of the factor by which it moves, and the last sign."""

  k: jax.Array
  step: jax.Array
  sign: jax.Array


def rprop(k_init, k_min, k_max):
  """k moves by a factor that grows while the sign stays."""
  propose = lambda k: agsfl.KProposal(k, jnp.maximum(0.7 * k, 1.0))

  def init(key):
    state = Steps(jnp.float32(k_init), jnp.float32(0.2), jnp.float32(0.0))
    return propose(state.k), state

  def update(key, observed, state):
    sign = agsfl.cost_slope(observed).sign
    agree = sign * state.sign  # 1: as before, -1: it turned, 0: unknown
    change = jnp.where(agree > 0, 1.2, jnp.where(agree < 0, 0.5, 1.0))
    step = jnp.clip(state.step * change, 0.02, 0.7)
    k = jnp.clip(state.k * jnp.exp(-sign * step), k_min, k_max)
    return propose(k), Steps(k, step, jnp.where(sign == 0, state.sign, sign))

  return agsfl.KController(init, update, observes=True, probes=True)


# %%
K_MIN, K_MAX = config.k_interval(built.model.dim)
of_controller = {
    "rprop": run(fab, rprop(10_000, K_MIN, K_MAX)),
    "sign_interval": run(fab, agsfl.sign_interval(10_000, K_MIN, K_MAX)),
}

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(12, 4), layout="constrained"
)
for label, (infos, losses) in of_controller.items():
  loss.plot(*losses, marker=".", label=label)
  elements.plot(infos.round_index, infos.k, label=label)
loss.set(
    title="Training loss, $\\beta$ = 10",
    xlabel="normalised time (rounds of computation)",
    ylabel="cross entropy",
)
elements.set(
    title="k of both controllers",
    xlabel="round m",
    ylabel="elements per message, $k_m$",
    yscale="log",
)
for axes in (loss, elements):
  axes.grid(alpha=0.3)
  axes.legend()
plt.show()

# %% [markdown]
# One seed and few rounds: this shows that the parts work, not which is better.
#
# For a sparsifier of the package, take `axes` too, the mesh axes over which
# clients may be split, and sum over them with `jax.lax.psum`; one line in
# `sparsifiers.METHODS` then gives it a name for `agsfl.Config`.
