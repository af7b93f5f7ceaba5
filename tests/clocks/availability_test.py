"""Who is on at a time against a loop over the intervals."""

import tempfile
from pathlib import Path

import jax
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import clocks
from agsfl.clocks import ClockOptions
from agsfl.errors import ConfigError

DAY = 86_400
PHONES = ClockOptions(availability="phones")

at_times = jax.jit(jax.vmap(clocks.is_on, (None, 0)))


class PhonesTest(absltest.TestCase):

  def test_shares_are_the_published_ones(self):
    """Law: lengths of a day's intervals have the cited quantiles."""
    names = [str(i) for i in range(20_000)]
    got = clocks.availability_of(PHONES, 0, names)
    shares = (got.off - got.on).sum(axis=1) / DAY
    np.testing.assert_allclose(
        np.percentile(shares, [25, 50, 75, 90, 95]),
        [0.01, 0.06, 0.13, 0.26, 0.33],
        atol=0.005,
    )
    # All are on at some time, and none for longer than published.
    self.assertGreater(shares.min(), 0)
    np.testing.assert_allclose(shares.max(), 0.33, rtol=1e-5)

  def test_one_interval_a_day(self):
    """Law: a client begins once a day, and is on for its share of any day."""
    got = clocks.availability_of(PHONES, 1, [str(i) for i in range(200)])
    shares = (got.off - got.on).sum(axis=1) / DAY
    minutes = np.arange(3 * 1440)
    on = np.asarray(at_times(got, 60.0 * minutes))
    for day in range(3):
      of_day = on[1440 * day : 1440 * (day + 1)]
      np.testing.assert_allclose(of_day.mean(axis=0), shares, atol=1.5 / 1440)
      begins = of_day & ~np.roll(of_day, 1, axis=0)
      self.assertLessEqual(begins.sum(axis=0).max(), 1)
      np.testing.assert_array_equal(of_day, on[:1440])
    # Hours of beginning are all over the day: some go over midnight.
    self.assertTrue(np.any(on[0]))

  def test_a_draw_depends_on_seed_and_number_alone(self):
    """Law: a client's interval is the same with any number of clients."""
    few, more = (
        clocks.availability_of(PHONES, 7, ["x"] * n) for n in (3, 50)
    )
    np.testing.assert_array_equal(few.on, more.on[:3])
    np.testing.assert_array_equal(few.off, more.off[:3])


class FileTest(parameterized.TestCase):

  def read(self, text, names):
    folder = self.enter_context(tempfile.TemporaryDirectory())
    path = Path(folder) / "a.csv"
    path.write_text(text)
    options = ClockOptions(availability=f"file:{path}")
    return clocks.availability_of(options, 0, names)

  def test_equals_the_intervals(self):
    """Law: on from `on` to before `off`, again after the last `off`."""
    intervals = {"b": [(3, 4), (0, 2)], "a": [(1, 10)], "else": [(0, 12)]}
    rows = [
        f"{client},{on},{off}"
        for client, own in intervals.items()
        for on, off in own
    ]
    got = self.read("\n".join(["client,on,off", *rows]), ["a", "b"])
    times = np.arange(0, 40, 0.5, dtype=np.float32)
    want = [
        [
            any(on <= time % 12 < off for on, off in intervals[client])
            for client in ("a", "b")
        ]
        for time in times
    ]
    np.testing.assert_array_equal(at_times(got, times), want)

  @parameterized.parameters(
      ("a,0,2\na,1,3\n", "row 3: client 'a' is on at 1, but"),
      ("a,1,3\na,0,2\n", "row 2: client 'a' is on at 1, but"),
      ("a,2,1\n", "row 2: off must be after on, 2, not 1"),
      ("a,1,1\n", "row 2: off must be after on"),
      ("a,-1,1\n", "row 2, column 'on': must be a number from 0"),
      ("b,0,1\n", "must have a row for client 'a'"),
  )
  def test_refusals_in_one_line(self, rows, problem):
    with self.assertRaises(ConfigError) as caught:
      self.read(f"client,on,off\n{rows}", ["a"])
    self.assertRegex(str(caught.exception), "^--availability=file:.*: ")
    self.assertIn(problem, str(caught.exception))


if __name__ == "__main__":
  absltest.main()
