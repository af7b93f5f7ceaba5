"""The work that both sides of a comparison get: a network, random samples."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from agsfl import devices
from agsfl.data.federated import ClientData, FederatedData
from agsfl.training.models import Network
from experiments.benchmark import networks

BATCH = 32


class Work(NamedTuple):
  """One minibatch for each client.

  Attributes:
    name: of the network, one of `networks.CASES`.
    num_clients: N.
    num_devices: that share the clients; None for all.
  """

  name: str
  num_clients: int
  num_devices: int | None = None

  @property
  def case(self) -> networks.Case:
    """The network's kind, and the shape of its samples."""
    return networks.CASES[self.name]

  @property
  def network(self) -> Network:
    """The network with plain layers."""
    return self.case.network(self.case.num_classes)

  @property
  def mesh(self) -> Mesh:
    """The devices that share the clients."""
    return devices.client_mesh(self.num_devices or jax.device_count())

  def clients(self) -> ClientData:
    """`BATCH` samples for each client."""
    case, rng = self.case, np.random.default_rng(0)
    total = self.num_clients * BATCH
    dtype = np.uint8 if case.top == 256 else np.int32
    return ClientData.of(
        rng.integers(0, case.top, (total, *case.shape), dtype),
        rng.integers(0, case.num_classes, total).astype(np.int32),
        np.arange(total).reshape(self.num_clients, BATCH),
    )

  def batches(self) -> tuple[np.ndarray, np.ndarray]:
    """The same samples as features [N, B, ...] and labels [N, B]."""
    data, each = self.clients(), (self.num_clients, BATCH)
    features = data.features.reshape(*each, *self.case.shape)
    return features, data.labels.reshape(each)

  def data(self) -> FederatedData:
    """The same samples as a data set; the last one is for tests."""
    clients = self.clients()
    return FederatedData(
        clients=clients,
        test_rows=np.array([len(clients.labels) - 1], np.int32),
        test_clients=np.array([-1], np.int32),
        client_names=np.arange(self.num_clients).astype(str),
        num_classes=self.case.num_classes,
    )
