"""Speeds of clients: their distributions, and tables of them."""

import tempfile
from pathlib import Path

import numpy as np
from absl.testing import absltest, parameterized

from agsfl.clocks import ClockOptions, speeds_of
from agsfl.errors import ConfigError

NAMES = [str(i) for i in range(20_000)]
HEADER = "client,seconds_per_sample,up_mbit,down_mbit,latency"
PERCENTS = [5, 10, 25, 50, 75, 90, 95]


def many(**settings):
  return speeds_of(ClockOptions(**settings), 0, NAMES)


class DrawnTest(parameterized.TestCase):

  def test_equal_clients(self):
    got = speeds_of(
        ClockOptions(
            clock="constant", seconds_per_sample=0.5, up_mbit=8, down_mbit=16,
            latency=0.25,
        ),
        3, ["a", "b"],
    )
    for values, want in zip(got, (0.5, 1e6, 2e6, 0.25), strict=True):
      self.assertEqual(values.dtype, np.float32)
      np.testing.assert_array_equal(values, [want, want])

  def test_phones_have_the_published_quantiles(self):
    """Law: the quantiles of 20,000 clients are the cited ones, to 4%."""
    got = many(clock="phones")
    for values, want in (
        (1000 * got.seconds_per_sample, [60, 69, 96, 172, 309, 476, 559]),
        (got.up * 8e-6, [4.7, 8, 21, 40, 72, 87, 93]),
    ):
      # At the ends, where no more is published, all clients are alike.
      quantiles = np.percentile(values, PERCENTS)
      np.testing.assert_allclose(quantiles, want, rtol=0.04)
      np.testing.assert_allclose(values.min(), want[0], rtol=1e-6)
      np.testing.assert_allclose(values.max(), want[-1], rtol=1e-6)
    np.testing.assert_array_equal(got.up, got.down)
    self.assertFalse(np.any(got.latency))

  def test_settings_are_medians(self):
    """Law: other medians scale the same phones."""
    phones = many(clock="phones")
    scaled = many(
        clock="phones", seconds_per_sample=1.72, up_mbit=4, latency=0.1
    )
    for field, factor in (("seconds_per_sample", 10), ("up", 0.1), ("down", 1)):
      np.testing.assert_allclose(
          getattr(scaled, field), factor * getattr(phones, field), rtol=1e-6
      )
    np.testing.assert_array_equal(scaled.latency, np.float32(0.1))

  def test_spread_is_log_normal(self):
    """Law: logarithms are normal, and devices independent of links."""
    got = many(clock="constant", speed_spread=0.5)
    slower = np.log(got.seconds_per_sample / 0.172) / 0.5
    faster = np.log(got.up / 5e6) / 0.5
    for values in (slower, faster):
      # Quantiles of the normal distribution.
      np.testing.assert_allclose(
          np.percentile(values, PERCENTS),
          [-1.645, -1.282, -0.674, 0, 0.674, 1.282, 1.645],
          atol=0.04,
      )
    self.assertLess(abs(np.corrcoef(slower, faster)[0, 1]), 0.03)

  @parameterized.parameters("phones", "constant")
  def test_a_draw_depends_on_seed_and_number_alone(self, clock):
    """Law: a client's speeds are the same with any number of clients."""
    options = ClockOptions(
        clock=clock, speed_spread=0.5 * (clock == "constant")
    )
    few, more = (speeds_of(options, 7, NAMES[:n]) for n in (3, 50))
    for a, b in zip(few, more, strict=True):
      np.testing.assert_array_equal(a, b[:3])
    other = speeds_of(options, 8, NAMES[:3])
    self.assertFalse(np.any(few.up == other.up))


class FileTest(parameterized.TestCase):

  def read(self, text, names):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = Path(folder) / "a.csv"
    path.write_text(text)
    return speeds_of(ClockOptions(clock=f"file:{path}"), 0, names)

  def test_rows_in_the_order_of_the_run(self):
    got = self.read(
        "latency, client, up_mbit,down_mbit,seconds_per_sample\n"
        "0.5,b,8,16,1e-3\n\n0,else,1,1,1\n0,a,0.8,1.6,2\n",
        np.array(["a", "b"]),
    )
    want = ([2, 1e-3], [1e5, 1e6], [2e5, 2e6], [0, 0.5])
    for values, column in zip(got, want, strict=True):
      self.assertEqual(values.dtype, np.float32)
      np.testing.assert_array_equal(values, np.float32(column))

  @parameterized.parameters(
      ("client,up_mbit\na,1\n", "header must be client,seconds_per_sample"),
      (f"{HEADER},jitter\na,1,1,1,1,1\n", "header must be client"),
      ("", "header must be client"),
      (f"{HEADER}\na,1,1,1\n", "row 2: must have 5 cells, not 4"),
      (f"{HEADER}\na,1,1,1,-1\n", "row 2, column 'latency': must be a number"),
      (f"{HEADER}\na,1,1,1,nan\n", "not 'nan'"),
      (f"{HEADER}\na,fast,1,1,1\n", "column 'seconds_per_sample'"),
      (f"{HEADER}\na,1,0,1,1\n", "row 2: up_mbit and down_mbit must be"),
      (f"{HEADER}\na,1,1,1,1\na,1,1,1,1\n", "row 3: client 'a' has a row"),
      (f"{HEADER}\n,1,1,1,1\n", "row 2: must name a client"),
      (f"{HEADER}\nb,1,1,1,1\n", "must have a row for client 'a'"),
      (f'{HEADER}\n"a,1,1,1,1\n', "must be a csv file"),
  )
  def test_refusals_in_one_line(self, text, problem):
    with self.assertRaises(ConfigError) as caught:
      self.read(text, ["a"])
    self.assertRegex(str(caught.exception), "^--clock=file:.*: ")
    self.assertIn(problem, str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_no_file(self):
    with self.assertRaisesRegex(ConfigError, "--clock=file:no.csv: must be"):
      speeds_of(ClockOptions(clock="file:no.csv"), 0, ["a"])


class OptionsTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"clock": "phone"}, "constant, phones or file:PATH"),
      ({"clock": "file:"}, "constant, phones or file:PATH"),
      ({"availability": "constant"}, "phones or file:PATH"),
      ({"index_coding": "delta"}, "one of raw, bitmask, golomb, entropy"),
      ({"value_bits": 8}, "one of 16, 32"),
      ({"clock": "phones", "speed_spread": 1}, "0 without --clock=constant"),
      ({"deadline": 3}, "unset without --clock"),
      ({"k_by_speed": True}, "unset without --clock"),
  )
  def test_refusals(self, settings, allowed):
    with self.assertRaisesRegex(ConfigError, f"^--.*=.*: must be {allowed}$"):
      ClockOptions(**settings)


if __name__ == "__main__":
  absltest.main()
