"""The report: its numbers are those of the records, and it needs no other file.

Folders are made by hand; nothing is trained.
"""

import csv
import dataclasses
import html.parser
import importlib.util
import io
import json
import math
import shutil
import struct
import tempfile
import unittest
from pathlib import Path
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records import traffic
from agsfl.records.fairness import SPREAD
from agsfl.records.folder import write_json
from agsfl.records.moment import Moment
from agsfl.records.strict_json import finite
from agsfl.records.tables import write_clients
from agsfl.sparsifiers import METHODS
from experiments.lib import curves, groups
from experiments.report import __main__ as report
from experiments.report import charts, page, runs
from tests import small

NUM_WEIGHTS = 40


def write_run(
    workdir,
    ups=(10, 20, 30, 5),
    downs=(10, 20, 30, 6),
    losses=(2.0, 1.5, 1.25, 0.875),
    samples=(4, 7, 3),
    names=("ann", "bob", "cy"),
    contributed=(1, 2, 3),
    finished=True,
    evaluate=lambda round_index: round_index % 2 == 0,
    summary=(),
    config=(),
    row=lambda round_index, up, down: {},
    **settings,
):
  """Writes a run's folder, as version 0.1 did; returns its rows.

  Args:
    row: what each row has more, of (round, elements up, elements down).
  """
  asked = dataclasses.asdict(Config(**settings))
  asked |= {name: value for name, value in dict(config).items()
            if name in asked and name != "k"}
  used = asked | {
      "controller": Config(**settings).used_controller,
      "k": Config(**settings).k or 1000.0,
      "num_weights": NUM_WEIGHTS, "num_clients_used": len(names),
      "versions": {"jax": "0.0"}, **dict(config),
  }
  workdir.mkdir(parents=True, exist_ok=True)
  write_json(workdir / "config.json", {**used, "asked": asked})
  rows = []
  for i, (up, down, loss) in enumerate(
      zip(ups, downs, losses, strict=True), 1
  ):
    rows.append({
        "round": i, "time": 1.25 * i, "k": up + 0.5, "k_probe": up - 1.0,
        "k_up": up, "k_down": down, "minibatch_loss": loss, "sign": None,
        **row(i, up, down),
    })
    if evaluate(i):
      rows[-1] |= {
          "train_loss": loss, "test_loss": loss + 0.125,
          "test_accuracy": 1 / (1 + loss),
      }
  lines = [json.dumps(row) + "\n" for row in rows]
  (workdir / "metrics.jsonl").write_text("".join(lines))
  if finished:
    count = len(names)
    write_clients(workdir / "clients.csv", {
        "client": names, "samples": samples, "test_samples": [2] * count,
        "test_loss": ([0.5, math.nan, 0.25] * count)[:count],
        "test_accuracy": ([0.5, math.nan, 1.0] * count)[:count],
        "contributed": contributed,
    })
    more = {"median_round_seconds": 0.0625, **dict(summary)}
    write_json(
        workdir / "summary.json",
        {name: finite(value) for name, value in {**rows[-1], **more}.items()},
    )
  return rows


