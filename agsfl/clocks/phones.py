"""Published quantiles of phones, and their inverse distribution functions.

Source: Zhang et al., "FLHetBench: Benchmarking Device and State Heterogeneity
in Federated Learning", CVPR 2024, from the data of its repository. Only the
quantiles are here.

What is assumed beyond them: between two quantiles the inverse is a straight
line. Below the first and above the last it is constant, as no more is
published; a share of time begins at 0.
"""

import numpy as np

_PERCENTS = np.array([5, 10, 25, 50, 75, 90, 95]) / 100

# Milliseconds of a training step of a ResNet, 978 records. The data do not name
# the batch. One image is assumed: a ResNet-50 takes about 25 * 10^9 operations
# for an image of 224 x 224, as many as a phone does in such a time.
_STEP = np.array([60, 69, 96, 172, 309, 476, 559])

# 10^6 bits a second of MobiPerf's TCP downloads, as sampled there. FLHetBench
# takes the same numbers for uploads, and so do we.
_LINK = np.array([4.7, 8, 21, 40, 72, 87, 93])

# The share of time in which a phone is idle, on WLAN and charging, 704 traces
# that were recorded by FLASH (Yang et al., WWW 2021).
_ON_PERCENTS = np.array([0, 25, 50, 75, 90, 95]) / 100
_ON = np.array([0, 1, 6, 13, 26, 33]) / 100


def step_to_median(uniform: np.ndarray) -> np.ndarray:
  """Seconds of a step, in units of their median; uniform [N] from 0 to 1."""
  return np.interp(uniform, _PERCENTS, _STEP) / _STEP[3]


def link_to_median(uniform: np.ndarray) -> np.ndarray:
  """Speeds of links, in units of their median; uniform [N] from 0 to 1."""
  return np.interp(uniform, _PERCENTS, _LINK) / _LINK[3]


def share_on(uniform: np.ndarray) -> np.ndarray:
  """The share of time in which a phone is on; uniform [N] from 0 to 1."""
  return np.interp(uniform, _ON_PERCENTS, _ON)
