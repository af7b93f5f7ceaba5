"""Small runs, commands in this process, and what of files must be the same."""

import contextlib
import io
import json
from pathlib import Path
from unittest import mock

import hypothesis
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from absl.testing import flagsaver

from agsfl.config import Config
from agsfl.records import fairness
from experiments.lib import scripts

# Whether hypothesis tries many inputs; see conftest.py.
MANY = hypothesis.settings.default.max_examples >= 1000


class Killed(Exception):
  """The process ends by force, as far as a test goes."""


def config(**settings):
  """A run of a second or two, with state in every place.

  Its method is the one that compiles fastest and has a state.
  """
  return Config(**{
      "dataset": "digits",
      "model": "mlp",
      "method": "periodic_k",
      "num_clients": 10,
      "batch_size": 4,
      "num_rounds": 14,
      "eval_every": 5,
      "num_devices": 1,
      **settings,
  })


class RoundRows(list):
  """A list of the rows of rounds; that of round 0 is left out."""

  def append(self, row):
    if row["round"]:
      super().append(row)


def stop_after(rounds):
  """Asks a run to stop when it has made that many new rounds."""
  seen = RoundRows()
  return {"on_row": seen.append, "should_stop": lambda: len(seen) >= rounds}


def kill_at(round_index):
  """Ends a run by force at the row of this round."""

  def on_row(row):
    if row["round"] == round_index:
      raise Killed

  return on_row


def rows_of(workdir):
  """The rows of rounds on disk, read by Python's own means."""
  lines = (Path(workdir) / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return [row for row in rows if row["round"]]


def without_evaluation(rows):
  """The rows but for what an evaluation adds."""
  columns = ("train_loss", "test_loss", "test_accuracy", *fairness.SPREAD)
  return [
      {name: x for name, x in row.items() if name not in columns}
      for row in rows
  ]


def state_of(workdir):
  """The saved state's step, and its arrays bit for bit."""
  (place,) = (Path(workdir) / "checkpoints").iterdir()
  arrays = ocp.StandardCheckpointer().restore(place / "default")
  return int(place.name), {
      name: (x.dtype, x.shape, np.asarray(x).tobytes())
      for name, x in arrays.items()
  }


def ends_of(workdir):
  """What a run comes to, but for its rows and wall times."""
  workdir = Path(workdir)
  summary = json.loads((workdir / "summary.json").read_text())
  return {
      "clients": (workdir / "clients.csv").read_bytes(),
      "params": (workdir / "params.npy").read_bytes(),
      "summary": {
          name: value
          for name, value in summary.items()
          if not name.endswith(("_seconds", "_mb"))
      },
  }


def content_of(workdir):
  """All that must be the same, however often a run was stopped."""
  workdir = Path(workdir)
  return {
      **ends_of(workdir),
      "rows": (workdir / "metrics.jsonl").read_bytes(),
      "evaluations": (workdir / "client_evaluations.npy").read_bytes(),
      "config": json.loads((workdir / "config.json").read_text()),
  }


def files_of(folder):
  """Every file below a folder, and its bytes."""
  return {
      str(path.relative_to(folder)): path.read_bytes()
      for path in Path(folder).rglob("*")
      if path.is_file()
  }


@contextlib.contextmanager
def given(*arguments):
  """The flags as this command line sets them."""
  with flagsaver.flagsaver():
    flags.FLAGS(["command", *map(str, arguments)])
    yield


def main(script, *arguments):
  """Runs a command in this process, for a process takes seconds to start.

  Returns:
    (its error where the exit code is 1, or else the code; what it printed).
  """
  words = [str(argument) for argument in arguments]
  names = [word for word in words if not word.startswith("--")]
  printed, errors = io.StringIO(), io.StringIO()
  with (
      given(*[word for word in words if word.startswith("--")]),
      mock.patch.object(scripts, "start"),
      contextlib.redirect_stdout(printed),
      contextlib.redirect_stderr(errors),
  ):
    try:
      script.main(["command", *names])
    except SystemExit as end:
      if end.code == 1:
        return errors.getvalue(), printed.getvalue()
      return end.code, printed.getvalue() + errors.getvalue()
  return 0, printed.getvalue()
