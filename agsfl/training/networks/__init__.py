"""The networks that come with the package, as Flax modules."""

from agsfl.training.networks.cnns import CNN, SmallCNN
from agsfl.training.networks.resnets import ResNet9, ResNet18
from agsfl.training.networks.sequences import LSTM, Transformer
from agsfl.training.networks.simple import MLP, Logistic

__all__ = [
    "CNN", "LSTM", "MLP", "Logistic", "ResNet9", "ResNet18", "SmallCNN",
    "Transformer",
]
