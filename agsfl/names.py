"""The names that settings accept, as types, so that editors know them.

A name of the first group that is not in its list is refused by type checkers.
The second group has the package's own names. Users register more or name files,
so the settings take any other text too, and editors only offer these names.
"""

from typing import Literal

AugmentationName = Literal["none", "flip", "crop_flip"]
IndexCoding = Literal["raw", "bitmask", "golomb", "entropy"]
# JAX's names for the three precisions of accelerators.
MatmulPrecision = Literal["default", "high", "highest"]
OptimizerName = Literal["sgd", "momentum", "adam"]
SamplingName = Literal["uniform", "by_size", "round_robin"]
ScheduleName = Literal["constant", "cosine", "linear", "step"]
StoreName = Literal["device", "host", "file"]
TaskName = Literal["classification", "next_token", "regression"]
ValueBits = Literal[16, 32]

# Of a figure's x axis: columns of a run's rows, and bytes of all messages.
AxisName = Literal["round", "time", "seconds", "bytes"]
AvailabilityName = Literal["phones"]
ClockName = Literal["constant", "phones"]
ControllerName = Literal[
    "fixed",
    "replay",
    "sign",
    "sign_log",
    "sign_interval",
    "value",
    "exp3",
    "bandit",
    "balance",
]
# Of the sources that need no place after a colon.
DatasetName = Literal["mnist_5k", "digits", "topics", "femnist"]
MethodName = Literal[
    "fab_top_k",
    "fub_top_k",
    "fub_top_k_tree",
    "unidirectional_top_k",
    "periodic_k",
    "send_all",
    "fedavg",
]
ModelName = Literal[
    "cnn",
    "cnn_small",
    "cnn_small_dropout",
    "resnet9",
    "resnet18_gn",
    "mlp",
    "logistic",
    "lstm",
    "transformer",
]
PartitionName = Literal[
    "one_class",
    "iid",
    "natural",
    "shards",
    "dirichlet",
    "dirichlet_split",
    "quantity_dirichlet",
    "quantity_power_law",
]