class Page(html.parser.HTMLParser):
  """The elements of a page, its headings, and the text of its scripts."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.attributes, self.texts = [], [], {}
    self._open = []
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    if tag not in ("meta", "input"):
      self._open.append(tag)

  def handle_endtag(self, tag):
    opened = self._open.pop()
    assert opened == tag, (opened, tag)

  def handle_data(self, text):
    if self._open:
      self.texts.setdefault(self._open[-1], []).append(text)

  @property
  def report(self):
    """The data of the page."""
    return json.loads(self.texts["script"][0])


def value_of(cell):
  return cell[0] if isinstance(cell, list) else cell


def pairs(table):
  """The values of a table of a single row, by the titles of the columns."""
  (row,) = table["rows"]
  titles = [one["title"] for one in table["columns"]]
  return dict(zip(titles, map(value_of, row), strict=True))


def column(table, title):
  """The values of a column by the heads of the rows."""
  index = [one["title"] for one in table["columns"]].index(title)
  return {row[0]: value_of(row[index]) for row in table["rows"]}


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def shown(self, *folders):
    """The data of the page about some folders, with tables by their titles."""
    _, found = runs.read_all(folders or [self.folder])
    made = page.data(found)
    made["tables"] = {table["title"]: table for table in made["tables"]}
    return made

  def page(self, *folders):
    """The page of some folders; well formed."""
    return Page(page.page(*runs.read_all(folders or [self.folder])))


class OneRunTest(FolderTest):

  def test_results_are_the_records(self):
    rows = write_run(self.folder / "a")
    results = pairs(self.shown()["tables"]["Results"])
    self.assertEqual(results["state"], "finished")
    for title, want in (
        ("training loss", rows[-1]["train_loss"]),
        ("test loss", rows[-1]["test_loss"]),
        ("test accuracy", rows[-1]["test_accuracy"]),
        ("rounds", 4),
        ("normalised time", 5.0),
        ("mean k, second half", (30.5 + 5.5) / 2),
        ("Jain's index of contributions", 36 / 42),
        ("wall time per round", 0.0625),
    ):
      self.assertEqual(results[title], want, title)

  def test_results_at_a_point(self):
    """Rounds 2 and 4 end at 2.5 and 5; the losses between them are linear."""
    write_run(self.folder)
    _, found = runs.read_all([self.folder])
    made = page.data(found, Moment("time", 4.0))
    results = pairs(made["tables"][0])
    for title, want in (
        ("training loss", 1.5 + (4 - 2.5) / 2.5 * (0.875 - 1.5)),
        ("rounds", 3), ("k", 30.5), ("sent up", 3 * 8 * 60),
    ):
      self.assertAlmostEqual(results[title], want, msg=title)
    self.assertNotIn("wall time per round", results)
    self.assertEqual(made["when"], "at normalised time 4")
    self.assertEqual(made["moment"], {"against": "time", "value": 4.0})

  def test_fairness(self):
    """Two more charts, and rows of the table, of the last evaluation.

    At round 2: mean 0.5, std 0.25, worst 0, best 1, index 0.75; then halves.
    """
    numbers = dict(zip(SPREAD, (0.5, 0.25, 0.0, 1.0, 0.75), strict=True))
    spread = lambda i, up, down: {
        name: value * 2 / i for name, value in numbers.items() if i % 2 == 0
    }
    write_run(self.folder, row=spread)
    made = self.shown()
    results = pairs(made["tables"]["Results"])
    for title, want in (
        ("test accuracy, worst 10% of clients", 0.0),
        ("test accuracy, best 10% of clients", 0.5),
        ("test accuracy, mean over clients", 0.25),
        ("test accuracy, deviation over clients", 0.125),
        ("test accuracy, Jain's index", 0.375),
    ):
      self.assertEqual(results[title], want, title)
    accuracies, index = (
        chart["lines"][0]["points"]["time"]
        for chart in made["charts"]
        if "of clients, each" in chart["title"] or "Jain's" in chart["title"]
    )
    self.assertEqual(accuracies, [[2.5, 5], [0.5, 0.25], [0, 0], [1, 0.5]])
    self.assertEqual(index, [[2.5, 5], [0.75, 0.375]])

  def test_fairness_of_settings(self):
    """A line each, of the worst tenth; a run of version 0.1 has none."""
    for name, worst in (("fab", 0.25), ("fub", 0.125)):
      write_run(
          self.folder / name, method=f"{name}_top_k",
          row=lambda i, up, down, worst=worst: dict.fromkeys(SPREAD, worst)
          if i % 2 == 0 else {},
      )
    write_run(self.folder / "old", method="send_all")
    made = self.shown()
    self.assertEqual(
        column(
            made["tables"]["Results by setting"],
            "test accuracy, worst 10% of clients",
        ),
        {"fab_top_k": 0.25, "fub_top_k": 0.125, "send_all": None},
    )
    # A column that only decides is shown too.
    _, found = runs.read_all([self.folder])
    table = page.data(found, best_by=SPREAD[1])["tables"][0]
    self.assertEqual(table["by"], "test accuracy, deviation over clients")
    self.assertEqual(
        column(table, table["by"]),
        {"fab_top_k": 0.25, "fub_top_k": 0.125, "send_all": None},
    )
    (best,) = table["best"]
    self.assertEqual(table["rows"][best][0], "fub_top_k")
    (chart,) = (x for x in made["charts"] if "worst 10%" in x["title"])
    self.assertEqual(
        {
            made["lines"][line["style"]]["name"]: line["points"]["time"]
            for line in chart["lines"]
        },
        {
            "fab_top_k": [[2.5, 5], [0.25, 0.25]],
            "fub_top_k": [[2.5, 5], [0.125, 0.125]],
        },
    )

  @parameterized.parameters(
      # 10 + 20 + 30 + 5 = 65 elements up, 66 down, 2 clients with samples.
      ("fab_top_k", 8, 2 * 8 * 65, 2 * 8 * 66),
      ("unidirectional_top_k", 8, 1040, 1056),
      ("periodic_k", 4, 520, 528),
      ("send_all", 4, 520, 528),
      ("fedavg", 4, 520, 528),
  )
  def test_bytes_by_hand(self, method, each, up, down):
    write_run(self.folder, method=method, min_samples=0, samples=(4, 0, 3))
    made = self.shown()["tables"]
    sizes = pairs(made["Bytes"])
    # D = 40 values of 4 bytes, up and down, 4 rounds, 2 clients.
    whole = 4 * 40 * 2 * 4 * 2
    for title, want in (
        ("clients", 2), ("bytes per element", each),
        ("elements up, a client", 65), ("elements down, a client", 66),
        ("up, all clients", up), ("down, all clients", down),
        ("of sending all D", (up + down) / whole),
    ):
      self.assertEqual(sizes[title], want, title)
    results = pairs(made["Results"])
    self.assertEqual(results["sent up"], up)
    self.assertEqual(results["sent down"], down)

  def test_a_method_of_the_user(self):
    """The page shows its name, the bytes of its rows, and its own metrics."""
    write_run(
        self.folder,
        config={"method": "mine", "controller": "my_rule"},
        row=lambda i, up, down: {
            "bytes_up": 5 * up, "bytes_down": down, "norm": i / 2
        },
    )
    made = self.shown()
    self.assertEqual(made["title"], "mine with my_rule on mnist_5k")
    sizes = pairs(made["tables"]["Bytes"])
    self.assertEqual(sizes["up, all clients"], 3 * 5 * 65)
    self.assertEqual(sizes["down, all clients"], 3 * 66)
    self.assertEqual(sizes["bytes per element"], (5 * 65 + 66) / (65 + 66))
    (chart,) = (x for x in made["charts"] if x["title"] == "Norm")
    self.assertEqual(
        chart["lines"][0]["points"]["time"],
        [[1.25, 2.5, 3.75, 5], [0.5, 1, 1.5, 2]],
    )

  def test_clients(self):
    write_run(self.folder)
    table = self.shown()["tables"]["3 clients"]
    self.assertEqual([one["title"] for one in table["columns"]], [
        "client", "samples", "test samples", "test loss", "test accuracy",
        "elements contributed",
    ])
    self.assertEqual(table["rows"], [
        ("ann", 4, 2, 0.5, 0.5, 1),
        ("bob", 7, 2, None, None, 2),
        ("cy", 3, 2, 0.25, 1.0, 3),
    ])

  def test_settings(self):
    """Main and changed ones first, each of config.json once."""
    write_run(self.folder, comm_time=12.5, power=3.0)
    made = self.shown()["tables"]
    main, rest = (
        pairs(table)
        for table in made.values() if table["section"] == "Settings"
    )
    self.assertEqual(main["comm_time"], 12.5)
    self.assertEqual(main["power"], 3)
    self.assertEqual(main["controller"], "sign_interval")
    self.assertNotIn("batch_size", main)
    self.assertEqual(rest["batch_size"], 32)
    self.assertEqual(rest["time_budget"], "none")
    self.assertEqual(rest["versions.jax"], "0.0")
    config = json.loads((self.folder / "config.json").read_text())
    self.assertEmpty(set(main) & set(rest))
    self.assertEqual(
        {*main, *rest} - {"versions.jax"}, {*config} - {"asked", "versions"}
    )

  def test_charts(self):
    """Each has its lines on every axis, and a text for screen readers.

    Until round 2 all 3 clients sent (10 + 20) elements of 8 bytes, twice.
    """
    write_run(self.folder)
    made = self.shown()
    self.assertEqual(
        [chart["title"] for chart in made["charts"]],
        ["Loss", "Test accuracy", "Elements per message k",
         "Share of clients that contributed this much or less"],
    )
    names = [line["name"] for line in made["lines"]]
    self.assertEqual(names, ["training", "test", "k", "probe k'", "clients"])
    loss, _, k, contributed = made["charts"]
    self.assertEqual([line["style"] for line in loss["lines"]], [0, 1])
    self.assertEqual(loss["lines"][1]["points"], {
        "time": [[2.5, 5], [1.625, 1]], "round": [[2, 4], [1.625, 1]],
        "bytes": [[2 * 3 * 8 * 30, 3 * 8 * 131], [1.625, 1]],
    })
    self.assertEqual(
        loss["words"],
        "Loss. training: from 1.5 to 0.875; test: from 1.625 to 1.",
    )
    self.assertEqual(
        k["lines"][1]["points"]["round"], [[1, 2, 3, 4], [9, 19, 29, 4]]
    )
    self.assertEqual(
        contributed["lines"][0]["points"]["own"],
        [[1, 1, 2, 3], [0, 0.333333, 0.666667, 1]],
    )

  def test_seconds_are_an_axis(self):
    """Only of runs with a clock."""
    write_run(self.folder / "a", row=lambda i, up, down: {
        "seconds": 7.0 * i, "late": 0, "slowest": None,
        "slow_because": "upload",
    })
    write_run(self.folder / "b", method="fub_top_k")
    made = self.shown()
    self.assertIn("seconds", made["axes"])
    first, second = made["charts"][0]["lines"]
    self.assertEqual(first["points"]["seconds"][0], [14, 28])
    self.assertNotIn("seconds", second["points"])

  def test_scales(self):
    """Logarithmic over a factor of 12; accuracies from 0 to 1 unless close."""
    # The test loss is 1/8 above the training loss.
    for losses, log, domain in (
        ((2.0, 12.0, 3.0, 1.0), True, [0, 1]),  # accuracies 1/13 and 1/2
        ((2.0, 11.5, 3.0, 1.0), False, [0, 1]),
        ((2.0, 1.5, 3.0, 1.0), False, None),  # 0.4 and 0.5
    ):
      with self.subTest(losses=losses):
        write_run(self.folder, losses=losses)
        loss, accuracy = self.shown()["charts"][:2]
        self.assertEqual(loss["log"], log)
        self.assertEqual(accuracy["y_scale"].get("domain"), domain)

  def test_without_k(self):
    write_run(self.folder, method="send_all")
    made = self.shown()
    self.assertNotIn("mean k, second half", pairs(made["tables"]["Results"]))
    _, found = runs.read_all([self.folder])
    at_a_point = page.data(found, Moment("time", 4.0))["tables"][0]
    self.assertNotIn("k", pairs(at_a_point))
    self.assertNotIn(
        "Elements per message k", [chart["title"] for chart in made["charts"]]
    )

  def test_losses_that_overflow(self):
    write_run(self.folder, losses=(2.0, math.inf, 3.0, 1.0))
    loss = self.shown()["charts"][0]
    self.assertEqual(loss["lines"][0]["points"]["time"], [[5], [1]])

  def test_structure(self):
    """One file: nothing is loaded, and no name of a file becomes markup."""
    evil = '</script><script>alert("1")</script>'
    write_run(
        self.folder / "<b>&amp;",
        names=(evil, "a&b\x1b[31m\u202e", "'\"> onload=x"),
        config={"dataset": evil, "versions": {evil: evil}, "seed": evil},
        row=lambda i, up, down: {evil: 1.0, "<!--": 2.0},
    )
    write_run(self.folder / "other", config={"dataset": "<i>"}, finished=False)
    for made in (self.page(self.folder / "<b>&amp;"), self.page()):
      # The data, and the program, whose hash the page's policy names.
      self.assertEqual(made.tags.count("script"), 2)
      self.assertNoCommonElements(
          made.tags,
          ("b", "i", "link", "img", "iframe", "object", "embed", "base"),
      )
      names = {name for _, name, _ in made.attributes}
      self.assertNoCommonElements(names, ("src", "href", "srcset"))
      self.assertFalse([name for name in names if name.startswith("on")])
      policy = dict(
          (tag, value) for tag, name, value in made.attributes
          if name == "content" and "default-src" in value
      )["meta"]
      self.assertStartsWith(policy, "default-src 'none'; script-src 'sha256-")
      self.assertNotIn("unsafe-eval", policy)
      words = "".join(made.texts["p"] + made.texts["summary"])
      self.assertIn("<b>&amp;", words)
      (table,) = (
          x for x in made.report["tables"] if x["section"] == "Clients"
      )
      self.assertEqual(
          [row[0] for row in table["rows"]],
          [evil, "a&b\ufffd[31m\ufffd", "'\"> onload=x"],
      )


class UnfinishedTest(FolderTest):

  def test_is_shown_from_its_rows(self):
    rows = write_run(
        self.folder, (3, 4, 5), (3, 4, 5), (3.0, 2.0, 1.0), finished=False
    )
    made = self.shown()
    results = pairs(made["tables"]["Results"])
    self.assertEqual(
        results["state"],
        "unfinished: 3 of at most 300 rounds, last evaluated at 2",
    )
    self.assertEqual(results["training loss"], rows[1]["train_loss"])
    self.assertEqual(results["rounds"], 3)
    self.assertEqual(results["sent up"], 3 * 8 * 12)
    self.assertIsNone(results["Jain's index of contributions"])
    self.assertEqual(
        [line["stopped"] for line in made["charts"][0]["lines"]], [True] * 2
    )
    words = "".join(self.page().texts["p"])
    self.assertIn("No run is finished", words)
    self.assertIn("not known until its end", words)

  @parameterized.parameters(0, 1)
  def test_before_its_first_evaluation(self, rounds):
    write_run(
        self.folder, *([9] * rounds for _ in range(3)), finished=False
    )
    results = pairs(self.shown()["tables"]["Results"])
    self.assertEqual(
        results["state"],
        "unfinished: 1 of at most 300 rounds, not evaluated yet"
        if rounds
        else "unfinished: no round of at most 300 is done",
    )
    self.assertIsNone(results["training loss"])
    self.page()

  def test_a_torn_last_line_is_no_row(self):
    write_run(self.folder, finished=False)
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"round": 5, "ti')
    self.assertEqual(pairs(self.shown()["tables"]["Results"])["rounds"], 4)

  def test_stands_alone(self):
    """It is not averaged with the finished runs of its setting."""
    for seed in range(3):
      write_run(self.folder / f"seed{seed}", seed=seed, finished=seed < 2)
    made = self.shown()
    table = made["tables"]["Results by setting"]
    unfinished = "fab_top_k, sign_interval, seed=2, unfinished"
    self.assertEqual(
        column(table, "runs"), {"fab_top_k, sign_interval": 2, unfinished: 1}
    )
    self.assertEqual(
        column(table, "state")[unfinished],
        "unfinished: 4 of at most 300 rounds, last evaluated at 4",
    )
    self.assertEqual(made["unfinished"], 1)


class SeveralRunsTest(FolderTest):

  def write_study(self):
    """Two settings, of two seeds and one; seeds of other lengths."""
    write_run(self.folder / "fab" / "seed2", seed=2)
    write_run(
        self.folder / "fab" / "seed10", (6, 8), (6, 8), (4.0, 3.0), seed=10
    )
    write_run(self.folder / "deep" / "er" / "x", method="periodic_k", k=7.0)

  def test_seeds_are_one_line(self):
    self.write_study()
    made = self.shown()
    table = made["tables"]["Results by setting"]
    self.assertEqual(
        column(table, "runs"), {"fab_top_k": 2, "periodic_k": 1}
    )
    self.assertEqual(
        column(table, "training loss"),
        {"fab_top_k": (0.875 + 3.0) / 2, "periodic_k": 0.875},
    )
    # 3 clients: 8 bytes of 65 and of 14 elements; 4 of 65.
    self.assertEqual(
        column(table, "sent up"),
        {"fab_top_k": 12 * (65 + 14), "periodic_k": 780},
    )
    (row,) = (row for row in table["rows"] if row[0] == "fab_top_k")
    self.assertIn([1.9375, "1.9375 ± 1.1", 1.0625], row)
    self.assertIn([948, "0.948 ± 0.61", 612], row)
    differ = made["tables"]["Settings that differ"]
    self.assertEqual(
        column(differ, "seed"), {"fab_top_k": "2, 10", "periodic_k": 0}
    )
    self.assertEqual(
        column(differ, "k"), {"fab_top_k": 1000, "periodic_k": 7}
    )
    self.assertEqual(made["title"], "3 runs of 2 settings")
    common = pairs(made["tables"]["Settings that are common"])
    self.assertEqual(common["comm_time"], 10)
    self.assertNoCommonElements(common, ("seed", "k", "method"))

  def test_each_run(self):
    """Each once, even if its folder is given twice."""
    self.write_study()
    made = self.shown(self.folder / "fab" / "seed2", self.folder)
    losses = column(made["tables"]["Results of each run"], "training loss")
    self.assertEqual(losses, {
        "deep/er/x": 0.875, "fab/seed2": 0.875, "fab/seed10": 3.0,
    })

  def test_best_and_order(self):
    """Accuracy decides, or the column that the user names; it orders rows."""
    self.write_study()
    _, found = runs.read_all([self.folder])
    for key, title, want, top in (
        (None, "test accuracy", ["fab_top_k", "periodic_k"], "periodic_k"),
        ("train_loss", "training loss", ["periodic_k", "fab_top_k"],
         "periodic_k"),
        ("bytes", "bytes sent", ["periodic_k", "fab_top_k"],
         "periodic_k"),
        ("round", "rounds", ["fab_top_k", "periodic_k"], "fab_top_k"),
        ("k", "test accuracy", ["fab_top_k", "periodic_k"], "periodic_k"),
    ):
      with self.subTest(key=key):
        best_by = key if key != "k" else None
        made = page.data(found, None, key, best_by or "test_accuracy")
        table = made["tables"][0]
        self.assertEqual([row[0] for row in table["rows"]], want)
        self.assertEqual(table["by"], title)
        self.assertEqual([table["rows"][i][0] for i in table["best"]], [top])

  def test_survivors_do_not_win(self):
    """Law: a mean that is not over all runs says so, and is not the best."""
    self.write_study()
    _, found = runs.read_all([self.folder])
    made = page.data(found, Moment("round", 3.0), "test_loss", "test_loss")
    table = made["tables"][0]
    survivors, best = [
        next(row for row in table["rows"] if row[0] == name)
        for name in ("fab_top_k", "periodic_k")
    ]
    self.assertIn([1.1875, "1.1875 (1 of 2)", 0.0, 1], survivors)
    self.assertIn([1.1875, "1.1875"], best)
    self.assertEqual(table["rows"], [best, survivors])
    self.assertEqual(table["best"], [0])
    self.assertEqual(made["partly"], groups.PARTLY)
    self.assertEqual(page.data(found)["partly"], "")

  def test_band_covers_what_all_have_seen(self):
    """y = t on 1, 2, 4 and y = 3 t on 2, 5: both known on 2..4."""
    band = curves.band([
        (np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])),
        (np.array([2.0, 5.0]), np.array([6.0, 15.0])),
    ])
    self.assertEqual(band.x.tolist(), [2, 4])
    np.testing.assert_allclose(band.mean, [4, 8])
    np.testing.assert_allclose(band.least, [2, 4])
    np.testing.assert_allclose(band.greatest, [6, 12])
    line = lambda *x: (np.array(x), np.array(x))
    self.assertIsNone(curves.band([line(1.0), line(2.0)]))
    self.assertIsNone(curves.band([line(1.0, 2.0), line()]))

  def test_labels_tell_settings_apart(self):
    # By value: as text 10 would come before 9.5.
    for k in (10.0, 9.5):
      for method in ("fab_top_k", "fub_top_k"):
        write_run(self.folder / f"{method}{k}", k=k, method=method)
    write_run(self.folder / "again", k=10.0)
    _, found = runs.read_all([self.folder])
    self.assertEqual(
        [(group.label, len(group.runs)) for group in runs.group(found)],
        [
            ("fab_top_k, k=9.5", 1), ("fab_top_k, k=10", 2),
            ("fub_top_k, k=9.5", 1), ("fub_top_k, k=10", 1),
        ],
    )

  def test_labels_are_what_was_asked_for(self):
    """k = "1%", although tables of settings have what was used.

    The same k is another setting if it was asked for in another way, and in
    models of another size.
    """
    for name, k, used in (
        ("a", "10%", 961.0), ("b", "1%", 96.1), ("c", "1%", 96.1),
        ("d", 96.1, 96.1), ("e", "1%", 50.0),
    ):
      write_run(self.folder / name, k=k, config={"k": used}, seed=ord(name))
    made = self.shown()
    table = made["tables"]["Results by setting"]
    self.assertEqual(column(table, "runs"), {
        "k=1%, e": 1, "k=1%, b": 2, "k=96.1": 1, "k=10%": 1
    })
    self.assertEqual(
        [line["name"] for line in made["lines"]],
        ["k=1%, e", "k=1%, b", "k=96.1", "k=10%"],
    )
    differ = column(made["tables"]["Settings that differ"], "k")
    self.assertEqual([*differ.values()], [50, 96.1, 96.1, 961])
    # Half the range of equal numbers is 0; a run alone has none.
    losses = [row[2] for row in table["rows"][:2]]
    self.assertEqual(losses, [[0.875, "0.8750"], [0.875, "0.8750", 0.0]])

  def test_a_wide_sweep(self):
    """Every line is in every chart, and has a style of its own."""
    for i in range(33):
      write_run(self.folder / f"k{i}", k=float(i + 1))
    made = self.shown()
    self.assertLen(made["tables"]["Results by setting"]["rows"], 33)
    for chart in made["charts"]:
      styles = [line["style"] for line in chart["lines"]]
      self.assertEqual(styles, [*range(33)])
    looks = [(i % 8, *line["dash"]) for i, line in enumerate(made["lines"])]
    self.assertLen({*looks[:32]}, 32)
    self.assertEqual(looks[32], looks[0])
    words = "".join(self.page().texts["p"])
    self.assertIn("some lines look alike", " ".join(words.split()))

  def test_long_lines_are_thin(self):
    """The extremes stay, and the data of a page are small."""
    y = np.sin(np.arange(50_000.0))
    low = y - 1
    y[777], y[31_000], low[40_123] = 9, -9, -20
    x, thinned, edge = charts.thin(600, np.arange(50_000.0), y, low)
    self.assertLess(len(x), 700)
    self.assertEqual((thinned.max(), thinned.min()), (9, -9))
    self.assertEqual(edge.min(), -20)
    self.assertEqual((x[0], x[-1]), (0, 49_999))
    self.assertTrue(np.all(np.diff(x) > 0))
    # 40 settings with bands, 10,000 rounds and 4 axes: 7 charts have 4 MB.
    values = np.random.default_rng(0).random((4, 10_000)) * 1e5
    values[0] = np.arange(10_000)
    points = dict.fromkeys(curves.AXIS_TITLES, tuple(values))
    chart = charts.chart("", "", "", [charts.Line("a", points)] * 40)
    text = json.dumps(chart, separators=(",", ":"))
    self.assertLess(7 * len(text), 4.2e6)


class DamageTest(FolderTest):
  """read_test has all kinds of damage."""

  def test_a_damaged_run_of_a_study(self):
    """It is named, with its file and line."""
    write_run(self.folder / "a")
    write_run(self.folder / "b", finished=False)
    path = self.folder / "b" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"round": 2', '"round": 7'))
    with self.assertRaises(ConfigError) as caught:
      self.shown()
    (line,) = str(caught.exception).splitlines()
    for word in (
        str(self.folder / "b"), "metrics.jsonl, line 2", "round is 7"
    ):
      self.assertIn(word, line)


class ScriptTest(FolderTest):

  def test_out(self):
    """The page stands in place of the old one; main_test starts a process."""
    write_run(self.folder / "runs" / "a")
    out = self.folder / "page.html"
    out.write_text("old")
    result = small.main(report, self.folder / "runs", f"--out={out}")
    self.assertEqual(result, (0, f"report: {out}\n"))
    found = runs.read_all([self.folder / "runs" / "a"])
    want = page.page(*found, None, None, "test_accuracy")
    self.assertEqual(out.read_text(encoding="utf-8"), want)
    self.assertEqual({*self.folder.iterdir()}, {out, self.folder / "runs"})

  def test_at_a_point(self):
    """The flags of the comparison reach the page."""
    for name, losses in (("a", (3, 2.0, 1.5, 1)), ("b", (3, 2.5, 2, 0.5))):
      write_run(self.folder / name, losses=losses, k=losses[1])
    out = self.folder / "page.html"
    code, _ = small.main(
        report, self.folder, f"--out={out}", "--at_rounds=3",
        "--sort_by=test_loss",
    )
    self.assertEqual(code, 0)
    made = Page(out.read_text(encoding="utf-8"))
    self.assertIn("Results at round 3", made.texts["h2"])
    table = made.report["tables"][0]
    # Half way from 2 to 1, and from 2.5 to 0.5.
    self.assertEqual(
        column(table, "training loss"),
        {"k=2": 1.5, "k=2.5": 1.5},
    )
    self.assertEqual((table["best"], table["by"]), ([0, 1], "test loss"))
    self.assertEqual(made.report["axis"], "round")

  def test_write_is_whole_or_not_at_all(self):
    (self.folder / "file").touch()
    for out in (self.folder / "file" / "x", self.folder, Path()):
      with self.assertRaisesRegex(ConfigError, f"^--out={out}: "):
        report.write(out, "text")
    with self.assertRaises(UnicodeEncodeError):
      report.write(self.folder / "x", "\ud800")
    self.assertEqual([*self.folder.iterdir()], [self.folder / "file"])

  def test_errors_are_one_line(self):
    write_run(self.folder / "a")
    before = sorted(self.folder.rglob("*"))
    for arguments, word in (
        ([], "no folder"),
        ([self.folder / "b"], str(self.folder / "b")),
        ([self.folder / "a", f"--out={self.folder}"], "--out="),
        ([self.folder / "a", "--sort_by=x"], "--sort_by=x: must be a setting"),
        ([self.folder / "a", "--at_time=x"], "--at_time=x: must be"),
    ):
      error, printed = small.main(report, *arguments)
      self.assertEqual(printed, "")
      (line,) = str(error).splitlines()
      self.assertStartsWith(line, "error: ")
      self.assertIn(word, line)
    self.assertEqual(sorted(self.folder.rglob("*")), before)


class CountsTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_elements_cost_what_the_method_says(self, method):
    """Numbers of 4 bytes, as the normalised time counts them."""
    sparsifier = METHODS[method].build()
    accumulated = jnp.arange(12.0).reshape(2, 6) + 1
    selection, _ = jax.jit(sparsifier.select)(
        jax.random.key(0), accumulated, jnp.full(2, 0.5), jnp.int32(2),
        sparsifier.init(2, 6),
    )
    each = traffic.element_bytes(method)
    self.assertEqual(4 * selection.volume_up, each * selection.k_up)
    self.assertEqual(4 * selection.volume_down, each * selection.k_down)

  def test_shares(self):
    """Of 1, 3, 3, 7: a quarter at 1, three at 3, all at 7."""
    x, y = charts.shares(np.array([3, 1, 7, 3]))
    self.assertEqual(x.tolist(), [1, 1, 3, 7])
    self.assertEqual(y.tolist(), [0, 0.25, 0.75, 1])


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)

# Where a point of a line is in the window.
PLACE = """([chart, style, index]) => {
  const {view} = drawn.get(String(chart));
  const row = view.data("points").filter(row => row.line === style).at(index);
  const box = document.querySelector(`[data-chart="${chart}"] svg.marks`)
    .getBoundingClientRect();
  const [left, top] = view.origin();
  return [box.left + left + view.scale("x")(row.x),
          box.top + top + view.scale("y")(row.y)];
}"""
# How many lines each chart draws.
MARKS = """() => boxes.map(
  box => box.querySelectorAll(".mark-line path").length)"""
# The ends of the axes of the first chart.
DOMAIN = """() => ["x", "y"].map(
  name => drawn.get("0").view.scale(name).domain())"""
# Over how many lines a word of the second table's first column goes.
WORD_LINES = """(word) => [...document.querySelectorAll(
  '[data-table="1"] tbody th')].map(({firstChild}) => {
    const range = document.createRange();
    range.selectNodeContents(firstChild);
    return firstChild.data.startsWith(word) && range.getClientRects().length;
  })"""
COLUMN = """([table, index]) => [...document.querySelectorAll(
  `[data-table="${table}"] tbody tr`)].map(row =>
  row.children[index].textContent)"""


@unittest.skipUnless(
    CHROMIUM and importlib.util.find_spec("playwright"),
    "takes Chromium and Playwright",
)
class BrowserTest(FolderTest):
  """The page as a reader uses it; one browser for all."""

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    from playwright import sync_api

    playwright = cls.enterClassContext(sync_api.sync_playwright())
    cls.browser = playwright.chromium.launch(
        executable_path=CHROMIUM, args=["--no-sandbox"]
    )
    cls.addClassCleanup(cls.browser.close)

  def write_page(self, folder, *how):
    """The page of a folder, written beside it."""
    out = self.folder / "page.html"
    report.write(out, page.page(*runs.read_all([folder]), *how))
    return out.as_uri()

  def open(self, address, width=1200, **how):
    """The page in a window; it may neither ask for anything nor complain."""
    shown = self.browser.new_page(
        viewport={"width": width, "height": 844}, **how
    )
    self.addCleanup(shown.close)
    asked, words = [], []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("console", lambda message: words.append(message.text))
    shown.on("pageerror", lambda error: words.append(str(error)))
    self.addCleanup(lambda: self.assertEqual(words, []))
    self.addCleanup(lambda: self.assertEqual({*asked}, {address}))
    shown.goto(address)
    self.soon(shown, "drawn.size === boxes.length", True)
    return shown

  def soon(self, shown, script, want, argument=None):
    """The script gives this value within 5 seconds."""
    for _ in range(100):
      found = shown.evaluate(script, argument)
      if found == want:
        return
      shown.wait_for_timeout(50)
    self.assertEqual(found, want)

  def test_charts(self):
    """Hover, hide, zoom, and the switches of both axes."""
    for seed in (0, 1):
      for k in (5.0, 7.0):
        write_run(
            self.folder / "runs" / f"{k}{seed}", k=k, seed=seed,
            losses=(2.0 * k, 1.5, 1.25, k - 4.75 + seed),
            **(dict.fromkeys(("ups", "downs"), [1] * 4) if k == 5 else {}),
        )
    shown = self.open(self.write_page(self.folder / "runs"))
    marks = lambda want: self.soon(shown, MARKS, [want] * 5)
    chart = shown.locator("[data-chart='0']")
    first, second = shown.locator("#legend button").all()

    def point_at(index):
      chart.scroll_into_view_if_needed()
      shown.mouse.move(*shown.evaluate(PLACE, [0, 1, index]))

    # The last point of the mean over the seeds of k=7, and their range.
    marks(2)
    point_at(-1)
    tip = shown.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    words = tip.text_content()
    for word in ("k=7", "computation)5", "Training loss2.75", "2.25 to 3.25"):
      self.assertIn(word, words)

    # Without Ctrl the wheel scrolls the page; with it the chart is zoomed.
    before = shown.evaluate(DOMAIN)
    shown.mouse.wheel(0, -40)
    shown.wait_for_timeout(100)
    self.assertEqual(shown.evaluate(DOMAIN), before)
    point_at(0)
    shown.keyboard.down("Control")
    shown.mouse.wheel(0, -200)
    shown.keyboard.up("Control")
    self.soon(shown, f"({DOMAIN})()[0][1] < {before[0][1]}", True)
    zoomed = shown.evaluate(DOMAIN)
    self.assertNotEqual(zoomed[1], before[1])

    # A click in the legend hides the line in all charts, and keeps the zoom.
    pressed = lambda: [x.get_attribute("aria-pressed") for x in (first, second)]
    first.click()
    marks(1)
    self.assertEqual(shown.evaluate(DOMAIN), zoomed)
    self.assertEqual(pressed(), ["false", "true"])
    # The only line is asked for once more: all are shown.
    second.click(modifiers=["Shift"])
    marks(2)
    second.dblclick()
    marks(1)
    self.assertEqual(pressed(), ["false", "true"])

    # A saved picture has what is shown, a title and a legend; a PNG is large.
    chart.locator("summary").click()
    saved = {}
    for kind in ("SVG", "PNG"):
      with shown.expect_download() as download:
        chart.locator("a", has_text=kind).click()
      self.assertEqual(
          download.value.suggested_filename, f"Training loss.{kind.lower()}"
      )
      saved[kind] = Path(download.value.path()).read_bytes()
    picture = ElementTree.fromstring(saved["SVG"])
    words = [*picture.itertext()]
    self.assertIn("Training loss", words)
    self.assertIn("k=7", words)
    self.assertNotIn("k=5", words)
    size = [3 * int(picture.get(name)) for name in ("width", "height")]
    self.assertEqual([*struct.unpack(">2I", saved["PNG"][16:24])], size)
    chart.locator("summary").click()
    shown.locator("#all").press("Enter")
    marks(2)

    # A drag moves the chart. A double click brings back the whole of it.
    point_at(0)
    shown.mouse.down()
    shown.mouse.move(*np.add(shown.evaluate(PLACE, [0, 1, 0]), 30).tolist())
    shown.mouse.up()
    self.soon(shown, f"({DOMAIN})()[0][0] < {zoomed[0][0]}", True)
    drawing = chart.locator("svg.marks")
    drawing.dblclick(position={"x": 200, "y": 100})
    self.soon(shown, DOMAIN, before)
    # After a click on the chart the wheel needs no key.
    shown.mouse.wheel(0, -200)
    self.soon(shown, f"({DOMAIN})()[0][1] < {before[0][1]}", True)

    # The switches of x, and of y.
    titles = chart.locator(".role-axis-title text")
    self.assertEqual(titles.all_text_contents(), [
        "normalised time (rounds of computation)", "training loss"
    ])
    shown.locator("#axis").select_option("bytes")
    titles.filter(has_text="bytes sent up and down, all clients").wait_for()
    # Changes that follow each other fast leave one chart in each box.
    shown.evaluate(
        "for (axis.value of ['round', 'time', 'bytes']) axis.onchange()"
    )
    shown.evaluate("work")
    self.assertEqual(chart.locator("summary").count(), 1)
    # The runs end far apart in bytes. Still x is linear until it is switched.
    for name, switch in (("x", "#log-x"), ("y", "[data-log='0']")):
      log = shown.locator(switch)
      self.assertEqual(log.is_checked(), name == "y")
      for kind in ("linear", "log"):
        log.set_checked(kind == "log")
        self.soon(shown, f"drawn.get('0').view.scale('{name}').type", kind)

  def test_tables(self):
    """Sorted by number; the file has all digits, and no formula."""
    for i, loss in enumerate((10.0, 9.5, 0.25)):
      write_run(
          self.folder / "runs" / f"run{i}", losses=(2.0, 1.5, 1.0, loss),
          k=float(i + 1), names=("=1+1", 'a "b", c', "d"),
      )
    write_run(
        self.folder / "runs" / "new", (), (), (), k=9.0, finished=False
    )
    shown = self.open(self.write_page(
        self.folder / "runs", None, None, "test_loss"
    ))
    losses = lambda: shown.evaluate(COLUMN, [0, 3])
    self.assertEqual(losses(), ["10.0000", "9.5000", "0.2500", "\u2013"])
    head = shown.locator("[data-table='0'] thead th").nth(3)
    for order, want in (
        ("ascending", ["0.2500", "9.5000", "10.0000", "\u2013"]),
        ("descending", ["10.0000", "9.5000", "0.2500", "\u2013"]),
    ):
      head.locator("button").press("Enter")
      self.assertEqual(losses(), want)
      self.assertEqual(head.get_attribute("aria-sort"), order)
    # The best comes first: the greatest accuracy, 1 / (1 + loss).
    shown.locator("[data-table='0'] button", has_text="accuracy").click()
    self.assertEqual(losses(), ["0.2500", "9.5000", "10.0000", "\u2013"])
    best = shown.locator(".best th").text_content()
    self.assertIn("k=3 \u2605 best test loss", best)
    # The first column stays where it is.
    first = shown.locator("[data-table='0'] tbody th").first
    left = first.bounding_box()["x"]
    shown.evaluate("document.querySelector('.scroll').scrollLeft = 200")
    self.assertEqual(first.bounding_box()["x"], left)

    # The clients of the first run.
    shown.locator("summary", has_text="run0: 3 clients").click()
    box = shown.locator("[data-table]").filter(has_text="=1+1")
    with shown.expect_download() as download:
      box.get_by_role("button", name="CSV").click()
    text = Path(download.value.path()).read_text(encoding="utf-8")
    self.assertEqual([*csv.reader(io.StringIO(text))], [
        ["client", "samples", "test samples", "test loss", "test accuracy",
         "elements contributed"],
        ["'=1+1", "4", "2", "0.5", "0.5", "1"],
        ['a "b", c', "7", "2", "", "", "2"],
        ["d", "3", "2", "0.25", "1", "3"],
    ])
    # Half the range, and the runs of a mean that is not over all of them.
    table = {"columns": [{"title": "loss"}],
             "rows": [[[1.5, "1.5 ± 0.5", 0.5]], [[2, "2 (1 of 2)", 0, 1]]]}
    self.assertEqual(
        [*csv.reader(io.StringIO(shown.evaluate("csvOf", table)))],
        [["loss", "loss, half range", "loss, runs"], ["1.5", "0.5", ""],
         ["2", "0", "1"]],
    )

  def test_many_clients(self):
    """The first 2,000 rows are shown, and the file has all."""
    many = 2_100
    write_run(
        self.folder / "runs", names=[f"c{i}" for i in range(many)],
        samples=[1] * many, contributed=[1] * many,
    )
    shown = self.open(self.write_page(self.folder / "runs"))
    shown.locator("summary", has_text="2,100 clients").click()
    box = shown.locator("[data-table]").filter(has_text="c1999")
    self.assertIn("The first 2,000 of 2,100 rows", box.text_content())
    self.assertEqual(box.locator("tbody tr").count(), 2_000)
    lines = shown.evaluate("csvOf(report.tables.at(-1)).split('\\r\\n').length")
    self.assertEqual(lines, 1 + many + 1)

  def test_fits_and_asks_for_nothing(self):
    """At any width, light or dark, with long names that are markup."""
    name = "<img src=x onerror=alert(1)>" + "long" * 40
    write_run(self.folder / "runs" / "a", names=(name, "b", "c"))
    write_run(self.folder / "runs" / name[:90], method="fub_top_k")
    write_run(self.folder / "runs" / "c", method="fedavg", finished=False)
    address = self.write_page(self.folder / "runs", Moment("round", 3.0))
    colours = set()
    for width in (390, 1200):
      shown = self.open(address, width)
      shown.evaluate(
          "document.querySelectorAll('main details').forEach(one => "
          "{ one.open = true; })"
      )
      self.soon(
          shown, "document.querySelectorAll('[data-table]:empty').length", 0
      )
      wide = shown.evaluate("document.documentElement.scrollWidth")
      self.assertLessEqual(wide, width)
      # The point of the comparison, and where the unfinished run is.
      chart = shown.locator("[data-chart='0']")
      self.assertEqual(chart.locator(".role-mark.mark-rule line").count(), 1)
      stopped = chart.locator(".mark-symbol path[fill=transparent]")
      self.assertEqual(stopped.count(), 1)
      # The charts follow the system at once.
      for scheme in ("dark", "light"):
        shown.emulate_media(color_scheme=scheme)
        self.soon(
            shown, "document.querySelector('.mark-line path').getAttribute("
            "'stroke') === color('--c0')", True,
        )
        colours.add(shown.evaluate(
            "color('--c0') + getComputedStyle(document.body).backgroundColor"
        ))
    self.assertLen(colours, 2)

  def test_on_a_phone(self):
    """The whole legend, whole words in the first column, values by a tap."""
    for i in range(12):
      write_run(
          self.folder / "runs" / f"learning_rate=0.{i:02},k={i}",
          config={"dataset": f"npz:a/folder/of/samples/by/user/{i}.npz"},
          evaluate=bool,
      )
    shown = self.open(
        self.write_page(self.folder / "runs"), 390, has_touch=True
    )
    hides = "document.getElementById('legend')"
    self.assertTrue(
        shown.evaluate(f"{hides}.scrollHeight === {hides}.clientHeight")
    )
    shown.locator("summary", has_text="Results of each run").tap()
    self.soon(shown, WORD_LINES, [1] * 12, "learning_rate")
    chart = shown.locator("[data-chart='0']")
    chart.scroll_into_view_if_needed()
    shown.touchscreen.tap(*shown.evaluate(PLACE, [0, 1, 1]))
    tip = shown.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    self.assertIn("Training loss1.5", tip.text_content())
    box = tip.bounding_box()
    self.assertBetween(box["x"], 0, 390 - box["width"])
    shown.touchscreen.tap(380, 5)
    tip.wait_for(state="detached")

  def test_on_paper(self):
    """Tables are open, but for those of clients, and charts fit their cards."""
    for seed in (0, 1):
      write_run(self.folder / "runs" / f"{seed}", seed=seed)
    shown = self.open(self.write_page(self.folder / "runs"))
    shown.emulate_media(media="print")
    shown.evaluate("""() => {
      dispatchEvent(new Event("beforeprint"));
      // Paper is narrower than the window that the charts were drawn for.
      document.querySelector("main").style.width = "400px";
    }""")
    self.assertEqual(
        shown.evaluate("""() => report.tables.filter((table, i) =>
          document.querySelector(`[data-table="${i}"]:empty`)
        ).map(({section}) => section)"""), ["Clients", "Clients"],
    )
    self.assertTrue(shown.evaluate("""() => boxes.every(box =>
      box.querySelector("svg.marks").getBoundingClientRect().right
      <= box.getBoundingClientRect().right)"""))


if __name__ == "__main__":
  absltest.main()
