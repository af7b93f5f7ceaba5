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
# # agsfl: the paper's figures, small
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/agsfl/agsfl/blob/main/colab/paper_figures.ipynb)
#
# The comparisons of Han, Wang, Leung, "Adaptive Gradient Sparsification for
# Efficient Federated Learning" (ICDCS 2020), small. On a GPU they have the
# paper's network and more rounds. In Colab choose one under Runtime, Change
# runtime type.
#
# | | two CPU cores | a GPU, such as Colab's T4 | to raise |
# |---|---|---|---|
# | network | MLP, D = 101,770 | CNN, D = 430,698 | `MODEL` |
# | time of a run, first two figures | 200 | 500 | `TIME` |
# | rounds of a run, last figure | 200 | 300 | `ROUNDS` |
# | minutes | 2 | 6, estimated | |
#
# The minutes on a GPU are estimated from figures of an NVIDIA H200, not
# measured on a T4: at most 5,000 rounds of 30 ms each, 650 local steps of
# FedAvg of 10 ms each, and 200 s to compile eleven programs. The last cell
# prints how long it took.
#
# Both have 5,000 digits, 10 clients with one digit each, and one seed. The
# paper has FEMNIST with 156 writers and CIFAR-10 with 100 clients, and runs
# that are many times as long.
#
# Look only at the shape of the curves. One seed on ten clients cannot rank two
# lines that lie close to each other.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # Keeps the jax that is here, which fits this machine's GPU or TPU.
  # !pip list --format=freeze | grep -i ^jax > /tmp/jax.txt
  # %pip install -q -c /tmp/jax.txt git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %%
import tempfile
import time
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import agsfl

START = time.perf_counter()
ON_CPU = jax.default_backend() == "cpu"
MODEL = "mlp" if ON_CPU else "cnn"
TIME = 200 if ON_CPU else 500  # of each run that compares losses
ROUNDS = 200 if ON_CPU else 300  # of each run that compares communication times
COMMON: dict[str, Any] = {
    "dataset": "mnist_5k",
    "partition": "one_class",
    "model": MODEL,
    "learning_rate": 0.05,
    "eval_every": 10,
    "seed": 0,
}

# Runs with the same program compile it only once.
jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp())
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
data = agsfl.load("mnist_5k", agsfl.Config(**COMMON))


def simulate(**settings):
  """Does one run and prints its results."""
  run = agsfl.simulate(agsfl.Config(**COMMON | settings), data=data)
  print("{round:5d} rounds, time {time:6.1f}, training loss {train_loss:.3f}, "
        "test accuracy {test_accuracy:.3f}".format(**run.summary))
  return run


def draw_k(axes, run, label):
  """k_m as a thin line, the geometric mean of 21 rounds as a thick one."""
  rounds, ks = run.series("k", "round")
  around = [np.log(ks[max(0, m - 10) : m + 11]) for m in range(len(ks))]
  means = np.exp([np.mean(logs) for logs in around])
  (line,) = axes.plot(rounds, means, lw=2, label=label)
  axes.plot(rounds, ks, lw=0.6, alpha=0.4, color=line.get_color())


def finish(figure, *all_axes):
  """Grids, one legend for all, and the figure."""
  for axes in all_axes:
    axes.grid(alpha=0.3)
  handles = all_axes[0].get_legend_handles_labels()
  figure.legend(*handles, loc="outside right center")
  plt.show()


TIME_LABEL = "normalised time (rounds of computation)"

# %% [markdown]
# ## Methods at the same k
#
# Every method gets the same time. A sparse round of k elements is short. A
# dense round is long: it costs 1 for computation and `comm_time` = 10 for
# sending. FedAvg does D / 2k local steps between two exchanges. So it sends as
# much per step as the others.

# %%
METHODS = (
    "fab_top_k",
    "fub_top_k",
    "unidirectional_top_k",
    "periodic_k",
    "send_all",
    "fedavg",
)
by_method = {}
for method in METHODS:
  print(f"{method:21}", end="")
  by_method[method] = simulate(
      method=method,
      controller="fixed",
      k=1000,
      comm_time=10,
      num_rounds=TIME,  # no round is shorter than 1
      time_budget=TIME,
      # The dense methods' rounds are few and long: each is evaluated.
      eval_every=1 if method in ("send_all", "fedavg") else 5,
  )

# %%
figure, (loss, share) = plt.subplots(
    1, 2, figsize=(13, 4.5), layout="constrained"
)
for method, run in by_method.items():
  times, losses = run.series("train_loss")
  style = "--" if method == "fub_top_k" else "-"  # it lies on FAB's
  loss.plot(times, losses, style, marker=".", ms=4, label=method)
  counts = np.sort(run.clients["contributed"])
  share.step(
      np.append(counts[0], counts),
      np.arange(len(counts) + 1) / len(counts),
      style,
      where="post",
      label=method,
  )
