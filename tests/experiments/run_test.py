"""The run script as a real process: its records, its figures, its errors."""

import concurrent.futures
import copy
import csv
import dataclasses
import importlib
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.image
import numpy as np
from absl import flags
from absl.testing import absltest, parameterized

from agsfl.config import Config
from agsfl.records.fairness import SPREAD
from agsfl.records.read import Run, read_run
from experiments import run
from experiments.lib import drawing

ROOT = Path(__file__).resolve().parents[2]
NUM_TRAIN, NUM_TEST = 48, 12
NUM_WEIGHTS = 36 * 128 + 128 + 128 * 3 + 3  # 6 x 6 images, 3 classes
# Presets of published runs, by whole models or by top-k.
RECIPES = tuple(
    f"{name}.flags"
    for name in ("cifar10_resnet", "cifar100_resnet", "femnist", "shakespeare")
)
FIGURES = ("loss", "accuracy", "k", "contributions", "fairness")
FILES = {
    "config.json", "metrics.jsonl", "client_evaluations.npy", "clients.csv",
    "params.npy", "summary.json",
    *(f"figures/{name}.png" for name in FIGURES),
}
ROW_KEYS = {
    "round", "time", "k", "k_probe", "k_up", "k_down", "bytes_up", "bytes_down",
    "minibatch_loss", "sign",
}
EVALUATION_KEYS = {"train_loss", "test_loss", "test_accuracy", *SPREAD}


# Runs the script for each list of arguments on stdin, in one process; what
# Python does of an exit or an exception at a process's end is done by hand.
BATCH = """
import contextlib, io, json, sys, traceback
from absl import flags
from experiments import run
from experiments.lib import scripts

results = []
for arguments in json.load(sys.stdin):
  flags.FLAGS.unparse_flags()
  out, err, code = io.StringIO(), io.StringIO(), 0
  with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
    try:
      scripts.run(run.main, ["run.py", *arguments])
    except SystemExit as end:
      code = end.code or 0
      if isinstance(code, str):
        print(code, file=err)
        code = 1
    except BaseException:
      traceback.print_exc()
      code = 1
  results.append([code, out.getvalue(), err.getvalue()])
json.dump(results, sys.stdout)
"""


# For processes whose numbers are compared only with each other: they compile in
# two thirds of the time.
QUICKLY = {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"
}


# A locale in which Python reads and writes text as ASCII.
WITHOUT_UNICODE = {
    "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"
}


def run_python(*arguments, environment=(), **kwargs):
  """Runs Python on CPU in the repository's root."""
  return subprocess.run(
      [sys.executable, *arguments],
      cwd=ROOT,
      env={**os.environ, **QUICKLY, **dict(environment)},
      capture_output=True,
      text=True,
      encoding="utf-8",
      timeout=600,
      check=False,
      **kwargs,
  )


def run_script(*arguments, **environment):
  """Runs the script with the arguments in a process of its own."""
  return run_python(
      "-m", "experiments.run", *arguments, environment=environment
  )


def run_batch(commands):
  """The results of {name: arguments}, by name, in one process.

  The import takes longer than a refusal, and runs that are alike share code.
  """
  every = list(commands.values())
  batch = run_python("-c", BATCH, input=json.dumps(every))
  if batch.returncode:
    raise RuntimeError(batch.stderr)
  results = itertools.starmap(
      subprocess.CompletedProcess,
      ((c, *r) for c, r in zip(every, json.loads(batch.stdout), strict=True)),
  )
  return dict(zip(commands, results, strict=True))


