"""What all clients and the server have sent, by rows and by hand."""

import numpy as np
from absl.testing import absltest

import agsfl
from agsfl.records import traffic
from agsfl.records.read import Run
from tests.small import config

# Rows of a method whose elements are an index and a value.
ROWS = [{"k_up": 3, "k_down": 5}, {"k_up": 4, "k_down": 0}]


class TrafficTest(absltest.TestCase):

  def test_messages_of_different_sizes(self):
    """Law: the sum over clients does not depend on how they are drawn.

    Here clients send as much as their uplinks allow. `bytes_up` is the size of
    the largest message, so a multiple of it would be too much.
    """
    settings = {
        "method": "fab_top_k", "controller": "fixed", "clock": "phones",
        "k_by_speed": True, "num_rounds": 2,
    }
    whole, drawn = (
        agsfl.simulate(config(**settings, **more))
        for more in ({}, {"clients_per_round": "100%"})
    )
    for way in traffic.WAYS:
      np.testing.assert_array_equal(
          traffic.sent(whole, way), traffic.sent(drawn, way)
      )
    largest = sum(row["bytes_up"] for row in whole.rows)
    self.assertLess(traffic.sent(whole, "up")[-1], 0.9 * 10 * largest)

  def test_clients_without_samples_send_nothing(self):
    """Law: a run's end does not change what it has sent. By hand: 2 clients."""
    settings = {"method": "fab_top_k", "num_clients_used": 3}
    known = settings | {"num_clients_training": 2}
    clients = {"samples": [4, 0, 3]}
    for run in (
        Run(ROWS, {}, {}, known), Run(ROWS, clients, {"round": 2}, known),
        Run(ROWS, clients, {"round": 2}, settings),  # of an earlier version
    ):
      self.assertEqual(traffic.both_ways(run).tolist(), [2 * 64, 2 * 96])

  def test_recorded_bytes_come_first(self):
    """By hand: in 3-byte and 1-byte elements, then of all clients together."""
    used = {"method": "fab_top_k", "num_clients_training": 2}
    rows = [
        row | {"bytes_up": 3 * row["k_up"], "bytes_down": row["k_down"]}
        for row in ROWS
    ]
    run = Run(rows, {}, {}, used)
    self.assertEqual(traffic.sent(run, "up").tolist(), [18, 42])
    self.assertEqual(traffic.sent(run, "down").tolist(), [10, 10])
    rows = [row | {"all_bytes_up": 7, "all_bytes_down": 1} for row in rows]
    run = Run(rows, {}, {}, used)
    self.assertEqual(traffic.both_ways(run).tolist(), [8, 16])


if __name__ == "__main__":
  absltest.main()
