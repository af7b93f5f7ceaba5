"""Rows that travel while a round computes are those of the plain loop."""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.stores.file import FileStore
from agsfl.stores.host import HostStore
from agsfl.stores.pipeline import Pipeline

N = 6
INITIAL = [np.float32([1.0, -2.0, 0.5]), np.int32(4)]
# The clients of each round; six is an empty place.
COHORTS = {
    "the same": [[0, 2, 5]] * 6,
    "none in common": [[0, 1, 2], [3, 4, 5]] * 3,
    "some in common": [[0, 1, 2], [1, 2, 4], [0, 1, 2], [2, 3, 5], [0, 1, 5]],
    "empty places": [[0, 6, 6], [6, 6, 6], [0, 5, 6], [0, 6, 6], [0, 1, 5]],
    "other places": [[0, 1, 2], [2, 1, 0], [1, 0, 2], [5, 2, 0], [0, 2, 5]],
}


def play(state, rows, ids):
  """A round whose every result depends on all rows, also on empty places'."""
  floats, counts = rows
  mean = jnp.mean(floats) + state
  floats = 0.9 * floats + mean * jnp.cos(ids)[:, None]
  counts = 3 * counts + ids
  return mean, [floats, counts], (mean, jnp.sum(counts))


PLAY = jax.jit(play)
IN_PLACE = jax.jit(play, donate_argnums=(0, 1))


class PipelineTest(parameterized.TestCase):

  @parameterized.product(
      cohorts=[*COHORTS],
      kind=[HostStore, FileStore],
      play=[PLAY, IN_PLACE],
      commits_every=[1, 2, 9],
  )
  def test_as_the_plain_loop(self, cohorts, kind, play, commits_every):
    """Law: states, infos, rows at commits and at the end, bit for bit."""
    cohorts = np.int32(COHORTS[cohorts])
    plain, state = dict.fromkeys(range(N), INITIAL), jnp.float32(0)
    folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    store = kind(INITIAL, N, folder / "rows")
    drawn = []

    def draw(m):
      drawn.append(m)
      return cohorts[m % len(cohorts)]

    pipeline = Pipeline(store, draw, play, round_index=0)
    piped, everyone = jnp.float32(0), np.arange(N, dtype=np.int32)
    infos, piped_infos = [], []
    for m, ids in enumerate(cohorts):
      # Read, play, write.
      own = [plain.get(client, INITIAL) for client in ids.tolist()]
      rows = [np.stack(field) for field in zip(*own, strict=True)]
      state, rows, info = PLAY(state, rows, ids)
      infos.append(info)
      plain |= {
          client: [np.asarray(field)[place] for field in rows]
          for place, client in enumerate(ids.tolist())
          if client < N
      }

      piped, info = pipeline.step(piped)
      piped_infos.append(info)
      if m % commits_every == 0 or m == len(cohorts) - 1:
        pipeline.flush()
        store.restore(store.commit())
        rows = [np.stack(field) for field in zip(*plain.values(), strict=True)]
        for expected, actual in zip(rows, store.gather(everyone), strict=True):
          np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(piped_infos, infos)
    self.assertEqual(drawn, [*range(len(cohorts) + 1)])


if __name__ == "__main__":
  absltest.main()
