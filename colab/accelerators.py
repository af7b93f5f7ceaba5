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
# program, many simulations in one program. This notebook times each of them on
# its machine. It also runs on a CPU, in a minute. There the gains are small, or
# even losses.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # Keeps the jax that is here, which fits this machine's GPU or TPU.
  # !pip list --format=freeze | grep -i ^jax > /tmp/jax.txt
  # %pip install -q -c /tmp/jax.txt git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %% [markdown]
# JAX sees a CPU as one device. The number of CPU devices must be set before JAX
# starts. This line does not matter for GPUs and TPUs.

# %%
import os
import statistics
import time
from typing import Any

import jax

jax.config.update("jax_num_cpu_devices", max(2, os.cpu_count() or 1))

import matplotlib.pyplot as plt
import numpy as np

import agsfl
from agsfl import sweeps

ROUNDS = 30  # of each run

PLATFORM, DEVICES = jax.default_backend(), jax.device_count()
print(f"{DEVICES} x {jax.devices()[0].device_kind} ({PLATFORM}), "
      f"{os.cpu_count()} CPU cores, jax {jax.__version__}")

# %% [markdown]
# If this prints cpu in a runtime with a GPU, JAX and its plugin have different
# versions. Then run `%pip install -q -U "jax[cuda12]"` (TPU: `"jax[tpu]"`) and
# restart the runtime.
#
# ## Clients split over devices, and rounds in one program
#
# `num_devices` is how many devices share the clients. Each device has the
# residuals of its clients and computes their gradients. `rounds_per_call` is
# how many rounds run before the program returns to Python. Both change the
# time of a run. They change its numbers only by the order of sums.

# %%
BASE: dict[str, Any] = {
    "model": "mlp",
    "partition": "dirichlet",
    "num_clients": 32,
    "controller": "fixed",
    "k": 1000,
    "learning_rate": 0.05,
    "num_rounds": ROUNDS,
    "eval_every": ROUNDS,
}
SETTINGS: tuple[dict[str, Any], ...] = (
    {"num_devices": 1, "rounds_per_call": 1},
    {"num_devices": 1, "rounds_per_call": 10},
    {"num_devices": DEVICES, "rounds_per_call": 10},
)

data = agsfl.load("mnist_5k", agsfl.Config(**BASE))
print("devices  rounds per call  ms per round  whole run, s  training loss")
for setting in SETTINGS:
  start = time.perf_counter()
  run = agsfl.simulate(agsfl.Config(**BASE, **setting), data=data)
  whole = time.perf_counter() - start
  print(f"{setting['num_devices']:7}  {setting['rounds_per_call']:15}  "
        f"{1e3 * run.summary['median_round_seconds']:12.2f}  {whole:12.1f}  "
        f"{run.summary['train_loss']:13.6f}")

# %% [markdown]
# The time of a round is the median over the run. The time of the whole run
# contains the compilation, which is most of a short run. Virtual devices of a
# CPU share its cores, and one device already uses all of them. Other processes
# on the machine disturb all of these times.
#
# ## Simulations side by side
#
# Runs whose settings differ only in plain numbers (such as seed, learning
# rate, k and `comm_time`) share one program. Their states get a leading axis,
# and the step of one run becomes the step of all of them. A GPU or TPU uses
# `jax.vmap`. On a CPU the runs go one after another within the program, which
# is faster there. `python -m experiments.sweep --lanes=8` does the same, with
# records on disk.

# %%
RATES, SEEDS = (0.02, 0.05, 0.1), (0, 1)
CONFIGS = [
    agsfl.Config(
        model="mlp", controller="fixed", k=1000, learning_rate=rate, seed=seed,
        num_rounds=ROUNDS, eval_every=ROUNDS, num_devices=1, rounds_per_call=1,
    )
    for rate in RATES
    for seed in SEEDS
]
data = agsfl.load("mnist_5k")  # ten clients, one digit each
side_by_side = sweeps.build_lanes(CONFIGS, [data] * len(CONFIGS))
alone = [agsfl.build(config, data) for config in CONFIGS]

# %% [markdown]
# The other way is to call the program of one run for one run after another.
# Both ways are timed in turn, round by round. The first round of each
# compiles.

# %%
state, states = side_by_side.state, [one.state for one in alone]
infos, seconds = [], {"side by side": [], "one after another": []}
for _ in range(ROUNDS):
  start = time.perf_counter()
  state, lanes = jax.block_until_ready(side_by_side.advance(state, 1))
  middle = time.perf_counter()
  states = [
      one.advance(own, 1)[0] for one, own in zip(alone, states, strict=True)
  ]
  jax.block_until_ready(states)
  seconds["side by side"].append(middle - start)
  seconds["one after another"].append(time.perf_counter() - middle)
  infos.append([lane[0] for lane in lanes])

medians = {}
for name, taken in seconds.items():
  medians[name] = statistics.median(taken[1:])
  low, high = np.percentile(taken[1:], (10, 90))
  print(f"{len(CONFIGS)} runs {name}: {taken[0]:.1f} s to compile, then "
        f"{1e3 * medians[name]:.1f} ms per round "
        f"(10% to 90%: {1e3 * low:.1f} to {1e3 * high:.1f})")
ratio = medians["one after another"] / medians["side by side"]
print(f"side by side is {ratio:.2f} times as fast")
gap = max(
    np.abs(side_by_side.lane(state, i).params - own.params).max()
    for i, own in enumerate(states)
)
print(f"a weight differs from that of the run alone by {gap:.1e} at most")

# %%
times = np.array([[info.elapsed for info in row] for row in infos])
losses = np.array([[info.minibatch_loss for info in row] for row in infos])
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for rate in RATES:
  here = [i for i, one in enumerate(CONFIGS) if one.learning_rate == rate]
  x, y = times[:, here[0]], losses[:, here]
  (line,) = axes.plot(x, y.mean(axis=1), label=f"$\\eta$ = {rate}")
  axes.fill_between(
      x, y.min(axis=1), y.max(axis=1), color=line.get_color(), alpha=0.2
  )
axes.set(
    title=f"Loss of {len(CONFIGS)} runs in one program: mean and range of "
    f"{len(SEEDS)} seeds",
    xlabel="normalised time (rounds of computation)",
    ylabel="loss of the clients' minibatches",
    xlim=0,
    ylim=0,
)
axes.grid(alpha=0.3)
axes.legend()
plt.show()
