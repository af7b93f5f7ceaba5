"""The report: its numbers are those of the records, and it needs no other file.

Folders are made by hand; nothing is trained.
"""

import dataclasses
import html.parser
import importlib.util
import json
import math
import shutil
import tempfile
import unittest
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records.fairness import SPREAD
from agsfl.records.folder import write_json
from agsfl.records.read import read_run
from agsfl.records.strict_json import finite
from agsfl.records.tables import write_clients
from agsfl.sparsifiers import METHODS
from experiments.lib import groups
from experiments.report import __main__ as report
from experiments.report import runs as report_runs
from experiments.report import svg as report_svg
from experiments.report import tables as report_tables
from tests.experiments import run_test

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
  used = asked | {
      "controller": Config(**settings).used_controller,
      "k": settings.get("k", 1000.0),
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
        "test_loss": [0.5, math.nan, 0.25][:count],
        "test_accuracy": [0.5, math.nan, 1.0][:count],
        "contributed": contributed,
    })
    more = {"median_round_seconds": 0.0625, **dict(summary)}
    write_json(
        workdir / "summary.json",
        {name: finite(value) for name, value in {**rows[-1], **more}.items()},
    )
  return rows


class Page(html.parser.HTMLParser):
  """Tables by what they show, text, and every attribute."""

  def __init__(self, text):
    super().__init__()
    self.tables, self.attributes, self.tags = {}, [], []
    self.headings, self.text = [], ""
    self._cells = None
    self._open = []
    self._row = None
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes += [(tag, *pair) for pair in attrs]
    given = dict(attrs)
    if tag not in ("meta", "path", "circle"):
      self._open.append(tag)
    if given.get("role") == "region":
      self._cells = self.tables.setdefault(given["aria-label"], [])
    if tag == "tr":
      self._cells.append([])
    if tag in ("th", "td"):
      self._cells[-1].append("")
    if tag == "data":
      self._cells[-1][-1] = float(given["value"])
    if tag in ("h1", "h2", "h3"):
      self.headings.append("")

  def handle_endtag(self, tag):
    if self._open and tag not in ("path", "circle"):
      opened = self._open.pop()
      assert opened == tag, (opened, tag)

  def handle_data(self, text):
    self.text += text
    inside = [tag for tag in self._open if tag in ("th", "td", "h1", "h2")]
    if inside and inside[-1] in ("h1", "h2"):
      self.headings[-1] += text
    elif inside and isinstance(self._cells[-1][-1], str):
      self._cells[-1][-1] += text

  def column(self, table, title):
    """A column by the heads of its rows."""
    header, *lines = self.tables[table]
    return {line[0]: line[header.index(title)] for line in lines}


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def page(self, *folders):
    """The page of some folders; well formed."""
    found = report_runs.read_all(folders or [self.folder])
    return Page(report.page(*found))

  def assert_refused(self, *words, folder=None):
    with self.assertRaises(ConfigError) as caught:
      self.page(folder or self.folder)
    self.assertLen(str(caught.exception).splitlines(), 1)
    for word in (str(folder or self.folder), *words):
      self.assertIn(word, str(caught.exception))


