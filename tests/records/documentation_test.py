"""The page "Files and columns" and a real run name the same things."""

import dataclasses
import re
import tempfile
from pathlib import Path

from absl.testing import absltest

from agsfl import records, simulation
from agsfl.config import Config
from agsfl.records.columns import COLUMNS
from agsfl.records.summary import ADDED
from experiments.lib import drawing
from tests import small

PAGE = (Path(records.__file__).parent / "README.md").read_text()


def named(title):
  """The names in the first cells of a section's tables."""
  _, section = PAGE.split(f"\n## {title}\n")
  section, *_ = section.split("\n## ")
  cells = re.findall(r"(?m)^\| (`[^|]*) \|", section)
  return [name for cell in cells for name in re.findall("`([^`]+)`", cell)]


class DocumentationTest(absltest.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.workdir = Path(
        cls.enterClassContext(tempfile.TemporaryDirectory()), "run"
    )
    cls.run_ = simulation.simulate(
        small.config(
            num_rounds=3, eval_every=2, clients_per_round=5.0, dropout=0.1,
            clock="constant", seconds_per_sample=0.1,
        ),
        workdir=cls.workdir,
    )
    drawing.draw(cls.run_)

  def test_columns(self):
    """Each section has the columns that there are, and no other ones."""
    self.assertCountEqual(named("metrics.jsonl"), COLUMNS)
    self.assertCountEqual(named("summary.json"), ADDED)
    head = (self.workdir / "clients.csv").read_text().splitlines()[0]
    self.assertEqual(named("clients.csv"), head.split(","))
    self.assertEqual(
        named("client_evaluations.npy"),
        list(self.run_.client_evaluations.dtype.names),
    )
    settings = {field.name for field in dataclasses.fields(Config)}
    self.assertCountEqual(
        named("config.json"), self.run_.config.keys() - settings
    )

  def test_columns_of_the_run(self):
    """All groups of columns but those of other tasks, and no other ones."""
    start, rows = self.run_.start, self.run_.rows
    columns = COLUMNS - {"test_perplexity", "test_rmse"}
    self.assertEqual(set().union(*rows), columns)
    of_evaluations = rows[1].keys() - rows[0].keys()
    self.assertEqual(
        start.keys(), of_evaluations | {"round", "time", "seconds"}
    )
    self.assertEqual(self.run_.summary.keys() - rows[-1].keys(), ADDED)

  def test_files(self):
    """Each file of the run is there, and each file that is there is written."""
    files = set(named("Files of a run"))
    entries = {
        f"{path.name}/*.png" if path.name == "figures"
        else f"{path.name}/" if path.is_dir() else path.name
        for path in self.workdir.iterdir()
    }
    elsewhere = {  # of sweeps and dashboards
        "log.txt", "tensorboard/", "wandb/", "wandb_id.txt", "trackio_id.txt",
    }
    self.assertEqual(files - elsewhere, entries)
    (line,) = re.findall(r"(?m)^\| `figures/\*\.png` .*", PAGE)
    for figure in (self.workdir / "figures").iterdir():
      self.assertIn(f"`{figure.stem}`", line)


if __name__ == "__main__":
  absltest.main()
