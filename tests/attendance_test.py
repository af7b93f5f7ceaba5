"""Who is drawn: against NumPy's own draws, one by one."""

import functools
import itertools
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.attendance import SAMPLINGS, drops_out, sampled
from agsfl.clocks import Availability
from agsfl.data.federated import ClientData

COUNTS = (3, 1, 4, 0, 5, 2, 6)
N = len(COUNTS)
DRAWS = 4000


def clients_of(counts=COUNTS, availability=None):
  counts = np.int32(counts)
  return ClientData(
      features=np.zeros((1, 1), np.float32),
      labels=np.zeros(1, np.int32),
      order=np.zeros(1, np.int32),
      starts=np.zeros_like(counts),
      counts=counts,
      availability=availability,
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def drawn(sampling, number, places, data, rounds, seconds):
  """[rounds, places], the cohort of each of these rounds."""
  attendance = sampled(SAMPLINGS[sampling], number, places, N, dim=1)

  def of_round(round_index):
    state = types.SimpleNamespace(
        key=jax.random.key(0),
        round_index=round_index - 1,
        seconds=(seconds,),
        attendance=(),
    )
    return attendance.draw(data, state, None)[0].clients

  return jax.lax.map(of_round, rounds, batch_size=100)


def draw(sampling, number, data, rounds, places=None, seconds=0.0):
  rounds = jnp.asarray(rounds, jnp.int32)
  found = drawn(
      sampling, number, places or number, data, rounds, jnp.float32(seconds)
  )
  return np.asarray(found)


def one_after_another(weights, number):
  """{set of clients: probability}, drawn without replacement."""
  found = {}
  for order in itertools.permutations(range(len(weights)), number):
    left, probability = float(sum(weights)), 1.0
    for client in order:
      probability *= weights[client] / left
      left -= weights[client]
    cohort = tuple(sorted(order))
    found[cohort] = found.get(cohort, 0.0) + probability
  return found


class DrawsTest(parameterized.TestCase):

  @parameterized.parameters(
      ("uniform", np.sign(COUNTS)), ("by_size", COUNTS)
  )
  def test_frequencies(self, sampling, weights):
    """How often each pair comes up; one client after another is drawn.

    Chi-square with 14 degrees of freedom is above 36 once in 1,000 times.
    """
    cohorts = draw(sampling, 2, clients_of(), range(1, DRAWS + 1))
    seen = dict.fromkeys(itertools.combinations(range(N), 2), 0)
    for cohort in cohorts.tolist():
      seen[tuple(cohort)] += 1
    chi_square = 0.0
    for cohort, probability in one_after_another(weights, 2).items():
      expected = DRAWS * probability
      if expected == 0:
        self.assertEqual(seen[cohort], 0)
      else:
        chi_square += (seen[cohort] - expected) ** 2 / expected
    self.assertLess(chi_square, 36)

  @parameterized.product(first=[1, 2**31 - 20], number=[4, 5, 6])
  def test_round_robin(self, first, number):
    """n after n of the six with samples, so that all come up alike."""
    rounds = range(first, first + 12)
    cohorts = draw("round_robin", number, clients_of(), rounds)
    with_samples = [i for i in range(N) if COUNTS[i]]
    for m, cohort in zip(rounds, cohorts, strict=True):
      places = [((m - 1) * number + i) % 6 for i in range(number)]
      want = sorted(with_samples[place] for place in places)
      self.assertEqual(cohort.tolist(), want)

  @parameterized.parameters(*SAMPLINGS)
  def test_padding_changes_no_draw(self, sampling):
    """Law: neither clients of padding nor empty places change who is drawn."""
    rounds = range(1, 40)
    few = draw(sampling, 3, clients_of(), rounds)
    more = draw(sampling, 3, clients_of((*COUNTS, 0, 0)), rounds, places=8)
    np.testing.assert_array_equal(more[:, :3], few)
    # Empty places have different numbers beyond all clients.
    self.assertTrue((np.diff(more) > 0).all() and (more[:, 3:] > N).all())

  @parameterized.parameters(*SAMPLINGS)
  def test_nobody_who_is_off(self, sampling):
    """Three are on, of which one has no samples: two places are filled."""
    on = np.float32([[0], [9], [0], [0], [9], [9], [9]])
    data = clients_of(availability=Availability(on, on + 5, np.float32(14)))
    for seconds, want in ((1.0, [0, 2]), (15.0, [0, 2]), (7.0, [])):
      cohorts = draw(sampling, 4, data, range(1, 20), seconds=seconds)
      for cohort in cohorts:
        self.assertEqual([i for i in cohort if i < N], want)

  def test_dropouts(self):
    """A share of all draws, which depend on the round and the client."""
    clients = jnp.arange(N)
    lost = jax.vmap(lambda m: drops_out(jax.random.key(0), m, clients, 0.3))(
        jnp.arange(DRAWS)
    )
    # Five deviations.
    error = 5 * np.sqrt(0.3 * 0.7 / DRAWS)
    np.testing.assert_allclose(np.mean(lost, axis=0), [0.3] * N, atol=error)
    pairs = np.cov(lost.astype(float).T)
    np.testing.assert_allclose(pairs, 0.21 * np.eye(N), atol=error)
    np.testing.assert_array_equal(
        drops_out(jax.random.key(0), jnp.int32(7), clients[2:4], 0.3),
        lost[7, 2:4],
    )


if __name__ == "__main__":
  absltest.main()