class OneRunTest(FolderTest):

  def test_results_are_the_records(self):
    rows = write_run(self.folder / "a")
    results = dict(self.page().tables["results"])
    self.assertEqual(results["state"], "finished")
    for title, want in (
        ("training loss", rows[-1]["train_loss"]),
        ("test loss", rows[-1]["test_loss"]),
        ("test accuracy", rows[-1]["test_accuracy"]),
        ("rounds", 4),
        ("normalised time", 5.0),
        ("mean k, second half", (30.5 + 5.5) / 2),
        ("Jain's index", 36 / 42),
        ("wall s per round", 0.0625),
    ):
      self.assertEqual(results[title], want, title)

  def test_fairness(self):
    """Two more charts, and rows of the table, of the last evaluation.

    At round 2: mean 0.5, std 0.25, worst 0, best 1, index 0.75; then halves.
    """
    numbers = dict(zip(SPREAD, (0.5, 0.25, 0.0, 1.0, 0.75), strict=True))
    spread = lambda i, up, down: {
        name: value * 2 / i for name, value in numbers.items() if i % 2 == 0
    }
    write_run(self.folder, row=spread)
    page = self.page()
    results = dict(page.tables["results"])
    for title, want in (
        ("test accuracy, worst 10% of clients", 0.0),
        ("test accuracy, best 10% of clients", 0.5),
        ("test accuracy, mean over clients", 0.25),
        ("test accuracy, deviation over clients", 0.125),
        ("test accuracy, Jain's index", 0.375),
    ):
      self.assertEqual(results[title], want, title)
    self.assertContainsSubset(
        (
            "Test accuracy of clients. mean; band: worst 10% to best 10% of "
            "clients: from 0.5 at 2.5 to 0.25 at 5.",
            "Jain's index of the clients' accuracies. Jain's index of the "
            "clients' accuracies: from 0.75 at 2.5 to 0.375 at 5.",
        ),
        self.charts(page),
    )

  def test_fairness_of_settings(self):
    """A line each, of the worst tenth; a run of version 0.1 has none."""
    for name, worst in (("fab", 0.25), ("fub", 0.125)):
      write_run(
          self.folder / name, method=f"{name}_top_k",
          row=lambda i, up, down, worst=worst: dict.fromkeys(SPREAD, worst)
          if i % 2 == 0 else {},
      )
    write_run(self.folder / "old", method="send_all")
    page = self.page()
    self.assertEqual(
        page.column(
            "results by setting", "test accuracy, worst 10% of clients"
        ),
        {"fab_top_k": 0.25, "fub_top_k": 0.125, "send_all": "\u2013"},
    )
    self.assertIn(
        "Test accuracy of the worst 10% of clients. fab_top_k: from 0.25 at "
        "2.5 to 0.25 at 5; fub_top_k: from 0.125 at 2.5 to 0.125 at 5.",
        self.charts(page),
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
    page = self.page()
    sizes = dict(page.tables["bytes"])
    self.assertEqual(sizes["clients"], 2)
    self.assertEqual(sizes["bytes per element"], each)
    self.assertEqual(sizes["elements up, a client"], 65)
    self.assertEqual(sizes["elements down, a client"], 66)
    self.assertEqual(sizes["up, all clients"], up)
    self.assertEqual(sizes["down, all clients"], down)
    # D = 40 values of 4 bytes, up and down, 4 rounds, 2 clients.
    whole = 4 * 40 * 2 * 4 * 2
    self.assertEqual(sizes["of sending all D"], (up + down) / whole)
    results = dict(page.tables["results"])
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
    page = self.page()
    self.assertIn("mine with my_rule on mnist_5k", page.headings)
    sizes = dict(page.tables["bytes"])
    self.assertEqual(sizes["up, all clients"], 3 * 5 * 65)
    self.assertEqual(sizes["down, all clients"], 3 * 66)
    self.assertEqual(sizes["bytes per element"], (5 * 65 + 66) / (65 + 66))
    self.assertIn(
        "norm against time. norm: from 0.5 at 1.25 to 2 at 5.",
        self.charts(page),
    )

  def test_bytes_until_each_round(self):
    write_run(self.folder)
    (_, (run,)) = report_runs.read_all([self.folder])
    self.assertEqual(run.sent("up"), [240, 720, 1440, 1560])
    x, y = run.series("train_loss", "bytes")
    self.assertEqual(x.tolist(), [1440, 3144])
    self.assertEqual(y.tolist(), [1.5, 0.875])

  def test_clients(self):
    write_run(self.folder)
    header, *lines = self.page().tables[f"clients of {self.folder}"]
    self.assertEqual(header, [
        "client", "samples", "test samples", "test loss", "test accuracy",
        "contributed",
    ])
    self.assertEqual(lines, [
        ["ann", "4", "2", "0.5000", "0.5000", "1"],
        ["bob", "7", "2", "\u2013", "\u2013", "2"],
        ["cy", "3", "2", "0.2500", "1.0000", "3"],
    ])

  def test_settings(self):
    """Main and changed ones first, each of config.json once."""
    write_run(self.folder, comm_time=12.5, power=3.0)
    page = self.page()
    first = dict(page.tables["main settings"])
    others = dict(page.tables["other settings"])
    self.assertEqual(first["comm_time"], "12.5")
    self.assertEqual(first["power"], "3")
    self.assertEqual(first["controller"], "sign_interval")
    self.assertNotIn("batch_size", first)
    self.assertEqual(others["batch_size"], "32")
    self.assertEqual(others["time_budget"], "none")
    self.assertEqual(others["versions.jax"], "0.0")
    config = json.loads((self.folder / "config.json").read_text())
    self.assertEmpty(set(first) & set(others))
    self.assertEqual(
        {*first, *others} - {"versions.jax"}, {*config} - {"asked", "versions"}
    )

  def charts(self, page):
    """The text of each chart for screen readers."""
    return [
        value for tag, name, value in page.attributes
        if (tag, name) == ("svg", "aria-label")
    ]

  def test_charts(self):
    """There are six, each with a text for screen readers."""
    write_run(self.folder)
    page = self.page()
    charts = self.charts(page)
    self.assertLen(charts, 6)
    self.assertIn(
        "Loss against time. training loss: from 1.5 at 2.5 to 0.875 at 5; test "
        "loss: from 1.625 at 2.5 to 1 at 5.",
        charts,
    )
    self.assertIn("k against rounds. k: from 10.5 at 1 to 5.5 at 4; probe k': "
                  "from 9 at 1 to 4 at 4.", charts)
    self.assertEqual(
        [head for head in page.headings if head],
        ["fab_top_k with sign_interval on mnist_5k", "Settings", "Results",
         "Curves", "Fairness", "Bytes", "Clients"],
    )

  def test_without_k(self):
    write_run(self.folder, method="send_all")
    page = self.page()
    self.assertEqual(
        dict(page.tables["results"])["mean k, second half"], "\u2013"
    )
    self.assertNotIn("k against rounds", page.text)

  def test_losses_that_overflow(self):
    write_run(self.folder, losses=(2.0, math.inf, 3.0, 1.0))
    self.page()
    self.assertEqual(
        read_run(self.folder).series("train_loss")[0].tolist(), [5.0]
    )

  def test_nothing_from_outside(self):
    write_run(self.folder)
    page = self.page()
    self.assertContainsSubset(("meta", "svg", "style"), page.tags)
    self.assertNoCommonElements(
        page.tags,
        ("script", "link", "img", "iframe", "object", "embed", "image", "use"),
    )
    names = {name for _, name, _ in page.attributes}
    self.assertNoCommonElements(names, ("src", "href", "srcset", "xlink:href"))
    self.assertFalse([name for name in names if name.startswith("on")])
    text = report.page(*report_runs.read_all([self.folder]))
    for word in ("http:", "https:", "url(", "@import", "//"):
      self.assertNotIn(word, text)

  def test_text_of_files_is_text(self):
    evil = '<script>alert("1")</script>'
    write_run(
        self.folder / "<b>&amp;",
        names=(evil, "a&b\x1b[31m\u202e", "'\"> onload=x"),
        config={"dataset": evil, "versions": {evil: evil}, "seed": evil},
    )
    write_run(self.folder / "other", config={"dataset": "<i>"}, finished=False)
    for page in (self.page(self.folder / "<b>&amp;"), self.page()):
      self.assertNotIn("script", page.tags)
      self.assertNoCommonElements(("b", "i"), page.tags)
      self.assertNotIn("onload", [name for _, name, _ in page.attributes])
      self.assertIn("<b>&amp;", page.text)
      (table,) = (t for n, t in page.tables.items() if "clients of" in n)
      self.assertEqual(
          [line[0] for line in table[1:]],
          [evil, "a&b\ufffd[31m\ufffd", "'\"> onload=x"],
      )


class UnfinishedTest(FolderTest):

  def test_is_shown_from_its_rows(self):
    rows = write_run(
        self.folder, (3, 4, 5), (3, 4, 5), (3.0, 2.0, 1.0), finished=False
    )
    page = self.page()
    results = dict(page.tables["results"])
    self.assertEqual(
        results["state"],
        "unfinished: 3 of at most 300 rounds, last evaluated at 2",
    )
    self.assertEqual(results["training loss"], rows[1]["train_loss"])
    self.assertEqual(results["rounds"], 3)
    self.assertEqual(results["sent up"], 3 * 8 * 12)
    self.assertEqual(results["Jain's index"], "\u2013")
    self.assertIn("No run is finished", page.text)
    self.assertIn("not known until the run is finished", page.text)
    self.assertIn("circle", page.tags)

  @parameterized.parameters(0, 1)
  def test_before_its_first_evaluation(self, rounds):
    write_run(
        self.folder, *([9] * rounds for _ in range(3)), finished=False
    )
    results = dict(self.page().tables["results"])
    self.assertEqual(
        results["state"],
        "unfinished: 1 of at most 300 rounds, not evaluated yet"
        if rounds
        else "unfinished: no round of at most 300 is done",
    )
    self.assertEqual(results["training loss"], "\u2013")

  def test_a_torn_last_line_is_no_row(self):
    write_run(self.folder, finished=False)
    with (self.folder / "metrics.jsonl").open("a") as file:
      file.write('{"round": 5, "ti')
    self.assertEqual(dict(self.page().tables["results"])["rounds"], 4)

  def test_stands_alone(self):
    """It is not averaged with the finished runs of its setting."""
    for seed in range(3):
      write_run(self.folder / f"seed{seed}", seed=seed, finished=seed < 2)
    page = self.page()
    self.assertEqual(
        page.column("results by setting", "runs"),
        {
            "fab_top_k, sign_interval": "2",
            "fab_top_k, sign_interval, seed=2, unfinishedunfinished: 4 of at "
            "most 300 rounds, last evaluated at 4": "1",
        },
    )
    self.assertIn("1 run of 3 unfinished", page.text)


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
    page = self.page()
    column = lambda title: page.column("results by setting", title)
    self.assertEqual(column("runs"), {"fab_top_k": "2", "periodic_k": "1"})
    self.assertEqual(
        column("training loss"),
        {"fab_top_k": (0.875 + 3.0) / 2, "periodic_k": 0.875},
    )
    # 3 clients: 8 bytes of 65 and of 14 elements; 4 of 65.
    self.assertEqual(
        column("sent up"), {"fab_top_k": 12 * (65 + 14), "periodic_k": 780}
    )
    self.assertIn("1.9375 ± 1.1", page.text)
    self.assertIn("948 ± 612 B", page.text)
    self.assertEqual(
        page.column("settings that differ", "seed"),
        {"fab_top_k": "2, 10", "periodic_k": "0"},
    )
    self.assertEqual(
        page.column("settings that differ", "k"),
        {"fab_top_k": "1000", "periodic_k": "7"},
    )
    self.assertIn("3 runs of 2 settings", page.headings)
    common = dict(page.tables["settings that are common"])
    self.assertEqual(common["comm_time"], "10")
    self.assertNoCommonElements(common, ("seed", "k", "method"))

  def test_each_run(self):
    self.write_study()
    losses = self.page().column("results of each run", "training loss")
    self.assertEqual(losses, {
        "deep/er/x": 0.875, "fab/seed2": 0.875, "fab/seed10": 3.0,
    })
    self.assertEqual(list(losses), ["fab/seed2", "fab/seed10", "deep/er/x"])

  def test_each_once(self):
    self.write_study()
    page = self.page(self.folder / "fab" / "seed2", self.folder)
    self.assertLen(page.tables["results of each run"], 1 + 3)

  def test_band_covers_what_all_have_seen(self):
    """y = t on 1, 2, 4 and y = 3 t on 2, 5: both known on 2..4."""
    band = groups.band([
        (np.array([1.0, 2.0, 4.0]), np.array([1.0, 2.0, 4.0])),
        (np.array([2.0, 5.0]), np.array([6.0, 15.0])),
    ])
    self.assertEqual(band.x.tolist(), [2, 4])
    np.testing.assert_allclose(band.mean, [4, 8])
    np.testing.assert_allclose(band.least, [2, 4])
    np.testing.assert_allclose(band.greatest, [6, 12])
    line = lambda *x: (np.array(x), np.array(x))
    self.assertIsNone(groups.band([line(1.0), line(2.0)]))
    self.assertIsNone(groups.band([line(1.0, 2.0), line()]))

  def test_labels_tell_settings_apart(self):
    # By value: as text 10 would come before 9.5.
    for k in (10.0, 9.5):
      for method in ("fab_top_k", "fub_top_k"):
        write_run(self.folder / f"{method}{k}", k=k, method=method)
    write_run(self.folder / "again", k=10.0)
    _, runs = report_runs.read_all([self.folder])
    self.assertEqual(
        [(group.label, len(group.runs)) for group in report_runs.group(runs)],
        [
            ("fab_top_k, k=9.5", 1), ("fab_top_k, k=10", 2),
            ("fub_top_k, k=9.5", 1), ("fub_top_k, k=10", 1),
        ],
    )

  def test_a_wide_sweep(self):
    """One legend for all charts; every line is drawn."""
    count = 40
    for i in range(count):
      write_run(self.folder / f"k{i}", k=float(i + 1))
    page = self.page()
    self.assertIn("some lines look alike", page.text)
    self.assertLen(page.tables["results by setting"], 1 + count)
    titles = page.tags.count("title") - 1
    self.assertEqual(titles, 7 * count)


class DamageTest(FolderTest):
  """read_test has all kinds of damage."""

  def test_a_damaged_run_of_a_study(self):
    """It is named, with its file and line."""
    write_run(self.folder / "a")
    write_run(self.folder / "b", finished=False)
    path = self.folder / "b" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"round": 2', '"round": 7'))
    self.assert_refused(
        str(self.folder / "b"), "metrics.jsonl, line 2", "round is 7"
    )


class ScriptTest(FolderTest):

  def start(self, *arguments):
    return run_test.run_python("-m", "experiments.report", *map(str, arguments))

  def test_out(self):
    write_run(self.folder / "runs" / "a")
    out = self.folder / "page.html"
    out.write_text("old")
    result = self.start(self.folder / "runs", f"--out={out}")
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(result.stdout, f"report: {out}\n")
    found = report_runs.read_all([self.folder / "runs" / "a"])
    self.assertEqual(out.read_text(encoding="utf-8"), report.page(*found))
    self.assertEqual({*self.folder.iterdir()}, {out, self.folder / "runs"})

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
    ):
      result = self.start(*arguments)
      self.assertEqual(result.returncode, 1, arguments)
      self.assertEqual(result.stdout, "")
      (line,) = result.stderr.splitlines()
      self.assertStartsWith(line, "error: ")
      self.assertIn(word, line)
    self.assertEqual(sorted(self.folder.rglob("*")), before)


