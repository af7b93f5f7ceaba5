"""Dashboards: their axes, their ids, what a run that goes on sends to them."""

import collections
import itertools
import json
import os
import shutil
import struct
import sys
import tempfile
import types
from pathlib import Path
from unittest import mock

import wandb
from absl import flags
from absl.testing import absltest, parameterized
from tensorboardX.proto import event_pb2

from agsfl.config import Config
from agsfl.errors import ConfigError
from experiments import run
from experiments.lib import dashboards
from tests.small import given, main

OLD_RUN = Path(__file__).resolve().parents[1] / "records" / "run_of_0_1"
START = {
    "round": 0, "time": 0.0, "train_loss": 2.5, "test_loss": 2.5,
    "test_accuracy": 0.125,
}


def setUpModule():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def scalars_of(folder):
  """{tag: [(step, value)]} of event files, as TensorBoard reads them.

  A file is records of length, sum, content, sum. A start at some step takes
  back all points from this step on.
  """
  scalars = collections.defaultdict(list)
  for path in sorted(folder.glob("events*")):  # the name has the time
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack("<Q", content[:8])
      event = event_pb2.Event.FromString(content[12 : 12 + size])
      content = content[16 + size :]
      if event.session_log.status == event_pb2.SessionLog.START:
        for points in scalars.values():
          points[:] = [point for point in points if point[0] < event.step]
      for value in event.summary.value:
        scalars[value.tag].append((event.step, value.simple_value))
  return dict(scalars)


def fake_package():
  """A tracker's package that stores its calls: a session for each init."""
  package = types.SimpleNamespace(sessions=[])

  def init(**kwargs):
    package.sessions.append(mock.Mock(kwargs=kwargs))
    return package.sessions[-1]

  package.init, package.finish = init, mock.Mock()
  package.Settings = package.login = package.setup = mock.MagicMock()
  package.errors = wandb.errors
  return package


class DashboardsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))
    self.workdir = self.folder / "run"
    shutil.copytree(OLD_RUN, self.workdir)
    rows = (OLD_RUN / "metrics.jsonl").read_text().splitlines()
    # A text and a missing number, as rows of some runs have.
    self.rows = [START] + [
        json.loads(row) | {"slow_because": "compute", "sign": None}
        for row in rows
    ]

  def send(self, rows, workdir=None):
    with dashboards.opened(Config(k=7.0), workdir or self.workdir) as log:
      for row in rows:
        log(row)

  def bytes_until(self, index):
    """Ten clients; an element up or down is 8 bytes."""
    elements = [r["k_up"] + r["k_down"] for r in self.rows[1 : index + 1]]
    return 10 * 8 * sum(elements)

  def replaced(self, name):
    package = fake_package()
    self.enterContext(mock.patch.dict(sys.modules, {name: package}))
    self.enterContext(mock.patch.dict(os.environ))
    self.enterContext(given(f"--{name}=project"))
    return package

  @parameterized.parameters(("wandb", "time"), ("trackio", "normalised_time"))
  def test_columns(self, name, time):
    """Each row's numbers and all bytes until then, also if the run goes on."""
    package = self.replaced(name)
    self.send(self.rows[:3])
    self.send(self.rows[3:])
    logged = {
        call.kwargs["step"]: call.args[0]
        for session in package.sessions
        for call in session.log.mock_calls
    }
    self.assertEqual(sorted(logged), [0, 1, 2, 3, 4])
    self.assertEqual(
        logged[0], {
            time: 0.0, "bytes": 0.0, "train_loss": 2.5, "test_loss": 2.5,
            "test_accuracy": 0.125,
        }
    )
    for row in self.rows:
      numbers = logged[row["round"]]
      self.assertEqual(numbers["bytes"], self.bytes_until(row["round"]))
      self.assertEqual(numbers[time], row["time"])
      self.assertEqual(numbers.get("k"), row.get("k"))
      self.assertNoCommonElements(numbers, ("round", "slow_because", "sign"))
    kwargs = package.sessions[0].kwargs
    self.assertEqual(kwargs["project"], "project")
    self.assertEqual(kwargs["resume"], "allow")
    self.assertEqual(kwargs["config"]["k"], 7.0)

  def test_axes_of_wandb(self):
    """Time and bytes are axes, without figures of their own."""
    package = self.replaced("wandb")
    self.send(self.rows)
    (session,) = package.sessions
    self.assertCountEqual(
        session.define_metric.mock_calls,
        [mock.call(x, hidden=True) for x in ("time", "seconds", "bytes")],
    )
    session.finish.assert_called_once_with()

  @parameterized.parameters("wandb", "trackio")
  def test_ids(self, name):
    """Law: a run that goes on has its id; no two folders have the same.

    Not either if one was copied from the other, or begun anew.
    """
    package = self.replaced(name)

    def id_of(workdir, first):
      self.send(self.rows[first : first + 1], workdir)
      kwargs = package.sessions[-1].kwargs
      return kwargs["id"] if name == "wandb" else kwargs["name"]

    copied = self.folder / "copies" / "run"
    ids = [id_of(self.workdir, 0), id_of(self.workdir, 3)]
    shutil.copytree(self.workdir, copied)
    ids += [id_of(copied, 2), id_of(copied, 3), id_of(self.workdir, 4)]
    ids += [id_of(self.workdir, 0)]
    original, again, copy, of_copy, later, anew = ids
    self.assertEqual([again, later, of_copy], [original, original, copy])
    self.assertLen({original, copy, anew}, 3)

  def test_tensorboard(self):
    """Evaluations are there against each axis; all numbers against rounds."""
    rows = [row | {"seconds": row["time"] / 60} for row in self.rows]
    with given("--tensorboard"):
      self.send(rows)
    place = self.workdir / "tensorboard"
    by_round = scalars_of(place)
    self.assertEqual([step for step, _ in by_round["k"]], [1, 2, 3, 4])
    self.assertNotIn("slow_because", by_round)
    for folder, x in (
        ("by_time", lambda row: row["time"]),
        ("by_milliseconds", lambda row: row["seconds"] * 1000),
        ("by_kilobytes", lambda row: self.bytes_until(row["round"]) / 1000),
    ):
      scalars = scalars_of(place / folder)
      self.assertCountEqual(
          scalars,
          [f"{folder}/{y}" for y in START if y not in ("round", "time")],
      )
      points = scalars[f"{folder}/test_loss"]
      evaluated = [row for row in rows if "test_loss" in row]
      for row, (step, loss) in zip(evaluated, points, strict=True):
        self.assertEqual(step, round(x(row)))
        self.assertAlmostEqual(row["test_loss"], loss, places=5)

  def test_tensorboard_of_a_run_that_goes_on(self):
    """Law: what TensorBoard shows is that of a run without a stop."""
    other = self.folder / "other"
    shutil.copytree(self.workdir, other)
    clock = itertools.count(1_000_000_000.0)
    with given("--tensorboard"), mock.patch("time.time", clock.__next__):
      self.send(self.rows, other)
      self.send(self.rows[:4])
      self.send(self.rows[2:])
    for folder in ("", "by_time", "by_kilobytes"):
      place = Path("tensorboard", folder)
      self.assertEqual(
          scalars_of(self.workdir / place), scalars_of(other / place)
      )

  @parameterized.parameters("me/project", "", "a" * 200)
  def test_no_project(self, project):
    with given(f"--wandb={project}"):
      with self.assertRaisesRegex(ConfigError, f"^--wandb={project}: must be "):
        self.send([])

  def test_no_project_of_trackio(self):
    package = self.replaced("trackio")
    package.init = mock.Mock(side_effect=ValueError("not\nthis"))
    with self.assertRaisesRegex(ConfigError, r"^--trackio=project: .*\(not\)$"):
      self.send(self.rows[:1])

  def test_nobody_is_logged_in(self):
    """Says so before there is anything of the run."""
    place = self.folder / "new"
    wandb.teardown()
    with mock.patch.dict(
        os.environ, WANDB_MODE="online", WANDB_API_KEY="", NETRC=os.devnull,
        WANDB_CONFIG_DIR=str(self.folder),
    ):
      error, _ = main(run, "--wandb=project", f"--workdir={place}")
    wandb.teardown()
    self.assertFalse(place.exists())
    self.assertStartsWith(error, "error: --wandb=project: must be ")
    self.assertIn("wandb login", error)
    self.assertLen(error.splitlines(), 1)

  def test_no_connection(self):
    lost = wandb.errors.CommError("no route\nto the host")
    with (
        given("--wandb=project"),
        mock.patch.dict(os.environ, WANDB_MODE="offline"),
        mock.patch.object(wandb, "init", side_effect=lost),
        self.assertRaisesRegex(ConfigError, r"^--wandb=.*\(no route\);"),
    ):
      self.send(self.rows[:1])


if __name__ == "__main__":
  absltest.main()
