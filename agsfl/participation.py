"""The settings of who takes part in a round, and of the others' residuals."""

import dataclasses
import math

from agsfl.clocks import ClockOptions
from agsfl.errors import require
from agsfl.names import SamplingName, StoreName
from agsfl.settings import Amount, check, elements, setting


@dataclasses.dataclass(frozen=True)
class Participation(ClockOptions):
  """Who takes part, and when; each field has its own description.

  Raises:
    ConfigError: a value is of another type, out of range, or contradicts
      another one.
  """

  clients_per_round: Amount | None = setting(
      None,
      "Clients that take part in a round, a number or a share such as 10%. "
      "Default: all.",
      least=1,
  )
  sampling: SamplingName = setting(
      "uniform",
      "How the clients of a round are drawn. by_size draws large clients more "
      "often; then all count alike in the mean.",
  )
  dropout: float = setting(
      0.0,
      "Probability that a client drops out in a round. Its gradient stays in "
      "its residual; with stateless it is lost.",
      least=0,
      most=1,
  )
  residual_decay: float = setting(
      1.0,
      "Factor of a residual for each round since its client last took part.",
      least=0,
      most=1,
  )
  residual_preview: float = setting(
      0.0,
      "Share of its residual that a client applies to the weights before it "
      "computes (SA-PEF). Nothing of the residual is lost.",
      least=0,
      most=1,
  )
  stateless: bool = setting(
      False,
      "Clients keep no residual; they send the difference between their "
      "gradient and the last aggregate (CAFe). What does not arrive is lost.",
  )
  buffer_size: int | None = setting(
      None,
      "Asynchronous rounds: the server takes a step whenever this number of "
      "messages has arrived (FedBuff). clients_per_round clients are at work "
      "at any time. Controllers see the time of a synchronous round. Default: "
      "synchronous rounds.",
      least=1,
  )
  max_staleness: int = setting(
      50,
      "In asynchronous rounds a gradient is not used if its weights are older "
      "than this number of rounds. The device and each checkpoint store the "
      "weights of as many rounds.",
      least=0,
      most=10_000,
  )
  store: StoreName | None = setting(
      None,
      "Where the residuals of all clients are, if only some clients take part "
      "in a round: on the device, in the host's memory, or in a file. "
      "Default: device up to 4 GB, host up to 8 GB, then file.",
  )

  def __post_init__(self) -> None:
    check(self)
    self._check_participation()

  def _check_participation(self):
    """Refuses settings that contradict each other."""
    number = self.clients_per_round
    require(
        number is None or isinstance(number, str) or number == int(number),
        "clients_per_round",
        number,
        "a whole number, or a share such as 10%",
    )
    # What each needs, and what it cannot go with.
    is_async = self.buffer_size is not None
    for name, unset, fits, need in (
        ("buffer_size", None, self.clock, "unset without --clock"),
        ("availability", None, self.clock, "unset without --clock"),
        ("deadline", None, not is_async, "unset with --buffer_size"),
        ("k_by_speed", False, not is_async, "false with --buffer_size"),
        (
            "sampling",
            "uniform",
            number is not None,
            "uniform where all clients take part; see --clients_per_round",
        ),
        ("stateless", False, not is_async, "false with --buffer_size"),
        ("residual_decay", 1.0, not self.stateless, "1 with --stateless"),
        ("residual_preview", 0.0, not self.stateless, "0 with --stateless"),
        (
            "store",
            None,
            self.in_cohorts or self.store == "device",
            "unset or device where all clients take part; see "
            "--clients_per_round",
        ),
    ):
      value = getattr(self, name)
      require(value == unset or fits, name, value, need)

  @property
  def in_cohorts(self) -> bool:
    """Whether the clients of a round are drawn."""
    return not (
        self.clients_per_round is None
        and self.availability is None
        and self.buffer_size is None
    )

  def places(self, num_clients: int) -> int:
    """The clients of a round; of asynchronous rounds those at work.

    Args:
      num_clients: N.

    Raises:
      ConfigError: there are fewer clients.
    """
    asked = self.clients_per_round
    if asked is None:
      return num_clients
    if isinstance(asked, str):
      return max(1, math.floor(elements(asked, num_clients) + 0.5))
    number = int(asked)
    require(
        number <= num_clients,
        "clients_per_round",
        number,
        f"at most the {num_clients:,} clients",
    )
    return number

  def arrivals(self, num_clients: int) -> int:
    """The messages that the server waits for in a round.

    Raises:
      ConfigError: there are fewer clients, or fewer at work.
    """
    at_work = self.places(num_clients)
    if self.buffer_size is None:
      return at_work
    require(
        self.buffer_size <= at_work,
        "buffer_size",
        self.buffer_size,
        f"at most {at_work:,}, the clients at work",
    )
    return self.buffer_size

  def used_store(self, num_clients: int, bytes_per_client: int) -> StoreName:
    """Where the rows of all clients are; the default depends on their size."""
    if self.store is not None or not self.in_cohorts:
      return self.store or "device"
    size = num_clients * bytes_per_client
    if size <= 4e9:
      return "device"
    return "host" if size <= 8e9 else "file"
