"""Seconds of a cohort's round against NumPy."""

import jax
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import clocks
from agsfl.clocks import Speeds

# Three clients: a slow device, a slow uplink, a far one. Links in bytes.
COHORT = Speeds(
    np.float32([2.0, 0.1, 0.1]),
    np.float32([4e6, 4e3, 4e6]),
    np.float32([8e6, 8e6, 8e3]),
    np.float32([0.5, 0.5, 9.0]),
)
ALL = np.ones(3, bool)


@jax.jit
def played(speeds, seen, volume_up, volume_down, takes_part, deadline):
  arrivals = clocks.arrival(speeds, seen, volume_up)
  downloads = clocks.download(speeds, volume_down)
  return (
      arrivals,
      downloads,
      clocks.in_time(arrivals, takes_part, deadline),
      clocks.round_seconds(arrivals, downloads, takes_part, deadline),
      clocks.slowest(
          arrivals, speeds, seen, volume_up, 0.0, takes_part, deadline
      ),
  )


def oracle(speeds, seen, volume_up, volume_down, takes_part, deadline):
  """The same in float64, client by client."""
  columns = [np.asarray(column, np.float64).tolist() for column in speeds]
  arrivals, downloads, parts = [], [], []
  for client, (per_sample, up, down, latency) in enumerate(
      zip(*columns, strict=True)
  ):
    own = {
        "computation": per_sample * float(seen[client]),
        "upload": 32 * float(volume_up[client]) / (8 * up),
        "latency": latency,
    }
    parts.append(own)
    arrivals.append(sum(own.values()))
    downloads.append(latency + 32 * float(volume_down) / (8 * down))
  began = [client for client, takes in enumerate(takes_part) if takes]
  used = [i in began and t <= deadline for i, t in enumerate(arrivals)]
  if not began:
    return arrivals, downloads, used, clocks.EMPTY_ROUND, (-1, "nobody")
  last = max(began, key=lambda client: arrivals[client])
  cause = max(parts[last], key=parts[last].get)
  if arrivals[last] > deadline:
    cause = "deadline"
  waited = min(arrivals[last], deadline)
  seconds = waited + max(downloads[client] for client in began)
  return arrivals, downloads, used, seconds, (last, cause)


class DurationsTest(parameterized.TestCase):

  @parameterized.parameters(*range(20))
  def test_equals_the_oracle(self, seed):
    rng = np.random.default_rng(seed)
    number = lambda: np.exp(rng.normal(0, 2, 6)).astype(np.float32)
    given = (
        Speeds(number(), 100 * number(), 100 * number(), number()),
        rng.integers(0, 10, 6).astype(np.float32),
        np.float32(rng.integers(0, 1000, 6)),
        np.float32(rng.integers(0, 1000)),
        rng.random(6) < 0.5 * (seed > 1),
        np.float32(rng.choice([20, 200, np.inf])),
    )
    got, want = played(*given), oracle(*given)
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-6)
    np.testing.assert_array_equal(got[2], want[2])
    np.testing.assert_allclose(got[3], want[3], rtol=1e-6)
    place, cause = got[4]
    self.assertEqual((place, clocks.CAUSES[cause]), want[4])

    # Law: what stands in the places of others does not matter, not even 0.
    speeds, *others = given
    speeds = Speeds(*(column * given[4] for column in speeds))
    for a, b in zip(played(speeds, *others)[2:4], got[2:4], strict=True):
      np.testing.assert_array_equal(a, b)

  @parameterized.named_parameters(
      # 2 s a sample; 40 bytes at 4 kB a second; latency of 9 s up and down.
      ("computation", 10, 10, ALL, np.inf, 0, "computation", 29.50001),
      ("upload", 0, 10_000, ALL, np.inf, 1, "upload", 19.5),
      ("latency", 0, 10, ALL, np.inf, 2, "latency", 18.00001),
      ("a_deadline", 10, 10, ALL, 5, 0, "deadline", 14),
      ("nobody", 10, 10, ~ALL, np.inf, -1, "nobody", 60),
  )
  def test_worked(self, seen, up, takes_part, deadline, place, cause, seconds):
    """By hand, with one number for all clients."""
    got = played(COHORT, float(seen), up, 0.0, takes_part, float(deadline))
    np.testing.assert_allclose(got[3], seconds, rtol=1e-6)
    self.assertEqual((got[4][0], clocks.CAUSES[got[4][1]]), (place, cause))


if __name__ == "__main__":
  absltest.main()
