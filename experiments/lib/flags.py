"""The flags of a run, defined on import, and the Config made of them."""

import dataclasses

from absl import flags

from agsfl import config as settings
from agsfl.data.partitions import PARTITIONS

_HELP = {
    "dataset": "mnist_5k (5,000 real digits, no download), digits (1,797 small "
    "ones), npz:PATH (keys images, labels, is_train and client), leaf:DIR "
    "(LEAF's folder of train and test), femnist (that, once prepared) or "
    "tfds:NAME (TensorFlow Datasets).",
    "partition": "How samples go to clients; natural takes the data's own "
    "client ids.",
    "num_clients": "N. Default: 10; where one_class has more classes, one for "
    "each; with natural, every client of the data.",
    "min_samples": "Training samples of each client at least.",
    "shards_per_client": "Shards of each client, of shards.",
    "dirichlet_alpha": "Concentration of the Dirichlet draws; small is skewed.",
    "power": "How fast sizes fall, of quantity_power_law.",
    "standardize": "Bring each image to mean 0 and deviation 1.",
    "model": "Network.",
    "method": "What is sent.",
    "per_layer": "Method on each array of weights by itself.",
    "controller": "How k moves from round to round. Default: "
    "sign_interval, or fixed where the method has no k.",
    "k": "Elements per message; its first value where k is learned.",
    "k_min": "Least k where it is learned. Default: 0.002 D.",
    "k_max": "Largest k where it is learned. Default: D.",
    "stuck_rounds": "Rounds in a row without a sign after which sign and "
    "sign_interval raise k by one step. Default: never.",
    "exp3_arms": "Values of k that exp3 plays. Default: every integer.",
    "bandit_radius": "How far bandit explores, in halves of the interval. "
    "Default: num_rounds^(-1/4).",
    "bandit_step": "How far bandit moves. Default: num_rounds^(-3/4).",
    "replay": "Folder of a run whose k is played again.",
    "comm_time": "Time to send all D weights up and down; 1 is the computation "
    "of one round (beta).",
    "learning_rate": "Step of clients, and of the server by default (eta).",
    "local_steps": "Steps of each client per round (tau). Default: 1; with "
    "fedavg ceil(D / 2k).",
    "local_optimizer": "Optimiser of the clients.",
    "server_optimizer": "What applies the aggregate.",
    "server_learning_rate": "Its step. Default: learning_rate.",
    "batch_size": "Samples per minibatch.",
    "num_rounds": "Rounds at most.",
    "time_budget": "Normalised time after which no round begins.",
    "eval_every": "Rounds between evaluations.",
    "client_chunk": "Clients computed at once. Default: measured, by platform.",
    "rounds_per_call": "Rounds that one call runs as one program. Default: "
    "measured, by platform.",
    "num_devices": "Devices that share the clients; on CPU, cores. Default: "
    "all.",
    "seed": "Seed of every random draw.",
}

_CHOICES = {
    "partition": tuple(PARTITIONS),
    "model": tuple(settings.MODELS),
    "method": settings.METHODS,
    "controller": settings.CONTROLLERS,
    "local_optimizer": tuple(settings.OPTIMIZERS),
    "server_optimizer": tuple(settings.OPTIMIZERS),
}


_MAKERS = {
    str: flags.DEFINE_string,
    str | None: flags.DEFINE_string,
    bool: flags.DEFINE_boolean,
    int: flags.DEFINE_integer,
    int | None: flags.DEFINE_integer,
    float: flags.DEFINE_float,
    float | None: flags.DEFINE_float,
}


for _field in dataclasses.fields(settings.Config):
  _name = _field.name
  if _name in _CHOICES:
    flags.DEFINE_enum(
        _name, _field.default, list(_CHOICES[_name]), _HELP[_name]
    )
  else:
    _MAKERS[_field.type](_name, _field.default, _HELP[_name])


def config_from_flags() -> settings.Config:
  """The Config that the command line asks for.

  Raises:
    ConfigError: a value is out of range.
  """
  return settings.Config(**{name: flags.FLAGS[name].value for name in _HELP})
