"""What all commands share: text, paths, errors, devices, hints."""

import ast
import contextlib
import gc
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import jax
from absl import flags
from absl.testing import absltest, flagsaver, parameterized

import agsfl
from agsfl import frame
from agsfl.config import Config
from agsfl.errors import ConfigError
from agsfl.records.read import Run
from experiments.lib import (
    compilation,
    dashboards,
    launchers,
    runner,
    scripts,
    stopping,
)

ROOT = Path(__file__).resolve().parents[2]
# Their `open` is not Python's: a module, and a zip file of NumPy's.
_NO_TEXT = ("os", "Image", "file")


def setUpModule():
  assert runner  # it defines the flags of a run
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()


def text_without_encoding(source):
  """The lines of calls that read or write text in the locale's encoding."""
  for call in ast.walk(ast.parse(source)):
    if not isinstance(call, ast.Call):
      continue
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    owner = getattr(getattr(call.func, "value", None), "id", None)
    named = {keyword.arg for keyword in call.keywords}
    constants = [
        node.value
        for node in (*call.args, *(k.value for k in call.keywords))
        if isinstance(node, ast.Constant)
    ]
    is_binary = owner in _NO_TEXT or any(
        isinstance(x, str) and re.fullmatch(r"[rwax+]*b[rwax+]*", x)
        for x in constants
    )
    is_text = (
        name in ("read_text", "write_text")
        or (name in ("open", "fdopen") and not is_binary)
        or {"text", "universal_newlines"} & named
    )
    if is_text and "encoding" not in named:
      yield call.lineno


class TextTest(parameterized.TestCase):

  @parameterized.parameters(
      ("open(x)", 1), ("x.open('w')", 1), ("x.read_text()", 1),
      ("run(x, text=True)", 1), ("open(x, 'rb')", 0), ("x.open('wb')", 0),
      ("x.write_text(y, encoding='utf-8')", 0),
  )
  def test_finds_calls(self, source, count):
    self.assertLen(list(text_without_encoding(source)), count)

  def test_encoding_is_named(self):
    """Law: no text depends on the locale, in the library and the commands."""
    paths = [ROOT / "setup.py"]
    for folder in ("agsfl", "experiments", "colab"):
      paths += (ROOT / folder).rglob("*.py")
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in paths
        for line in text_without_encoding(path.read_text(encoding="utf-8"))
    ]
    self.assertEqual(found, [])

  def test_a_terminal_without_the_characters(self):
    before = signal.getsignal(signal.SIGTERM)
    self.addCleanup(signal.signal, signal.SIGTERM, before)
    content = io.BytesIO()
    with (
        contextlib.redirect_stdout(io.TextIOWrapper(content, "ascii")) as text,
        mock.patch.object(scripts, "_use_cores"),
        mock.patch.object(compilation, "use_cache"),
    ):
      scripts.start(["run"])
      print("0.5 ± 0.1", flush=True)
      text.detach()
    self.assertEqual(content.getvalue(), b"0.5 \\xb1 0.1\n")

  def test_no_cell_is_a_formula(self):
    """Law: no cell of the exported file begins like a formula."""
    row = {"round": 1, "k_up": 2, "k_down": 0, "=name": 0.5}
    used = {"method": "send_all", "num_clients_used": 1}
    runs = [
        Run([row], {}, {}, used | given | {"asked": given})
        for given in ({"replay": "@x"}, {})
    ]
    place = Path(self.enterContext(tempfile.TemporaryDirectory())) / "a.csv"
    frame.write(frame.by_round(runs, ["+run", "-run"]), place)
    header, first, second = place.read_text(encoding="utf-8").splitlines()
    self.assertEqual(header, "run,replay,seed,round,k_up,k_down,'=name,bytes")
    self.assertEqual(first, "'+run,'@x,0,1,2,0,0.5,8")
    self.assertStartsWith(second, "'-run,")


class ErrorsTest(parameterized.TestCase):

  def test_errors_can_be_printed(self):
    """Law: a line per error, of at most 300 characters that print."""
    wrong = ["\x1b[31mred\r\n\0", "x" * 100_000, "ü" * 299]
    with contextlib.redirect_stderr(io.StringIO()) as printed:
      with self.assertRaisesRegex(SystemExit, "1"):
        scripts.fail(wrong)
    lines = printed.getvalue().splitlines()
    self.assertEqual(lines[0], r"\x1b[31mred \x00")
    self.assertEqual(lines[1], "x" * 297 + "...")
    self.assertEqual(lines[2], wrong[2])

  @parameterized.parameters(
      ("tensorboard", "tensorboardX"), ("wandb", "wandb"),
      ("trackio", "trackio"),
  )
  def test_what_to_install(self, flag, package):
    """It names the package, so it helps with a clone too."""
    with (
        flagsaver.flagsaver(**{flag: True if flag == "tensorboard" else "1"}),
        mock.patch.dict(sys.modules, {package: None}),
        self.assertRaisesRegex(ConfigError, f": pip install {package}$"),
        dashboards.opened(Config(), Path("run")),
    ):
      self.fail()

  def test_what_to_install_for_slurm(self):
    with mock.patch.dict(sys.modules, submitit=None):
      with self.assertRaisesRegex(ConfigError, ": pip install submitit$"):
        launchers.slurm(Path("sweep"), [], stopping.Signals())


