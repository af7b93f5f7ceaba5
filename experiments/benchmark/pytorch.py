"""PyTorch's gradients of all clients. Only this file needs PyTorch."""

from collections.abc import Callable

import jax
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from experiments.benchmark.work import Work


class CNN(nn.Module):
  """The paper's network for images of 28 x 28; channels come first."""

  def __init__(self, num_classes: int):
    super().__init__()
    self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
    self.conv2 = nn.Conv2d(32, 32, 5, padding=2)
    self.dense1 = nn.Linear(32 * 7 * 7, 256)
    self.dense2 = nn.Linear(256, num_classes)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """[B, 1, 28, 28] -> [B, L] logits."""
    norm = lambda x: functional.local_response_norm(x, 9, 0.001, 0.75, 1.0)
    x = norm(functional.max_pool2d(functional.relu(self.conv1(x)), 2))
    x = functional.max_pool2d(norm(functional.relu(self.conv2(x))), 2)
    return self.dense2(functional.relu(self.dense1(x.flatten(1))))


def _device():
  """PyTorch's name of the platform that JAX uses."""
  platform = jax.default_backend()
  if platform == "cpu":
    return "cpu"
  if platform != "gpu" or not torch.cuda.is_available():
    raise RuntimeError(f"PyTorch sees no {platform}")
  return "cuda"


def batched(
    work: Work, compiles: bool
) -> Callable[[], dict[str, torch.Tensor]]:
  """vmap(grad) of the paper's network.

  Matrix products may use TF32, as those of JAX do by default.

  Args:
    work: the samples.
    compiles: whether `torch.compile` makes a program of it at the first call.

  Returns:
    A function that computes all clients' gradients, each array [N, ...], and
    waits.

  Raises:
    RuntimeError: PyTorch does not see the device that JAX uses.
  """
  device = _device()
  torch.set_float32_matmul_precision("high")
  torch.manual_seed(0)
  network = CNN(work.case.num_classes).to(device)
  params = dict(network.named_parameters())
  features, labels = map(torch.from_numpy, work.batches())
  features = features.movedim(-1, 2).contiguous().to(device)
  labels = labels.long().to(device)

  def loss(params, features, labels):
    logits = functional_call(network, params, (features / 255.0,))
    return functional.cross_entropy(logits, labels)

  gradients = vmap(grad(loss), in_dims=(None, 0, 0))
  if compiles:
    gradients = torch.compile(gradients)

  def run():
    result = gradients(params, features, labels)
    if device == "cuda":
      torch.cuda.synchronize()
    return result

  return run
