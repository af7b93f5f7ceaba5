"""Settings of who takes part that do not go together."""

from absl.testing import absltest, parameterized

from agsfl.config import Config
from agsfl.errors import ConfigError

QUEUE = {"buffer_size": 2, "clock": "constant"}
REFUSED = (
    ({"buffer_size": 2}, "buffer_size=2: must be unset without --clock"),
    (
        {"availability": "phones"},
        "availability=phones: must be unset without --clock",
    ),
    ({"deadline": 2.0}, "deadline=2: must be unset without --clock"),
    ({**QUEUE, "deadline": 2.0}, "deadline=2: .* --buffer_size"),
    ({**QUEUE, "k_by_speed": True}, "k_by_speed=True: .* --buffer_size"),
    ({**QUEUE, "stateless": True}, "stateless=True: .* --buffer_size"),
    ({"sampling": "by_size"}, "sampling=by_size: .* --clients_per_round"),
    ({"store": "host"}, "store=host: .* --clients_per_round"),
    ({"clients_per_round": 2.5}, "clients_per_round=2.5: .* whole number"),
    (
        {"stateless": True, "residual_decay": 0.5},
        "residual_decay=0.5: must be 1 with --stateless",
    ),
    (
        {"stateless": True, "residual_preview": 0.5},
        "residual_preview=0.5: must be 0 with --stateless",
    ),
    *(
        (
            {"clock": "constant", "k_by_speed": True, "method": method},
            f"k_by_speed=True: must be false with --method={method}",
        )
        for method in ("periodic_k", "send_all", "unidirectional_top_k")
    ),
)


class RefusedTest(parameterized.TestCase):

  @parameterized.parameters(*REFUSED)
  def test_in_one_line(self, settings, line):
    with self.assertRaisesRegex(ConfigError, f"^--{line}") as caught:
      Config(**settings)
    self.assertLen(str(caught.exception).splitlines(), 1)

  def test_more_than_there_are(self):
    asked = Config(clients_per_round=11)
    with self.assertRaisesRegex(ConfigError, "^--clients_per_round=11: .* 10 "):
      asked.places(10)
    asked = Config(clients_per_round=4, buffer_size=5, clock="constant")
    with self.assertRaisesRegex(ConfigError, "^--buffer_size=5: .* 4,"):
      asked.arrivals(10)

  @parameterized.parameters(
      (None, 10, 10), (3, 10, 3), ("25%", 10, 3), ("1%", 10, 1), ("100%", 7, 7)
  )
  def test_clients_of_a_round(self, asked, num_clients, places):
    """A share is rounded to the nearest number, but is at least one."""
    config = Config(clients_per_round=asked)
    self.assertEqual(config.places(num_clients), places)


if __name__ == "__main__":
  absltest.main()
