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
# # agsfl: GPUs, TPUs and several devices
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/agsfl/agsfl/blob/main/colab/accelerators.ipynb)
#
# Three ways to use hardware: clients split over devices, many rounds in one
# program, many simulations in one program. Each is timed here, on whatever
# this notebook runs on. It runs on a CPU too, in a minute; there the gains are
# small, and may be losses.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # %pip install -q git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %% [markdown]
# A CPU is one device to JAX unless told otherwise, and it must be told before
# JAX starts. GPUs and TPUs are found without this line, and do not mind it.

# %%
import os
import statistics
import time

import jax

jax.config.update("jax_num_cpu_devices", max(2, os.cpu_count()))

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import agsfl
from agsfl.over_clients import CLIENT_CHUNK, LANE_CHUNK

ROUNDS = 30  # of each run

PLATFORM, DEVICES = jax.default_backend(), jax.device_count()
print(f"{DEVICES} x {jax.devices()[0].device_kind} ({PLATFORM}), "
      f"{os.cpu_count()} CPU cores, jax {jax.__version__}")

# %% [markdown]
# If that says cpu in a runtime with a GPU, JAX and its plugin differ in
# version: run `%pip install -q -U "jax[cuda12]"` (TPU: `"jax[tpu]"`) and
# restart the runtime.
#
# ## Clients split over devices, and rounds in one program
#
# `num_devices` is how many devices share the clients; each holds its clients'
# residuals and computes their gradients. `rounds_per_call` is how many rounds
# run before the program returns to Python. Both change the time a run takes,
# and its numbers only by the order of sums.

# %%
BASE = {
    "model": "mlp",
    "partition": "dirichlet",
    "num_clients": 32,
    "controller": "fixed",
    "k": 1000,
    "learning_rate": 0.05,
    "num_rounds": ROUNDS,
    "eval_every": ROUNDS,
}
SETTINGS = (
    {"num_devices": 1, "rounds_per_call": 1},
    {"num_devices": 1, "rounds_per_call": 10},
    {"num_devices": DEVICES, "rounds_per_call": 10},
)

data = agsfl.load("mnist_5k", agsfl.Config(**BASE).as_partition())
print("devices  rounds per call  ms per round  whole run, s  training loss")
for setting in SETTINGS:
  start = time.perf_counter()
  run = agsfl.simulate(agsfl.Config(**BASE, **setting), data=data)
  whole = time.perf_counter() - start
  print(f"{setting['num_devices']:7}  {setting['rounds_per_call']:15}  "
        f"{1e3 * run.summary['median_round_seconds']:12.2f}  {whole:12.1f}  "
        f"{run.summary['train_loss']:13.6f}")

# %% [markdown]
# The time of a round is the median over the run. The whole run has the
# compilation in it, which is most of so short a one. Virtual devices of a CPU
# share its cores, on which one device already works in parallel; and other
# processes on the machine disturb all of this.
#
# ## Simulations side by side
#
# `agsfl.build_sweep` makes one program of many simulations, its lanes. Seeds,
# the learning rate and `comm_time` may differ from lane to lane; what decides
# a shape may not. On a GPU or TPU the lanes are vmapped. On a CPU they go one
# after another within the program, which is faster there than a vmap.
# `LANE_CHUNK` and `CLIENT_CHUNK` are what was measured for the platform; where
# nothing is, all go at once.

# %%
RATES, SEEDS = (0.02, 0.05, 0.1), (0, 1)
LANES = [(rate, seed) for rate in RATES for seed in SEEDS]
settings = {"learning_rate": jnp.array([rate for rate, _ in LANES])}
keys = jax.vmap(jax.random.key)(jnp.array([seed for _, seed in LANES]))

ten = agsfl.Config(model="mlp")  # ten clients, one digit each
data = agsfl.load(ten.dataset, ten.as_partition())
clients = jax.device_put(data.clients)
num_clients = len(data.clients.counts)
model = agsfl.models.build("mlp", data.clients.images.shape[1:], 10)


def build_lane(setting):
  """A lane's round; its learning rate is a traced number."""
  chunk = CLIENT_CHUNK.get(PLATFORM)
  return agsfl.build_round(
      model,
      agsfl.fab_top_k(client_chunk=chunk),
      agsfl.fixed(1000),
      server=optax.sgd(setting["learning_rate"]),
      batch_size=32,
      comm_time=10.0,
      client_chunk=chunk,
  )


def compiled(name, function, *arguments):
  """Compiles, and says how long that took."""
  start = time.perf_counter()
  program = jax.jit(function).lower(*arguments).compile()
  print(f"{name}: {time.perf_counter() - start:.1f} s to compile")
  return program


# %% [markdown]
# The other way is one program of one lane, called for one lane after another.
# Both are compiled once, and timed in turn, round by round.

# %%
sweep = agsfl.build_sweep(build_lane, LANE_CHUNK.get(PLATFORM))
states = sweep.init(keys, settings, num_clients)
together = compiled(
    f"{len(LANES)} lanes", sweep.step, keys, settings, clients, states
)


def one_lane(key, setting, clients, state):
  return build_lane(setting).step(key, clients, state)


def lane(tree, i):
  return jax.tree.map(lambda x: x[i], tree)


apart = [
    (keys[i], lane(settings, i), clients, lane(states, i))
    for i in range(len(LANES))
]
alone = compiled("1 lane", one_lane, *apart[0])

# %%
infos, seconds = [], {"together": [], "one after another": []}
for _ in range(ROUNDS):
  start = time.perf_counter()
  states, info = jax.block_until_ready(
      together(keys, settings, clients, states)
  )
  middle = time.perf_counter()
  apart = jax.block_until_ready(
      [(*others, alone(*others, state)[0]) for *others, state in apart]
  )
  seconds["together"].append(middle - start)
  seconds["one after another"].append(time.perf_counter() - middle)
  infos.append(jax.device_get(info))

medians = {name: statistics.median(s) for name, s in seconds.items()}
for name, median in medians.items():
  low, high = np.percentile(seconds[name], (10, 90))
  print(f"{len(LANES)} lanes {name}: {1e3 * median:.1f} ms per round "
        f"(10% to 90%: {1e3 * low:.1f} to {1e3 * high:.1f})")
ratio = medians["one after another"] / medians["together"]
print(f"together is {ratio:.2f} times as fast")
gap = max(
    jnp.max(jnp.abs(states.params[i] - state.params))
    for i, (*_, state) in enumerate(apart)
)
print(f"a weight differs from that of the lane alone by {gap:.1e} at most")

# %%
infos = jax.tree.map(lambda *x: np.stack(x, axis=1), *infos)  # [lanes, rounds]
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for rate in RATES:
  here = [i for i, (one, _) in enumerate(LANES) if one == rate]
  losses, times = infos.minibatch_loss[here], infos.elapsed[here[0]]
  (line,) = axes.plot(times, losses.mean(axis=0), label=f"$\\eta$ = {rate}")
  axes.fill_between(
      times,
      losses.min(axis=0),
      losses.max(axis=0),
      color=line.get_color(),
      alpha=0.2,
  )
axes.set(
    title=f"{len(LANES)} runs in one program: mean and range of {len(SEEDS)} "
    "seeds",
    xlabel="normalised time (rounds of computation)",
    ylabel="loss of the clients' minibatches",
)
axes.grid(alpha=0.3)
axes.legend()
plt.show()

# %% [markdown]
# `agsfl.devices.split_sweep` splits the clients of a sweep over devices as
# well: build the lanes with `axes=(agsfl.devices.AXIS,)`, in `build_round` and
# in the sparsifier.
