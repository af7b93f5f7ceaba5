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
# # agsfl: a first run
#
# [![Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/agsfl/agsfl/blob/main/colab/quickstart.ipynb)
#
# Ten clients hold one digit each and train one network together. In every
# round each of them sends only the k largest entries of its accumulated
# gradient, and k is learned while training goes on (FAB-top-k and Algorithm 3
# of Han, Wang, Leung, ICDCS 2020). Half a minute on two CPU cores.

# %%
import importlib.util

if importlib.util.find_spec("agsfl") is None:
  # Keeps the jax that is here, which fits this machine's GPU or TPU.
  # !pip list --format=freeze | grep -i ^jax > /tmp/jax.txt
  # %pip install -q -c /tmp/jax.txt git+https://github.com/agsfl/agsfl
  print("agsfl is installed")

# %%
import matplotlib.pyplot as plt
import numpy as np

import agsfl

ROUNDS = 150  # more rounds: a lower loss, and a k that settles

# %% [markdown]
# ## The settings
#
# All other settings have their defaults: 5,000 MNIST digits, ten clients of
# one class each, FAB-top-k, and `sign_interval` as the controller of k.
# `model="mlp"` is a small network of D = 101,770 weights. The paper's network
# is `model="cnn"`; with it a round takes several times as long. `comm_time` is
# the time to send all D weights up and down. Its unit is the time to compute
# one round's gradients.

# %%
config = agsfl.Config(
    model="mlp",
    k=10_000,  # where k begins
    comm_time=10,
    learning_rate=0.05,
    num_rounds=ROUNDS,
    eval_every=10,
)


# %% [markdown]
# ## The run
#
# The first round compiles the program, which takes most of the time here.
# `on_row` gets each row when its round is done. Round 0 is the evaluation of
# the first weights, so its row has no k.


# %%
def show(row):
  if "test_accuracy" in row and "k" in row:
    print("{round:5d} {time:8.1f} {k:8.0f} {train_loss:11.4f} "
          "{test_loss:10.4f} {test_accuracy:9.3f}".format(**row))


print("round     time        k  train loss  test loss  accuracy")
run = agsfl.simulate(config, on_row=show)

# %% [markdown]
# A run has `rows`, a dict per round; `clients`, columns with an entry per
# client; `summary`; and `params`, the final weights.
# `agsfl.simulate(config, workdir=FOLDER)` also writes them to files. If it was
# stopped, the same call goes on.

# %%
figure, (loss, elements) = plt.subplots(
    1, 2, figsize=(11, 4), layout="constrained"
)
for key in ("train_loss", "test_loss"):
  times, values = run.series(key)
  loss.plot(times, values, marker=".", label=key.replace("_", " "))
loss.set(
    title="Loss over all training and all test samples",
    xlabel="normalised time (rounds of computation)",
    ylabel="cross entropy",
    xlim=0,
    ylim=0,
)
rounds, ks = run.series("k", "round")
around = [np.log(ks[max(0, m - 10) : m + 11]) for m in range(len(ks))]
means = np.exp([np.mean(logs) for logs in around])
(line,) = elements.plot(rounds, ks, lw=0.8, alpha=0.5, label="$k_m$")
elements.plot(
    rounds,
    means,
    lw=2,
    color=line.get_color(),
    label="geometric mean of 21 rounds",
)
elements.set(
    title=f"Learned k, at most D = {len(run.params):,}",
    xlabel="round m",
    xlim=0,
    ylabel="elements per message",
    yscale="log",
)
for axes in (loss, elements):
  axes.grid(alpha=0.3)
  axes.legend()
plt.show()

# %% [markdown]
# k goes up or down by the sign of the estimated slope of the cost. The first
# steps are long; later steps are shorter. Every client contributes, although
# they have different digits:

# %%
for name, accuracy, count in zip(
    run.clients["client"],
    run.clients["test_accuracy"],
    run.clients["contributed"],
    strict=True,
):
  print(f"client {name}: {accuracy:4.0%} of its test digits right, "
        f"{count:,} elements contributed")

# %% [markdown]
# ## From here
#
# - `paper_figures`: methods, controllers and communication times compared.
# - `your_own`: a sparsifier and a controller of your own.
# - `accelerators`: many runs in one program, and clients split over devices.
#
# `python -m experiments.run --helpshort` explains all settings.
