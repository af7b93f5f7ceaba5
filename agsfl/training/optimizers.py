"""Optimisers of clients and server, by name."""

import functools

import optax

# Momentum as most papers of the field have it; Adam with the epsilon that
# Reddi et al., "Adaptive Federated Optimization", ICLR 2021, use for FedAdam.
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": functools.partial(optax.adam, b2=0.99, eps=1e-3),
}
