"""Phones as published measurements show them, by quantiles alone.

Source: Zhang et al., "FLHetBench: Benchmarking Device and State Heterogeneity
in Federated Learning", CVPR 2024: quantiles of the data in its repository.

Between two quantiles the inverse of the distribution function is assumed to be
a straight line. Below the first and above the last quantile it is assumed to be
constant, so no client is faster or slower than these. A share of time begins at
0.
"""

import numpy as np

_PERCENTS = np.array([5, 10, 25, 50, 75, 90, 95]) / 100

# Milliseconds of a training step of a ResNet: 978 records, from AI-Benchmark
# and from FLHetBench itself. The data name neither the batch nor the size of
# images. Assumed: a step has one image, and takes as long in the simulation.
_STEP = np.array([60, 69, 96, 172, 309, 476, 559])

# 10^6 bits a second of TCP downloads: 44 records of MobiPerf from 2018, mostly
# WLAN, as FLHetBench samples them in its case 4. It takes the same records for
# uploads; so a client's uplink is assumed to be as fast as its downlink.
_LINK = np.array([4.7, 8, 21, 40, 72, 87, 93])

# The share of time in which a phone is locked, on WLAN and charging: 704 traces
# of FLASH (Yang et al., WWW 2021).
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
