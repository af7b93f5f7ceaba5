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
# Efficient Federated Learning" (ICDCS 2020) in about two minutes on two CPU
# cores. What is small here, and what to raise:
#
# | here | the paper | to raise |
# |---|---|---|
# | a network of D = 101,770 | a CNN of D > 400,000 | `model="cnn"` |
# | 5,000 digits | FEMNIST, CIFAR-10 | `dataset` |
# | 10 clients, one digit each | 156 writers, 100 clients | `partition` |
# | 200 units of time, 200 rounds | many more | `TIME`, `ROUNDS` |
# | one seed | | `seed` |
#
# So look only at the shape of the curves. One seed on ten clients cannot rank
# two lines that lie close to each other.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # Keeps the jax that is here, which fits this machine's GPU or TPU.
  # !pip freeze | grep -i ^jax > /tmp/jax.txt
  # %pip install -q -c /tmp/jax.txt git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %%
import tempfile

import jax
import matplotlib.pyplot as plt
import numpy as np

import agsfl

TIME = 200  # normalised time of each run that compares losses
ROUNDS = 200  # of each run that compares communication times
COMMON = {
    "dataset": "mnist_5k",
    "partition": "one_class",
    "model": "mlp",
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


def series(run, key):
  """Rounds, times and values of one key, for the rows that have it."""
  rows = [row for row in run.rows if key in row]
  return np.array([(row["round"], row["time"], row[key]) for row in rows]).T


def draw_k(axes, run, label):
  """k_m as a thin line, the geometric mean of 21 rounds as a thick one."""
  rounds, _, ks = series(run, "k")
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
  _, times, losses = series(run, "train_loss")
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
    title="Training loss, k = 1000, $\\beta$ = 10",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
)
share.set(
    title="Fairness: what the server used of each client",
    xlabel="elements contributed by a client, whole run",
    ylabel="share of clients (CDF)",
    xscale="log",
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
  _, times, losses = series(run, "train_loss")
  loss.plot(times, losses, marker=".", label=controller)
  draw_k(elements, run, controller)
loss.set(
    title="Training loss, $\\beta$ = 10",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
)
elements.set(
    title="k in the rounds of this time; thick: mean of 21 rounds",
    xlabel="round m",
    ylabel="elements per message, $k_m$",
    yscale="log",
)
finish(figure, loss, elements)

# %% [markdown]
# EXP3 has one arm for each of about a hundred thousand k, and in so short a
# time it plays at random. Most of its rounds are expensive, so it has few
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
  _, times, losses = series(run, "train_loss")
  (line,) = loss.plot(times, losses, marker=".", ms=4, label=label)
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
    title="Training loss",
    xlabel=TIME_LABEL,
    ylabel="cross entropy",
    xscale="log",
)
elements.set(
    title="k; thick: mean of 21 rounds",
    xlabel="round m",
    ylabel="elements per message, $k_m$",
    yscale="log",
)
settled.set(
    title="k of the second half: median, 10% to 90%",
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
# goes up. In so few rounds k does not settle. With `ROUNDS = 800` the medians
# are further apart.