loss.set(
    title="Training loss of each method, k = 1000, $\\beta$ = 10",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
    xlim=0,
    ylim=0,
)
share.set(
    title="Fairness: elements that the server used of each client",
    xlabel="elements of a client in the whole run",
    ylabel="share of clients with at most so many",
    xscale="log",
    ylim=(0, 1.02),
)
finish(figure, loss, share)

# %% [markdown]
# In the right figure, a vertical line means that all clients contribute the
# same. FAB guarantees each of the N clients k / N elements in every round. FUB
# takes the largest elements of the sum, from any client. If its line is not
# vertical, clients with small gradients contribute less. The unidirectional
# method sends back all that any client sent, up to N k elements. So its rounds
# teach more and take longer.

# %% [markdown]
# ## Controllers
#
# All begin at k = 10,000 and may go anywhere from 0.002 D to D. `sign_interval`
# is the paper's Algorithm 3. Add `"sign"`, its Algorithm 2, if you like.

# %%
CONTROLLERS = ("sign_interval", "value", "exp3", "bandit")
by_controller = {}
for controller in CONTROLLERS:
  print(f"{controller:14}", end="")
  by_controller[controller] = simulate(
      controller=controller,
      k=10_000,
      comm_time=10,
      num_rounds=TIME,
      time_budget=TIME,
      eval_every=4,
  )

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(13, 4.5), layout="constrained"
)
for controller, run in by_controller.items():
  times, losses = run.series("train_loss")
  loss.plot(times, losses, marker=".", label=controller)
  draw_k(elements, run, controller)
loss.set(
    title="Training loss of each controller, $\\beta$ = 10",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
    xlim=0,
    ylim=0,
)
elements.set(
    title="k of each controller; thick: mean of 21 rounds",
    xlabel="round m",
    xlim=0,
    ylabel="elements per message, $k_m$",
    yscale="log",
)
finish(figure, loss, elements)

# %% [markdown]
# EXP3 has an arm for each k from 0.002 D to D, and in so short a time it plays
# at random. Most of its rounds are expensive, so it has few
# rounds. Descent by value moves with the size of the slope. The slope is
# small, so k stays near its start.

# %% [markdown]
# ## Communication times
#
# `sign_interval` learns k at three costs of sending, from low to high, with the
# same number of rounds.

# %%
COMM_TIMES = (1, 10, 100)
by_comm_time = {}
for comm_time in COMM_TIMES:
  print(f"comm_time {comm_time:3}", end="")
  by_comm_time[comm_time] = simulate(
      k=10_000, comm_time=comm_time, num_rounds=ROUNDS
  )

# %%
figure, (loss, elements, settled) = plt.subplots(
    1, 3, figsize=(16, 4.5), layout="constrained"
)
for comm_time, run in by_comm_time.items():
  label = f"$\\beta$ = {comm_time}"
  times, losses = run.series("train_loss")
  # A logarithmic axis has no 0, where the first weights are.
  (line,) = loss.plot(times[1:], losses[1:], marker=".", ms=4, label=label)
  draw_k(elements, run, label)
  ks = [row["k"] for row in run.rows[ROUNDS // 2 :]]
  low, middle, high = np.percentile(ks, (10, 50, 90))
  settled.errorbar(
      comm_time,
      middle,
      yerr=[[middle - low], [high - middle]],
      fmt="o",
      capsize=4,
      color=line.get_color(),
  )
loss.set(
    title="Training loss by communication time $\\beta$",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
    xscale="log",
    ylim=0,
)
elements.set(
    title="Learned k; thick: mean of 21 rounds",
    xlabel="round m",
    xlim=0,
    ylabel="elements per message, $k_m$",
    yscale="log",
)
settled.set(
    title="k in the second half: median, 10% to 90%",
    xlabel="communication time $\\beta$",
    ylabel="elements per message",
    xscale="log",
    yscale="log",
)
settled.set_xticks(COMM_TIMES, map(str, COMM_TIMES))
settled.minorticks_off()
finish(figure, loss, elements, settled)

# %% [markdown]
# If sending costs more, fewer elements are worth it: k goes down as $\beta$
# goes up. In so few rounds k does not settle. With the MLP and `ROUNDS = 800`
# the medians are further apart.

# %%
minutes = (time.perf_counter() - START) / 60
print(f"{minutes:.1f} minutes on {jax.devices()[0].device_kind}, {MODEL}")
