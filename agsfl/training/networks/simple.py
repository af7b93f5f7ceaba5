"""Networks of one or two dense layers."""

import flax.linen as nn

from agsfl.training.networks import inputs


class Logistic(nn.Module):
  """Multinomial logistic regression, for features of any shape.

  D = (F + 1) L for F numbers in a sample.
  """

  num_classes: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.num_classes)(inputs.numbers(x))


class MLP(nn.Module):
  """One hidden layer of 128, for features of any shape; small and quick."""

  num_classes: int

  @nn.compact
  def __call__(self, x):
    x = nn.relu(nn.Dense(128)(inputs.numbers(x)))
    return nn.Dense(self.num_classes)(x)
