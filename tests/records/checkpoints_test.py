"""Saved states: what is read was saved, whatever happens to the files."""

import json
import shutil
import tempfile
import threading
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized

from agsfl.errors import ConfigError
from agsfl.records import checkpoints


def tree(step):
  """Arrays of several ranks and types, others for each step."""
  return {
      "x": np.random.default_rng(step).random(999),
      "y": (np.float32([[step]]), np.int32(step), np.zeros((0, 3), bool)),
  }


class StatesTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    folder = self.enterContext(tempfile.TemporaryDirectory())
    self.place = Path(folder) / "run" / "checkpoints"

  def opened(self, number=2):
    return checkpoints.States(self.place, number)

  def save(self, *steps, number=2):
    with self.opened(number) as states:
      for step in steps:
        states.save(step, tree(step))
      states.wait()

  def steps(self):
    return sorted(int(path.name) for path in self.place.iterdir())

  def assert_newest(self, step):
    with self.opened() as states:
      found, held = states.newest(tree(0))
    self.assertEqual(found, step)
    np.testing.assert_equal(held, tree(step))

  def test_nothing_is_written_before_it_is_opened(self):
    states = self.opened()
    self.assertFalse(self.place.parent.exists())
    with states:
      self.assertIsNone(states.newest(tree(0)))

  @parameterized.parameters(1, 3)
  def test_the_newest_stay(self, number):
    self.save(2, 4, 6, 8, number=number)
    self.assertEqual(self.steps(), [2, 4, 6, 8][-number:])
    self.assert_newest(8)

  def test_keep_only_and_remove(self):
    with self.opened() as states:
      states.save(8, tree(8))
      states.save(11, tree(11))
      states.keep_only(11)
      self.assertEqual(self.steps(), [11])
    with self.opened() as states:
      states.remove()
      self.assertFalse(self.place.exists())

  def test_what_is_saved_may_change_at_once(self):
    """The caller goes on and gives its buffers away."""
    with self.opened() as states:
      arrays = tree(8)
      states.save(8, arrays)
      arrays["x"][:] = 0.0
    self.assert_newest(8)

  @parameterized.parameters("emptied", "no default", "empty newest")
  def test_a_state_without_its_files(self, damage):
    """The one before is used, and the damaged one is gone."""
    self.save(8, 11)
    if damage == "empty newest":
      (self.place / "999").mkdir()
    else:
      shutil.rmtree(self.place / "11" / "default")
    if damage == "emptied":
      shutil.rmtree(self.place / "11")
      (self.place / "11").mkdir()
    step = 11 if damage == "empty newest" else 8
    self.assert_newest(step)
    self.assertEqual(max(self.steps()), step)

  def test_a_flipped_bit(self):
    """Law: wherever it is, what is read was saved."""
    self.save(8, 11)
    path = max(
        (self.place / "11").rglob("*"), key=lambda path: path.stat().st_size
    )
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    self.assert_newest(8)

  def test_another_form_of_state(self):
    """A state of other shapes is no state of this run."""
    self.save(8)
    like = {**tree(0), "x": np.zeros(7)}
    with self.opened() as states, self.assertRaisesRegex(
        ConfigError, f"^{self.place}: no checkpoint in it can be read"
    ):
      states.newest(like)
    self.assert_newest(8)

  def test_a_state_is_one_array(self):
    """When one of several fails, TensorStore prints a traceback for others."""
    self.save(8)
    (metadata,) = self.place.glob("8/default/_METADATA")
    held = json.loads(metadata.read_text())["tree_metadata"]
    self.assertLen(held, 1)

  @parameterized.parameters(
      OSError(28, "No space left on device"),
      ValueError(
          'RESOURCE_EXHAUSTED: Failed writing: "/a": Failed to write 9 bytes '
          "to file 12: No space left on device [os_error_code='28']"
      ),
  )
  def test_a_full_disk_is_one_line(self, error):
    """Orbax says it by either error, at once or when it is waited for."""
    problem = (
        f"^{self.place}: must be a folder that can be written "
        r"\(No space left on device\)$"
    )
    for method in ("save", "wait_until_finished"):
      with self.opened() as states, mock.patch.object(
          checkpoints.ocp.CheckpointManager, method, side_effect=error
      ), self.assertRaisesRegex(ConfigError, problem):
        states.save(1, tree(1))
        states.wait()

  def test_a_file_in_its_place(self):
    self.place.parent.mkdir()
    self.place.write_text("mine")
    with self.assertRaisesRegex(
        ConfigError, f"^{self.place}: must be a folder that can be written"
    ):
      self.opened().__enter__()
    self.assertEqual(self.place.read_text(), "mine")

  def test_runs_in_threads(self):
    """Two runs of one process save side by side."""

    def run(place):
      with checkpoints.States(place, 2) as states:
        for step in range(1, 9):
          states.save(step, tree(step))
        states.wait()

    places = [self.place / name for name in "ab"]
    threads = [threading.Thread(target=run, args=(x,)) for x in places]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    for place in places:
      with checkpoints.States(place, 2) as states:
        step, held = states.newest(tree(0))
      self.assertEqual(step, 8)
      np.testing.assert_equal(held, tree(8))


if __name__ == "__main__":
  absltest.main()