class PathsTest(absltest.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enterContext(tempfile.TemporaryDirectory()))

  def test_flagfiles(self):
    """Those of the project are found everywhere; those of the user first."""
    given = lambda name: f"--flagfile=experiments/presets/{name}.flags"
    mine = self.folder / "experiments" / "presets" / "natural.flags"
    mine.parent.mkdir(parents=True)
    mine.write_text("--k=77\n", encoding="utf-8")
    (self.folder / "home.flags").write_text("--k=78\n", encoding="utf-8")
    self.enterContext(contextlib.chdir(self.folder))
    self.enterContext(mock.patch.dict(os.environ, HOME=str(self.folder)))
    for words, name, value in (
        ([given("fixed_k")], "controller", "fixed"),
        (given("cifar10").split("="), "num_clients", 100),
        ([given("natural")], "k", "77"),
        (["--flagfile=~/home.flags"], "k", "78"),
    ):
      with flagsaver.flagsaver():
        self.assertEqual(scripts._parsed(["run", *words, "x"]), ["run", "x"])
        self.assertEqual(flags.FLAGS[name].value, value)

  def test_import_beside_a_clone(self):
    """A folder with the package's name is not taken for it."""
    (self.folder / "agsfl").symlink_to(ROOT)
    program = """if True:
      import importlib.metadata, importlib.util
      try:
        print(importlib.metadata.version("agsfl"))
      except importlib.metadata.PackageNotFoundError:
        print("none")
      else:
        print(importlib.util.find_spec("agsfl").origin)
    """
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=self.folder, capture_output=True, text=True, encoding="utf-8",
        check=False, env={**os.environ, "PYTHONPATH": ""},
    )
    if result.stdout == "none\n":
      self.skipTest("agsfl is not installed")
    self.assertEqual(
        result.stdout, f"{agsfl.__version__}\n{agsfl.__file__}\n"
    )


class DevicesTest(parameterized.TestCase):

  @parameterized.parameters(
      ({"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, False),
      ({"JAX_NUM_CPU_DEVICES": "4"}, False),
      ({"XLA_FLAGS": "--xla_backend_optimization_level=0"}, True),
      ({}, True),
  )
  def test_cores(self, environment, is_set):
    """A device for each core, unless the user gives their number."""
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.object(jax.config, "update") as update,
    ):
      for name in {"XLA_FLAGS", "JAX_NUM_CPU_DEVICES"} - set(environment):
        os.environ.pop(name, None)
      scripts._use_cores()
    cores = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):  # not on macOS
      cores = len(os.sched_getaffinity(0))
    want = [mock.call("jax_num_cpu_devices", cores)] if is_set else []
    self.assertEqual(update.mock_calls, want)


class CompilationTest(parameterized.TestCase):

  @parameterized.parameters(
      # The flag, the user's variable, the folder in which JAX stores.
      (None, None, "HOME/.cache/agsfl/KIND"),
      (None, "HOME/theirs", "HOME/theirs"),
      (None, "~/theirs", "HOME/theirs"),
      (None, "gs://theirs", "gs://theirs"),
      ("~/mine", "HOME/theirs", "HOME/mine"),
      ("none", "HOME/theirs", None),
  )
  def test_where_programs_are_stored(self, flag, variable, want):
    home = self.enterContext(tempfile.TemporaryDirectory())
    environment = {"HOME": home}
    if variable:
      variable = variable.replace("HOME", home)
      environment["JAX_COMPILATION_CACHE_DIR"] = variable
    found = self.stored_in(flag, environment)
    if found:
      found = re.sub(r"[^/]+-[0-9a-f]{8}$", "KIND", found).replace(home, "HOME")
    self.assertEqual(found, want)

  def stored_in(self, flag, environment):
    """The folder that JAX gets, or None where it stores nothing."""
    with (
        mock.patch.dict(os.environ, environment, clear=True),
        flagsaver.flagsaver(compilation_cache_dir=flag),
        mock.patch.object(jax.config, "update") as update,
    ):
      compilation.use_cache()
    updates = dict(call.args for call in update.call_args_list)
    if updates == {"jax_enable_compilation_cache": False}:
      return None
    folder = updates.pop("jax_compilation_cache_dir")
    self.assertEqual(updates, {"jax_persistent_cache_min_compile_time_secs": 0})
    self.assertTrue("://" in folder or os.path.isdir(folder))
    return folder

  def test_nobody_s_home(self):
    """A container's user may have neither HOME nor a line in passwd."""
    with mock.patch("pwd.getpwuid", side_effect=KeyError):
      with self.assertNoLogs():
        self.assertIsNone(self.stored_in(None, {}))

  @parameterized.parameters("makedirs", "open")
  def test_a_folder_that_cannot_be_written(self, fails):
    """One line, and the command goes on; root may write to any real folder."""
    home = self.enterContext(tempfile.TemporaryDirectory())
    denied = PermissionError(13, "Permission denied")
    with (
        mock.patch.object(os, fails, side_effect=denied),
        self.assertLogs(level="WARNING") as logged,
    ):
      self.assertIsNone(self.stored_in(f"{home}/mine", {}))
    (line,) = logged.output
    self.assertEndsWith(line, f"not stored: {home}/mine: Permission denied")


class SignalsTest(absltest.TestCase):

  def test_during_a_callback(self):
    """What a handler raises is lost there; so the first signal is noted.

    Its words may come in the middle of another write.
    """
    lost = mock.Mock()
    with (
        mock.patch.object(sys, "unraisablehook", lost),
        stopping.Signals(mock.Mock(side_effect=RuntimeError)) as signals,
    ):
      callback = lambda phase, info: (
          phase == "start" and signal.raise_signal(signal.SIGTERM)
      )
      gc.callbacks.append(callback)
      try:
        gc.collect()
      finally:
        gc.callbacks.remove(callback)
      self.assertTrue(signals.seen)
    lost.assert_not_called()


if __name__ == "__main__":
  absltest.main()
