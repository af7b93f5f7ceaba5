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
# # agsfl: your own network, data, method and controller
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/agsfl/agsfl/blob/main/colab/your_own.ipynb)
#
# Your own objects can replace the parts that settings name:
# `agsfl.simulate(config, model=..., data=..., sparsifier=..., controller=...)`.
# This notebook has one of each. It takes two minutes on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # Keeps the jax that is here, which fits this machine's GPU or TPU.
  # !pip list --format=freeze | grep -i ^jax > /tmp/jax.txt
  # %pip install -q -c /tmp/jax.txt git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %%
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import agsfl

ROUNDS = 120
CONFIG = agsfl.Config(
    model="mlp",
    controller="fixed",
    k=1000,
    learning_rate=0.05,
    num_rounds=ROUNDS,
    eval_every=10,
)


def against_time(axes, run, key, label):
  """Draws a column of a run's rows."""
  axes.plot(*run.series(key), label=label)


# %% [markdown]
# ## A network and data of your own
#
# A network is anything with `init(key, features)` and
# `apply(params, features)`. A Flax module has both; for other libraries write
# the two functions. Data are arrays: `x` [C, ...] of any shape, and `y` [C],
# labels from 0. `clients` [C] has the client of each sample; without it a
# `Partition` gives samples to clients. Here is a table of 20 columns and 12
# clients. Each client measures with its own offset.


# %%
class Network(nn.Module):
  """Two hidden layers with normalisation."""

  @nn.compact
  def __call__(self, x):
    for width in (64, 32):
      x = nn.relu(nn.LayerNorm()(nn.Dense(width)(x)))
    return nn.Dense(4)(x)


rng = np.random.default_rng(0)
labels = rng.integers(0, 4, 3000)
owners = rng.integers(0, 12, 3000)
centres, offsets = rng.normal(size=(4, 20)), rng.normal(size=(12, 20))
table = centres[labels] + 0.5 * offsets[owners] + rng.normal(size=(3000, 20))

data = agsfl.from_arrays(table, labels, clients=owners)
settings = agsfl.Config(k="5%", controller="fixed", num_rounds=60,
                        learning_rate=0.1, eval_every=20)
run = agsfl.simulate(settings, model=Network(), data=data)
for row in run.evaluated:
  print("round {round}: test accuracy {test_accuracy:.3f}".format(**row))

# %% [markdown]
# ## A method whose k is an output
#
# Top-k sends a fixed number of entries. Here each client sends its large
# entries instead: those above some multiple of the root mean square of its own
# accumulated gradient. Their number depends on the gradient, so some clients
# send more than others.
#
# `agsfl.from_masks` makes a whole sparsifier from one function. The function
# gets `accumulated` [N, D], the accumulated gradients of all clients;
# `weights` [N], C_i / C; and k. It returns a mask [N, D], True where a client
# sends, and the state. Two rules hold for every method: with k = 0 nothing is
# sent, and a client of weight 0 sends nothing. What is not sent stays in the
# client's residual.


# %%
def above_rms(factor):
  """Each client sends its entries above `factor` times its own RMS."""

  def pick(key, accumulated, weights, k, state):
    rms = jnp.sqrt(jnp.mean(accumulated**2, axis=1))
    sends = (weights > 0) & (k > 0)
    used = jnp.abs(accumulated) > factor * rms[:, None]
    return used & sends[:, None], state

  return agsfl.from_masks(pick)


# %% [markdown]
# A sparsifier is three pure functions, `(init, select, split)`. Write them
# yourself for messages of another kind; `agsfl.types` documents them. Three
# laws hold for the sparsifiers here. Nothing is lost: sent + residual ==
# accumulated, bit for bit. The server gets the weighted mean of what was sent.
# With k = 0, or with weight 0, a client sends nothing.


