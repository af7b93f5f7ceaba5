"""The file of client evaluations: as NumPy itself would write and read it."""

import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest

from agsfl.records import client_evaluations

NUM_CLIENTS = 3


def evaluation(number):
  """A record; one client has no test samples."""
  return client_evaluations.record(number, SimpleNamespace(
      client_test_loss=np.array([number / 3, np.nan, 1e30]),
      client_test_accuracy=np.array([1 / number, np.nan, 0.0]),
  ))


def written(rounds):
  """The bytes of NumPy's own file of these rounds."""
  file = io.BytesIO()
  records = [evaluation(i) for i in rounds]
  np.save(file, np.array(records, evaluation(1).dtype))
  return file.getvalue()


class ClientEvaluationsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.path = Path(folder) / client_evaluations.NAME

  def go_on(self, rounds, new):
    """Begins after some rounds, and adds others."""
    writer = client_evaluations.Writer(self.path, NUM_CLIENTS, rounds)
    with writer.file:
      for number in new:
        writer.append(evaluation(number))

  def read(self, rounds, **how):
    return client_evaluations.read(self.path, NUM_CLIENTS, rounds, **how)

  @hypothesis.given(
      st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=5)
  )
  def test_stops_do_not_show(self, stops):
    """Law: cut back and continued at any times, its bytes are NumPy's own.

    Each time it begins with some of the records that are there.
    """
    self.go_on([], [])
    count = 0
    for some, more in stops:
      some = min(some, count)
      count = some + more
      self.go_on([*range(1, some + 1)], range(some + 1, count + 1))
      rounds = [*range(1, count + 1)]
      self.assertEqual(self.path.read_bytes(), written(rounds))
      self.assertEqual(
          self.read(rounds, may_have_more=False).tobytes(),
          np.load(self.path).tobytes(),
      )

  def test_killed_while_it_writes(self):
    """Law: at each byte of a record, those before it can be read."""
    self.go_on([], [1, 2])
    before, after = written([1, 2]), written([1, 2, 3])
    for length in range(len(before), len(after) + 1):
      # The number of records in the header is written last.
      torn = before + after[len(before) : length]
      for content in (torn, after) if length == len(after) else (torn,):
        self.path.write_bytes(content)
        got = self.read([1, 2], may_have_more=True)
        self.assertEqual(got.tobytes(), before[-got.nbytes :])

  def test_the_same_round_again(self):
    """The later record replaces the earlier one."""
    self.go_on([], [1, 2, 2])
    self.assertEqual(self.path.read_bytes(), written([1, 2]))


if __name__ == "__main__":
  absltest.main()