class CountsTest(parameterized.TestCase):

  @parameterized.parameters(*METHODS)
  def test_elements_cost_what_the_method_says(self, method):
    """Numbers of 4 bytes, as the normalised time counts them."""
    sparsifier = METHODS[method].build()
    accumulated = jnp.arange(12.0).reshape(2, 6) + 1
    selection, _ = sparsifier.select(
        jax.random.key(0), accumulated, jnp.full(2, 0.5), jnp.int32(2),
        sparsifier.init(2, 6),
    )
    each = report_runs.element_bytes(method)
    self.assertEqual(4 * selection.volume_up, each * selection.k_up)
    self.assertEqual(4 * selection.volume_down, each * selection.k_down)

  @parameterized.parameters(
      (640, "640 B"), (1_234_567, "1.235 MB"), (2e9, "2 GB"), (0, "0 B")
  )
  def test_size_in_words(self, size, want):
    self.assertEqual(report_tables.size_in_words(size), want)


class ChartTest(parameterized.TestCase):

  def test_steps(self):
    """Of 1, 3, 3, 7: a quarter at 1, three at 3, all at 7."""
    x, y = report_svg.steps(np.array([3, 1, 7, 3]))
    self.assertEqual(x.tolist(), [1, 1, 3, 3, 3, 3, 7, 7])
    self.assertEqual(y.tolist(), [0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75, 1])

  def test_thin_keeps_the_extremes(self):
    y = np.sin(np.arange(50_000.0))
    y[777], y[31_000] = 9, -9
    x, thinned = report_svg.thin(np.arange(50_000.0), y)
    self.assertLess(len(x), 700)
    self.assertEqual((thinned.max(), thinned.min()), (9, -9))
    self.assertEqual((x[0], x[-1]), (0, 49_999))
    self.assertTrue(np.all(np.diff(x) > 0))

  @parameterized.parameters(
      (0.0, 0.0, False), (5.0, 5.0, True), (1e-9, 2e-9, False),
      (0.8999, 0.9001, False), (-3.0, 4e12, False), (1.0, 1e9, True),
      (2.0, 90.0, True), (950.0, 1050.0, True), (0.0, 3.0, True),
  )
  def test_axes_have_ticks_inside(self, low, high, log):
    axis = report_svg._Axis(np.array([low, high]), 0, 100, log=log)
    places = [float(axis.at(tick)) for tick in axis.ticks]
    self.assertBetween(len(places), 2, 11)
    texts = {report_svg.number(tick) for tick in axis.ticks}
    self.assertLen(texts, len(places))
    for place in (*places, *axis.at(np.array([low, high]))):
      self.assertBetween(place, -0.1, 100.1)

  def test_many_looks(self):
    looks = {report_svg.look(style) for style in range(32)}
    self.assertLen(looks, 32)


CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None
)

# Texts of a chart that lie over each other or outside of their figure.
BAD_TEXTS = """() =>
[...document.querySelectorAll("svg.chart")].flatMap(svg => {
  const box = svg.closest("figure").getBoundingClientRect();
  const texts = [...svg.querySelectorAll("text")].map(
    text => [text.textContent, text.getBoundingClientRect()]);
  return texts.flatMap(([name, a], i) => [
    ...(a.left < box.left || a.right > box.right ? [name] : []),
    ...texts.slice(0, i).filter(([, b]) =>
      a.left < b.right && b.left < a.right &&
      a.top + 2 < b.bottom && b.top + 2 < a.bottom
    ).map(([other]) => name + " over " + other),
  ]);
})"""


@unittest.skipUnless(
    CHROMIUM and importlib.util.find_spec("playwright"),
    "takes Chromium and Playwright",
)
class BrowserTest(FolderTest):

  def test_fits_and_asks_for_nothing(self):
    from playwright import sync_api

    name = "<img src=x onerror=alert(1)>" + "long" * 40
    write_run(self.folder / "runs" / "a", names=(name, "b", "c"))
    write_run(self.folder / "runs" / name[:90], method="fub_top_k")
    write_run(self.folder / "runs" / "c", method="fedavg", finished=False)
    out = self.folder / "page.html"
    found = report_runs.read_all([self.folder / "runs"])
    report.write(out, report.page(*found))
    colors = set()
    with sync_api.sync_playwright() as playwright:
      browser = playwright.chromium.launch(
          executable_path=CHROMIUM, args=["--no-sandbox"]
      )
      for width in (320, 390, 1280):
        for scheme in ("light", "dark"):
          page = browser.new_page(
              viewport={"width": width, "height": 844}, color_scheme=scheme
          )
          asked, words = [], []
          page.on("request", lambda request, to=asked: to.append(request.url))
          page.on("console", lambda message, to=words: to.append(message.text))
          page.goto(out.as_uri())
          page.evaluate(
              "document.querySelectorAll('details').forEach(d => d.open = true)"
          )
          self.assertEqual(asked, [out.as_uri()])
          self.assertEqual(words, [])
          wide = page.evaluate("document.documentElement.scrollWidth")
          self.assertLessEqual(wide, width)
          self.assertEqual(page.evaluate(BAD_TEXTS), [])
          colors.add(page.evaluate(
              "getComputedStyle(document.querySelector('.mark')).stroke + "
              "getComputedStyle(document.body).backgroundColor"
          ))
          page.close()
      browser.close()
    self.assertLen(colors, 2)


if __name__ == "__main__":
  absltest.main()