# %%
def check(sparsifier):
  """Conservation, the aggregate, the counts and silence."""
  key = jax.random.key(1)
  # Heavy tails, as gradients have; the last client has no samples.
  accumulated = jax.random.t(key, 2.0, (5, 2000), jnp.float32)
  weights = jnp.array([0.1, 0.2, 0.3, 0.4, 0.0])

  @jax.jit
  def tried(k):
    state = sparsifier.init(*accumulated.shape)
    selection, _ = sparsifier.select(key, accumulated, weights, k, state)
    split = jax.vmap(sparsifier.split, in_axes=(0, None, 0))
    return selection, split(accumulated, selection.mask, selection.clients)

  selection, clients = tried(jnp.int32(50))
  np.testing.assert_array_equal(clients.sent + clients.residual, accumulated)
  mean = jnp.sum(weights[:, None] * clients.sent, axis=0)
  np.testing.assert_allclose(selection.aggregate, mean, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(clients.mask.sum(axis=1), selection.contributed)
  assert selection.k_down == jnp.count_nonzero(selection.aggregate)
  assert not clients.sent[-1].any()
  _, silent = tried(jnp.int32(0))
  assert not silent.sent.any()
  return selection.contributed.tolist()


print("above_rms:", check(above_rms(3.0)), "elements by client")
print("fab_top_k:", check(agsfl.fab_top_k()), "elements by client")

# %% [markdown]
# The method runs on one device or on several, because its arrays contain all
# clients. `metrics` adds your own numbers to each row.


# %%
def most_of_a_client(state, info):
  """Elements that the server used of the client with the most."""
  return jnp.max(info.contributed)


def least_of_a_client(state, info):
  """Elements that the server used of the client with the fewest."""
  return jnp.min(info.contributed)


METRICS = {"most": most_of_a_client, "least": least_of_a_client}
of_sparsifier = {
    "above_rms, 4 times": agsfl.simulate(
        CONFIG, sparsifier=above_rms(4.0), metrics=METRICS
    ),
    "fab_top_k, k = 1000": agsfl.simulate(CONFIG, metrics=METRICS),
}

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(12, 4), layout="constrained"
)
for label, run in of_sparsifier.items():
  against_time(loss, run, "train_loss", label)
  rounds, most = run.series("most", "round")
  _, least = run.series("least", "round")
  elements.fill_between(rounds, least, most, alpha=0.5, label=label)
loss.set(
    title="Training loss of both methods, $\\beta$ = 10",
    xlabel="normalised time (rounds of computation)",
    ylabel="cross entropy",
    xlim=0,
    ylim=0,
)
elements.set(
    title="Elements that the server used of a client: least to most",
    xlabel="round m",
    xlim=0,
    ylabel="elements",
    yscale="log",
    ylim=(10, 5_000),
)
for axes in (loss, elements):
  axes.grid(alpha=0.3)
  axes.legend(fontsize=9)
plt.show()

# %% [markdown]
# This method has no k. At first many entries are large, later few, and clients
# differ. Try other factors than 4.
#
# ## A controller
#
# The step lengths of the paper's sign descent, B / sqrt(2 m), do not depend on
# what it observes. Rprop (Riedmiller and Braun, 1993) adapts its steps: they
# grow while the sign is the same, and shrink when it changes. Here k is
# multiplied by a factor, because its order of magnitude matters.
#
# - `init(key)` returns a `KProposal` for the first round, and the state. Each
#   round also tries `k_probe`, but trains with k.
# - `update(key, observed, state)` returns the next proposal and state.
#   `agsfl.cost_slope` has the sign of the slope of the cost in k, or 0 if the
#   losses gave no estimate.


# %%
class Steps(NamedTuple):
  """k, the logarithm of the factor by which it moves, and the last sign."""

  k: jax.Array
  step: jax.Array
  sign: jax.Array


def rprop(k_init, k_min, k_max):
  """k moves by a factor that grows while the sign is the same."""
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


# %% [markdown]
# With a name you can use it like the package's own controllers: in `Config`,
# and in the flags of every command if one of your modules registers it:
# `--plugins=my_module --controller=rprop`.


# %%
@agsfl.register_controller("rprop")
def build_rprop(k, k_min, k_max, settings):
  """The controller that `Config(controller="rprop")` names."""
  return rprop(k, k_min, k_max)


def learned(controller):
  """A run whose k is learned from 10,000 on."""
  return agsfl.simulate(
      agsfl.Config(
          model="mlp", controller=controller, k=10_000, learning_rate=0.05,
          num_rounds=ROUNDS, eval_every=10,
      )
  )


of_controller = {name: learned(name) for name in ("rprop", "sign_interval")}

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(12, 4), layout="constrained"
)
for label, run in of_controller.items():
  against_time(loss, run, "train_loss", label)
  elements.plot(*run.series("k", "round"), label=label)
loss.set(
    title="Training loss of both controllers, $\\beta$ = 10",
    xlabel="normalised time (rounds of computation)",
    ylabel="cross entropy",
    xlim=0,
    ylim=0,
)
elements.set(
    title="k of both controllers",
    xlabel="round m",
    xlim=0,
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
# `agsfl.register_model`, `register_method`, `register_partition` and
# `register_source` give names to other parts.