def write_data(folder):
  """Writes a small data set as tiny.npz, and files that cannot be used."""
  count = NUM_TRAIN + NUM_TEST
  rng = np.random.default_rng(0)
  labels = np.arange(count) % 3
  images = rng.integers(0, 80, (count, 6, 6)).astype(np.uint8)
  images[np.arange(count), 2 * labels] += 150  # a bright line by class
  arrays = {
      "images": images, "labels": labels, "is_train": np.arange(count) % 5 > 0,
  }
  owners = np.array(["ann", "bob, jr.", "юля"])[np.arange(count) // 3 % 3]
  np.savez(folder / "tiny.npz", **arrays, client=owners)
  (folder / "file").write_text("text")
  (folder / "run").mkdir()
  for name in ("config.json", "metrics.jsonl"):
    (folder / "run" / name).write_text("{}\n")
  (folder / "unknown.flags").write_text("--k=50\n--kk=50\n")


def filled(arguments, folder):
  return [argument.replace("FOLDER", str(folder)) for argument in arguments]


def error_lines(result):
  lines = (result.stdout + result.stderr).splitlines()
  return [line for line in lines if line.startswith("error:")]


SETTINGS = (
    "--dataset=npz:FOLDER/tiny.npz", "--model=mlp", "--batch_size=8",
    "--learning_rate=0.1",
)
# Natural clients take no seed: only the rounds differ between seeds.
SIGN = (
    *SETTINGS, "--partition=natural", "--k=40", "--k_min=20", "--k_max=60",
    "--comm_time=20", "--num_rounds=7", "--eval_every=3",
)
RUNS = {
    "sign": SIGN,
    "again": SIGN,
    "seed": (*SIGN, "--seed=1"),
    "budget": (
        *SETTINGS, "--num_clients=4", "--controller=sign", "--k=400",
        "--time_budget=30", "--num_rounds=90", "--eval_every=90",
        "--rounds_per_call=4",
    ),
    "fixed": (
        *SETTINGS, "--partition=iid", "--num_clients=5", "--controller=fixed",
        "--k=50.5", "--num_rounds=6", "--eval_every=2", "--num_devices=1",
        "--nokeep_state",
    ),
    # The weights overflow after some rounds.
    "diverged": (
        *SETTINGS, "--k=40", "--learning_rate=1e30", "--num_rounds=50",
        "--eval_every=100", "--rounds_per_call=8",
    ),
}
FINISHED = tuple(name for name in RUNS if name != "diverged")


class RunTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    write_data(cls.folder)
    commands = {
        name: filled((*arguments, f"--workdir=FOLDER/runs/{name}"), cls.folder)
        for name, arguments in RUNS.items()
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
      # In a process of its own, so that the other runs do not help it, and in
      # another locale.
      again = pool.submit(
          run_script, *commands.pop("again"), **WITHOUT_UNICODE
      )
      cls.results = run_batch(commands) | {"again": again.result()}

  def workdir(self, name):
    return self.folder / "runs" / name

  def rows(self, name):
    return read_run(self.workdir(name)).rows

  def json(self, name, file):
    return json.loads((self.workdir(name) / file).read_text())

  @parameterized.named_parameters((name, name) for name in FINISHED)
  def test_leaves_its_files_and_a_table(self, name):
    result = self.results[name]
    self.assertEqual(result.returncode, 0, result.stderr)
    self.assertEqual(error_lines(result), [])
    workdir = self.workdir(name)
    files = {
        str(path.relative_to(workdir))
        for path in workdir.rglob("*")
        if path.is_file()
    }
    states = {path for path in files if path.startswith("checkpoints/")}
    self.assertEqual(files - states, FILES)
    self.assertEqual(bool(states), name != "fixed")  # --nokeep_state
    *_, last, where = result.stdout.splitlines()
    self.assertEqual(last.split()[0], str(self.rows(name)[-1]["round"]))
    self.assertIn(str(workdir), where)

  def test_the_seed_decides_every_byte(self):
    metrics = {
        name: (self.workdir(name) / "metrics.jsonl").read_bytes()
        for name in ("sign", "again", "seed")
    }
    self.assertEqual(metrics["sign"], metrics["again"])
    self.assertNotEqual(metrics["sign"], metrics["seed"])
    losses = [
        [row["minibatch_loss"] for row in self.rows(name)]
        for name in ("sign", "seed")
    ]
    self.assertNoCommonElements(*losses)

  @parameterized.named_parameters((name, name) for name in FINISHED)
  def test_rows(self, name):
    """Rounds from 1; every eval_every-th and the last are evaluated."""
    rows = self.rows(name)
    config = self.json(name, "config.json")
    rounds = [row["round"] for row in rows]
    self.assertEqual(rounds, [*range(1, len(rows) + 1)])
    if config["time_budget"] is None:
      self.assertLen(rows, config["num_rounds"])
    evaluated = [row["round"] for row in rows if "test_loss" in row]
    due = {*range(0, len(rows) + 1, config["eval_every"]), len(rows)} - {0}
    self.assertEqual(evaluated, sorted(due))
    for row in rows:
      keys = ROW_KEYS | (EVALUATION_KEYS if row["round"] in due else set())
      self.assertEqual(set(row), keys)
      self.assertIn(row["sign"], (-1, 0, 1, None))
      numbers = [value for value in row.values() if value is not None]
      self.assertTrue(np.isfinite(numbers).all())
    for row in rows:
      if row["round"] in due:
        self.assertBetween(row["test_accuracy"], 0, 1)
        right = row["test_accuracy"] * NUM_TEST
        self.assertAlmostEqual(right, round(right), places=4)

  @parameterized.named_parameters((name, name) for name in FINISHED)
  def test_time_is_the_sum_of_round_times(self, name):
    """theta = 1 + 1 / batch + beta (2 k_up + 2 k_down) / (2 D).

    The sample of 1 / batch is for online learning; a fixed k needs none.
    """
    config = self.json(name, "config.json")
    dim = config["num_weights"]
    self.assertEqual(dim, NUM_WEIGHTS)
    more = 0 if config["controller"] == "fixed" else 1 / config["batch_size"]
    rows = self.rows(name)
    thetas = [
        1 + more
        + config["comm_time"]
        * (2 * row["k_up"] + 2 * row["k_down"]) / (2 * dim)
        for row in rows
    ]
    np.testing.assert_allclose(
        [row["time"] for row in rows], np.cumsum(thetas), rtol=1e-5
    )

  def test_stops_after_the_time_budget(self):
    times = [row["time"] for row in self.rows("budget")]
    self.assertLess(len(times), 90)
    self.assertGreaterEqual(times[-1], 30)
    self.assertLess(times[-2], 30)

  @parameterized.parameters("sign", "budget")
  def test_k_stays_in_its_interval(self, name):
    config, rows = self.json(name, "config.json"), self.rows(name)
    low = config["k_min"] or 0.002 * NUM_WEIGHTS
    high = config["k_max"] or NUM_WEIGHTS
    near = 1e-6 * NUM_WEIGHTS  # k is a float32
    self.assertEqual(rows[0]["k"], config["k"])
    self.assertGreater(len({row["k"] for row in rows}), 1)
    for row in rows:
      self.assertBetween(row["k"], low - near, high + near)
      self.assertBetween(row["k_probe"], 1, row["k"] - 1)
      self.assertLess(abs(row["k_up"] - row["k"]), 1)
      self.assertLess(abs(row["k_down"] - row["k"]), 1)
    # k moves against the sign, or not at all.
    for row, after in itertools.pairwise(rows):
      self.assertLessEqual((after["k"] - row["k"]) * (row["sign"] or 0), 0)
      if row["sign"] is None:
        self.assertEqual(after["k"], row["k"])

  def test_a_fixed_k_stays(self):
    for row in self.rows("fixed"):
      self.assertEqual(row["k"], 50.5)
      self.assertEqual(row["k_probe"], 50.5)
      self.assertIsNone(row["sign"])
      self.assertIn(row["k_down"], (50, 51))

  @parameterized.named_parameters((name, name) for name in FINISHED)
  def test_config_tells_the_run(self, name):
    config = self.json(name, "config.json")
    asked = {}
    settings = [x for x in filled(RUNS[name], self.folder) if "=" in x]
    for argument in settings:
      field, value = argument.removeprefix("--").split("=")
      asked[field] = type(config[field])(value)
    asked = Config(**asked)
    self.assertEqual(config["asked"], dataclasses.asdict(asked))
    # What is used is there too, where the default depends on the rest.
    settled = {
        "controller": asked.used_controller,
        "local_steps": asked.used_local_steps(NUM_WEIGHTS),
    }
    self.assertContainsSubset(
        (config["asked"] | settled).items(),
        {name: config[name] for name in config["asked"]}.items(),
    )
    self.assertEqual(
        (config["num_train"], config["num_test"]), (NUM_TRAIN, NUM_TEST)
    )
    self.assertEqual(config["num_clients_used"], config["num_clients"] or 3)
    self.assertEqual(config["platform"], "cpu")
    self.assertContainsSubset(("jax", "agsfl"), config["versions"])

  @parameterized.named_parameters((name, name) for name in FINISHED)
  def test_contributions_and_summary(self, name):
    """Each element sent down is of one client or more, and fairly so."""
    config, rows = self.json(name, "config.json"), self.rows(name)
    path = self.workdir(name) / "clients.csv"
    with path.open(newline="", encoding="utf-8") as file:
      table = list(csv.DictReader(file))
    self.assertEqual(
        list(table[0]),
        [
            "client", "samples", "test_samples", "test_loss", "test_accuracy",
            "rounds", "contributed",
        ],
    )
    self.assertEqual({int(row["rounds"]) for row in table}, {len(rows)})
    # Every test sample belongs to a client, so clients average to the whole.
    tested = [int(row["test_samples"]) for row in table]
    self.assertEqual(sum(tested), NUM_TEST)
    for key in ("test_loss", "test_accuracy"):
      of_each = [float(row[key]) for row in table]
      np.testing.assert_allclose(
          np.average(of_each, weights=tested), rows[-1][key], rtol=1e-5
      )
    self.assertLen(table, config["num_clients_used"])
    self.assertEqual(sum(int(row["samples"]) for row in table), NUM_TRAIN)
    if config["partition"] == "natural":
      self.assertEqual(
          [row["client"] for row in table], ["ann", "bob, jr.", "юля"]
      )
    counts = read_run(self.workdir(name)).clients["contributed"]
    self.assertEqual(counts, [int(row["contributed"]) for row in table])
    downs = [row["k_down"] for row in rows]
    self.assertGreaterEqual(sum(counts), sum(downs))
    self.assertLessEqual(max(counts), sum(downs))
    self.assertGreaterEqual(
        min(counts), sum(down // len(counts) for down in downs)
    )
    summary = self.json(name, "summary.json")
    self.assertEqual({key: summary[key] for key in rows[-1]}, rows[-1])
    self.assertEqual(summary["least_contributed"], min(counts))
    self.assertEqual(summary["most_contributed"], max(counts))
    for key in (
        "first_round_seconds", "median_round_seconds", "peak_memory_mb"
    ):
      self.assertGreater(summary[key], 0)

  def test_it_learns(self):
    losses = [
        row["train_loss"] for row in self.rows("fixed") if "train_loss" in row
    ]
    self.assertLess(losses[-1], losses[0])

  @parameterized.product(name=FINISHED, figure=FIGURES)
  def test_figures_are_drawn(self, name, figure):
    """Valid PNGs, not blank, with a line in the first colour."""
    image = pixels(self.workdir(name), figure)
    self.assertGreaterEqual(min(image.shape[:2]), 300)
    self.assertGreater(np.ptp(image[..., :3]), 0.9)
    blue = np.array([0x1F, 0x77, 0xB4]) / 255  # C0
    drawn = np.abs(image[..., :3] - blue).max(axis=-1) < 0.1
    self.assertGreater(drawn.sum(), 30)

  def test_figures_come_from_the_records_alone(self):
    """Copied records draw the same; other records draw otherwise."""
    run = read_run(self.workdir("sign"))
    scripts = {f: pixels(self.workdir("sign"), f) for f in FIGURES}
    changes = {
        (): lambda row: row,
        ("loss",): lambda row: row | {"train_loss": row["train_loss"] + 1},
        ("accuracy",): lambda row: row | {
            "test_accuracy": row["test_accuracy"] / 2
        },
        ("k",): lambda row: row | {"k": row["k"] * row["round"]},
        ("fairness",): lambda row: row | {
            "client_test_accuracy_best10": 0.125
        },
        ("contributions",): lambda row: row,
    }
    for changed, change in changes.items():
      with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder)
        rows = [
            change(row) if "test_loss" in row else row for row in run.rows
        ]
        *others, last = run.clients["contributed"]
        more = 10 if changed == ("contributions",) else 1
        clients = {"contributed": [*others, more * last]}
        drawing.draw(Run(
            rows, clients, run.summary, run.config, workdir, run.start
        ))
        differ = tuple(
            f
            for f in FIGURES
            if not np.array_equal(pixels(workdir, f), scripts[f])
        )
      self.assertEqual(differ, changed)

  def test_divergence(self):
    """One line names the round; the rows before it stay."""
    result = self.results["diverged"]
    self.assertEqual(result.returncode, 1)
    self.assertNotIn("Traceback", result.stdout + result.stderr)
    (line,) = error_lines(result)
    self.assertEqual(line, result.stderr.splitlines()[-1])
    self.assertIn("--learning_rate", line)
    last = int(re.search(r"round (\d+)", line)[1])
    self.assertGreater(last, 1)
    rounds = [row["round"] for row in self.rows("diverged")]
    self.assertEqual(rounds, [*range(1, last)])
    self.assertEqual(self.json("diverged", "config.json")["k"], 40)


def pixels(workdir, figure):
  return matplotlib.image.imread(workdir / "figures" / f"{figure}.png")


# Arguments after SETTINGS, and words of the message. A few for each way to
# refuse: of absl, of the command, of the library. config_test has all settings,
# the tests of data have all files.
BAD = {
    "setting": (["--k=0"], "--k=0", "at least 1"),
    "not_a_number": (["--num_clients=2.5"], "--num_clients=2.5"),
    "no_file": (
        ["--dataset=npz:FOLDER/none.npz"], "--dataset=npz:FOLDER/none.npz",
    ),
    "k_above_dim": (["--k=5124"], "--k=5124", f"{NUM_WEIGHTS}"),
    "more_than_samples": (
        ["--partition=iid", "--num_clients=49"], "--num_clients=49", "48",
    ),
    "replay_of_no_run": (
        ["--controller=replay", "--replay=FOLDER/none"], "FOLDER/none",
    ),
    "replay_of_a_broken_run": (
        ["--controller=replay", "--replay=FOLDER/run"], "FOLDER/run",
    ),
    "devices": (["--num_devices=9999"], "--num_devices=9999", "at most"),
    "workdir_below_a_file": (
        ["--workdir=FOLDER/file/run"], "--workdir=FOLDER/file/run",
    ),
    "workdir_a_file": (["--workdir=FOLDER/file"], "--workdir=FOLDER/file"),
    "workdir_of_a_run": (["--workdir=FOLDER/run"], "FOLDER/run"),
    "no_plugin": (
        ["--plugins=agsfl,no_such_module"], "--plugins=no_such_module",
        "can be imported",
    ),
    "unknown_flag": (["--kk=50"], "kk"),
    "stray": (["k=50"], "k=50"),
    "no_flagfile": (["--flagfile=FOLDER/none.flags"], "none.flags"),
    "unknown_flag_in_file": (["--flagfile=FOLDER/unknown.flags"], "kk"),
    "binary_flagfile": (["--flagfile=FOLDER/tiny.npz"], "utf-8"),
    "long": ([f"--dataset={'x' * 999}"], "--dataset=xxx", "..."),
    "long_flag": ([f"--{'x' * 9999}=1"], "Unknown command line flag"),
    "long_word": (["x" * 9999], "unknown argument 'xxx", "..."),
    "control": (["--dataset=a\x1b[31m\r\nb"], r"--dataset=a\x1b[31m b: "),
    "control_flag": (["--k\x1b[31m=1"], r"flag 'k\x1b[31m'"),
}
# One for each way to refuse: of the command, of the library.
PROCESSES_TOO = ("stray", "k_above_dim")


class BadFlagsTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    cls.folder = Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
    write_data(cls.folder)
    cls.before = cls.files()
    commands = {
        name: filled(
            (*SETTINGS, "--k=50", f"--workdir=FOLDER/{name}", *arguments),
            cls.folder,
        )
        for name, (arguments, *_) in BAD.items()
    }
    cls.results = run_batch(commands)
    cls.processes = {
        name: run_script(*commands[name]) for name in PROCESSES_TOO
    }

  @classmethod
  def files(cls):
    return {
        path: path.read_bytes() if path.is_file() else None
        for path in cls.folder.rglob("*")
    }

  @parameterized.named_parameters((name, name) for name in BAD)
  def test_one_line_says_what_is_wrong(self, name):
    result = self.results[name]
    self.assertNotIn("Traceback", result.stdout + result.stderr)
    self.assertEqual(result.returncode, 1)
    self.assertEqual(result.stdout, "")
    (line,) = error_lines(result)
    self.assertLessEqual(len(line), 300)
    self.assertTrue(line.isprintable())
    self.assertEqual(line, result.stderr.splitlines()[-1])
    for word in filled(BAD[name][1:], self.folder):
      self.assertIn(word, line)

  @parameterized.named_parameters((name, name) for name in PROCESSES_TOO)
  def test_a_process_says_the_same(self, name):
    batch, process = self.results[name], self.processes[name]
    self.assertEqual(process.returncode, batch.returncode)
    self.assertEqual(process.stdout, batch.stdout)
    self.assertEqual(error_lines(process), error_lines(batch))

  def test_nothing_is_left_behind(self):
    """No folder for a run that is refused; files there stay as they are."""
    self.assertEqual(self.files(), self.before)


class FlagsTest(parameterized.TestCase):

  def parse(self, *arguments, script=run):
    """The Config of a command's own flags; no other flag is known."""
    values = flags.FlagValues()
    for flag in flags.FLAGS.get_key_flags_for_module(script):
      values[flag.name] = copy.deepcopy(flag)
    self.assertLen(values(["run", *arguments]), 1)
    return Config(**{
        field.name: values[field.name].value
        for field in dataclasses.fields(Config)
    })

  def test_defaults_are_those_of_config(self):
    self.assertEqual(self.parse(), Config())

  @parameterized.parameters(
      *(
          str(path.relative_to(ROOT / "experiments"))
          for path in sorted((ROOT / "experiments").rglob("*.flags"))
      )
  )
  def test_presets_parse(self, name):
    path = ROOT / "experiments" / name
    script = run
    if path.with_suffix(".py").exists():
      script = importlib.import_module(f"experiments.paper.{path.stem}")
    config = self.parse(f"--flagfile={path}", script=script)
    config.k_range(444062)
    # What a preset is for.
    name = path.name
    if name == "default.flags":
      spelled_out = Config(controller=Config().used_controller)
      self.assertEqual(config, spelled_out)
    if name == "fixed_k.flags":
      self.assertEqual(config.controller, "fixed")
    if name == "natural.flags":
      self.assertEqual(config.partition, "natural")
    if name in RECIPES:
      self.check_recipe(path, config)

  def check_recipe(self, path, sparse):
    """1% by FAB, and whole models after the same local work on one flag."""
    dim = 444062
    self.assertEqual(sparse.method, "fab_top_k")
    self.assertEqual(sparse.k_range(dim).k, 4440.62)
    self.assertEqual(sparse.used_controller, "fixed")
    dense = self.parse(f"--flagfile={path}", "--method=fedavg")
    self.assertEqual(dense.used_local_steps(dim), sparse.used_local_steps(dim))

  def test_unknown_flags_do_not_parse(self):
    with self.assertRaises(flags.UnrecognizedFlagError):
      self.parse("--kk=50")

  def test_help_lists_every_setting(self):
    result = run_script("--helpshort")
    self.assertNotIn("Traceback", result.stdout + result.stderr)
    for field in dataclasses.fields(Config):
      self.assertRegex(result.stdout, rf"--(\[no\])?{field.name}:")
    self.assertIn("--workdir", result.stdout)


if __name__ == "__main__":
  absltest.main()
