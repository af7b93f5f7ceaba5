"""The scripts about data, as a user starts them."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from unittest import mock

import numpy as np
from absl.testing import absltest, parameterized
from matplotlib import image as matplotlib_image
from PIL import Image

from agsfl import errors
from agsfl.data import federated as data
from agsfl.data.partitions import Partition
from agsfl.errors import ConfigError
from experiments import decode_images, describe_data
from experiments.lib import scripts, stopping
from tests.small import main

ROOT = Path(__file__).resolve().parents[2]


def start(script, *arguments):
  return subprocess.run(
      [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
      capture_output=True,
      text=True,
      cwd=ROOT,
      check=False,
  )


def encoded(images, labels, form="PNG"):
  """The arrays of a file of encoded images."""
  files = []
  for image in images:
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    files.append(file.getvalue())
  return {
      "jpeg": np.frombuffer(b"".join(files), np.uint8),
      "offsets": np.cumsum([0, *map(len, files)]),
      "labels": np.asarray(labels, np.uint8),
  }


class ScriptsTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = Path(self.enter_context(tempfile.TemporaryDirectory()))

  def assert_one_line(self, error, *words):
    (line,) = [
        line for line in error.splitlines() if line.startswith("error")
    ]
    for word in words:
      self.assertIn(word, line)

  def test_decoded_then_described(self):
    """PNGs lose nothing: the npz holds the pixels, and clients get them."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (40, 9, 8, 3), np.uint8)
    labels = np.arange(40) % 4
    train, test, out = (
        self.folder / f"{name}.npz" for name in ("train", "test", "$s{$")
    )
    np.savez(train, **encoded(images[:30], labels[:30]))
    np.savez(test, **encoded(images[30:], labels[30:]))
    asked = f"--train={train}", f"--test={test}", f"--out={out}"
    result = start("decode_images", *asked)
    self.assertEqual(result.stdout, f"--dataset=npz:{out}\n", result.stderr)
    federated = data.load(f"npz:{out}", Partition("shards", 5))
    np.testing.assert_array_equal(federated.clients.features, images)
    np.testing.assert_array_equal(federated.clients.labels, labels)
    self.assertEqual(federated.test_rows.tolist(), list(range(30, 40)))

    result = start(
        "describe_data",
        f"--dataset=npz:{out}",
        "--partition=shards",
        "--num_clients=5",
        # Matplotlib would read formulas between dollars.
        f"--workdir={self.folder / '$seen{$'}",
    )
    lines = result.stdout.splitlines()
    self.assertLen(lines, 8, result.stderr)
    clients = federated.clients
    ends = clients.starts + clients.counts
    for client, line in enumerate(lines[1:6]):
      own = clients.order[clients.starts[client] : ends[client]]
      name, size, tests, *pairs = line.split()
      self.assertEqual(name, str(client))
      self.assertEqual(int(size), len(own))
      self.assertEqual(int(tests), (federated.test_clients == client).sum())
      counts = dict(map(int, pair.split(":")) for pair in pairs)
      want = np.unique_counts(labels[own])
      self.assertEqual(
          counts, dict(zip(*(x.tolist() for x in want), strict=True))
      )
    self.assertStartsWith(
        lines[6], "5 clients, 30 training samples, 10 test samples (10 of them"
    )
    picture = matplotlib_image.imread(self.folder / "$seen{$" / "labels.png")
    self.assertGreater(np.ptp(picture[..., :3]), 0.9)

  def test_bad_input(self):
    good = encoded(np.zeros((3, 4, 4), np.uint8), [1, 2, 3])
    paths = {}
    for name, changes in {
        "good": {},
        "torn": {"jpeg": good["jpeg"][::-1]},
        "uneven": {"labels": np.zeros(5, np.uint8)},
        "short": {"offsets": good["offsets"] + 9},
        "sizes": encoded(np.zeros((3, 5, 4), np.uint8), [1, 2, 3]),
        "empty": {"labels": good["labels"][:0], "offsets": np.zeros(1, int)},
        "floats": {"offsets": good["offsets"].astype(float)},
        "below": {"labels": np.array([0, -1, 2])},
        "above": {"labels": np.array([0, 1000, 2], np.uint64)},
        "between": {"labels": np.array([0, 2.5, 2])},
        "words": {"labels": np.array(["a", "b", "c"])},
        "alpha": encoded(np.zeros((3, 4, 4, 4), np.uint8), [1, 2, 3]),
    }.items():
      paths[name] = self.folder / f"{name}.npz"
      np.savez(paths[name], **{**good, **changes})
    paths["other"] = self.folder / "other.npz"
    np.savez(paths["other"], jpeg=good["jpeg"], images=np.zeros(3))
    out = self.folder / "out.npz"
    for name, word in (
        ("torn", "image 0"), ("uneven", "offsets"), ("short", "offsets"),
        ("sizes", "[5, 4]"), ("none", "must be an npz"), ("empty", "offsets"),
        ("floats", "offsets"), ("alpha", "RGBA"),
        ("below", "0 to 999"), ("above", "0 to 999"), ("between", "2.5"),
        ("words", "labels must be one whole number"),
        ("other", "lacks the key 'offsets', has jpeg, images"),
    ):
      test = paths.get(name, self.folder / "none.npz")
      with self.assertRaises(ConfigError) as caught:
        decode_images.convert(
            [
                decode_images.read("--train", paths["good"]),
                decode_images.read("--test", test),
            ],
            out,
            stopping.Signals(),
        )
      problem = str(caught.exception)
      self.assertNotIn("\n", problem)
      self.assertIn(f"--test={test}", problem)
      self.assertIn(word, problem)
      self.assertLen(list(self.folder.iterdir()), len(paths))

  def test_labels_of_two_types(self):
    """Unsigned and signed ones would be floats together; floats may be."""
    one = encoded(np.zeros((2, 4, 4), np.uint8), [0, 1])
    path, out = self.folder / "one.npz", self.folder / "out.npz"
    parts = []
    for dtype in (np.uint64, np.int64, np.float32):
      np.savez(path, **{**one, "labels": np.array([0, 1], dtype)})
      parts.append(decode_images.read("--train", path))
    decode_images.convert(parts, out, stopping.Signals())
    with np.load(out) as file:
      self.assertEqual(file["labels"].dtype, np.int32)
      self.assertEqual(file["labels"].tolist(), [0, 1, 0, 1, 0, 1])

  @parameterized.parameters(((3,),), ((),))
  def test_standardized_channels(self, channels):
    """Law: as NumPy's mean and std of the training images give it."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (9, 4, 5, *channels), np.uint8)
    if channels:
      images[..., 1] = 7  # constant
    parts = []
    for name, own in (("train", images[:6]), ("test", images[6:])):
      path = self.folder / f"{name}.npz"
      np.savez(path, **encoded(own, np.arange(len(own)) % 2))
      parts.append(decode_images.read(f"--{name}", path))
    out = self.folder / "out.npz"
    decode_images.convert(parts, out, stopping.Signals(), standardize=True)
    train = images[:6].astype(np.float64)
    deviation = train.std((0, 1, 2))
    want = (images - train.mean((0, 1, 2))) / np.where(deviation, deviation, 1)
    with np.load(out) as file:
      self.assertEqual(file["images"].dtype, np.float32)
      np.testing.assert_allclose(file["images"], want, rtol=1e-6, atol=1e-7)

  def test_a_signal_stops_decoding(self):
    """Law: no image is read after a signal, and no file is left."""
    train, test, out = (self.folder / f"{x}.npz" for x in ("a", "b", "out"))
    for path in (train, test):
      np.savez(path, **encoded(np.zeros((3, 4, 4), np.uint8), [0, 1, 2]))
    real, opened = Image.open, []

    def opening(file):
      opened.append(file)
      if len(opened) == 2:
        signal.raise_signal(signal.SIGTERM)
      return real(file)

    with mock.patch.object(Image, "open", opening):
      end = main(
          decode_images, f"--train={train}", f"--test={test}", f"--out={out}"
      )
    self.assertEqual(end, (130, ""))
    self.assertLen(opened, 2)
    self.assertCountEqual(self.folder.iterdir(), [train, test])

  def test_no_input_is_written_over(self):
    paths = [self.folder / f"{name}.npz" for name in ("train", "test")]
    for path in paths:
      np.savez(path, **encoded(np.zeros((2, 4, 4), np.uint8), [0, 1]))
    before = [path.read_bytes() for path in paths]
    link = self.folder / "link.npz"
    link.symlink_to(paths[1])
    self.assert_one_line(
        main(
            decode_images,
            f"--train={paths[0]}", f"--test={paths[1]}", f"--out={link}",
        )[0],
        f"--out={link}: must be another file than --test",
    )
    self.assertEqual([path.read_bytes() for path in paths], before)
    self.assertTrue(link.is_symlink())

  def test_errors_are_one_line(self):
    self.assert_one_line(
        main(describe_data, "--dataset=npz:/none")[0], "--dataset=npz:/none"
    )
    self.assert_one_line(
        main(decode_images, "--train=/none", "--test=/none", "--out=/tmp")[0],
        "--out=/tmp",
    )
    self.assert_one_line(
        main(decode_images, f"--out={self.folder / 'all.npz'}")[0], "--train"
    )
    for split in ("train", "test"):
      (self.folder / split).mkdir()
      (self.folder / split / "a.json").write_text(
          '{"users": ["a"], "num_samples": [1], "user_data": {"a": {}}}'
      )
    asked = f"--leaf_dir={self.folder}", f"--data_dir={self.folder / 'tfds'}"
    self.assert_one_line(
        # Its own process, for its flag is required once it is imported.
        start("prepare_femnist", *asked).stderr,
        f"error: {asked[0]}: ", "'a', x",
    )


class EndsTest(parameterized.TestCase):
  """How `experiments.scripts` ends a program."""

  def ended(self, body):
    """A script of this body, which has begun."""
    program = textwrap.dedent("""
        import sys, time
        from absl import app
        from agsfl import errors, files
        from pathlib import Path
        from experiments.lib import scripts
        def main(argv):
          scripts.start(argv)
          with scripts.one_line_errors():
    """) + textwrap.indent(textwrap.dedent(body), "    ") + "app.run(main)"
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )

  @parameterized.parameters((signal.SIGTERM, 143), (signal.SIGINT, 130))
  def test_signals(self, number, code):
    """Nothing half written is left, and no traceback is printed."""
    with tempfile.TemporaryDirectory() as folder:
      process = self.ended(f"""
          with files.written_whole(Path({folder!r}) / "file") as path:
            path.write_text("half")
            print("begun", flush=True)
            time.sleep(60)
      """)
      self.assertEqual(process.stdout.readline(), "begun\n")
      self.assertLen(list(Path(folder).iterdir()), 1)
      process.send_signal(number)
      self.assertEqual(process.communicate()[1], "")
      self.assertEqual(process.returncode, code)
      self.assertEmpty(list(Path(folder).iterdir()))

  def test_a_reader_that_leaves(self):
    process = self.ended("""
        print("begun", flush=True)
        for _ in range(10000):
          print("more")
    """)
    self.assertEqual(process.stdout.readline(), "begun\n")
    process.stdout.close()
    self.assertEqual(process.stderr.read(), "")
    self.assertEqual(process.wait(), 141)

  def test_too_little_memory(self):
    self.assertRegex(
        self.failed(lambda: np.zeros(2**59)),
        r"^error: not enough memory \(.* 4\.00 EiB .*\)\n$",
    )

  def failed(self, body):
    """What a command of this body prints as it fails."""
    with (
        contextlib.redirect_stderr(io.StringIO()) as printed,
        self.assertRaises(SystemExit) as ended,
        scripts.one_line_errors(),
    ):
      body()
    self.assertEqual(ended.exception.code, 1)
    return printed.getvalue()

  def test_a_line_is_short_and_printable(self):
    """Of 300 characters at most, without what a terminal would obey."""
    self.assertEqual(
        self.failed(lambda: errors.refuse("--dataset=set", "a \x1b\nb \ud800")),
        "error: --dataset=set: a \\x1b b \\ud800\n",
    )
    line = self.failed(lambda: errors.refuse("--k=" + "9" * 999, "must be"))
    self.assertLen(line, 301)
    self.assertEndsWith(line, "999...\n")

  def test_a_platform_that_is_absent(self):
    result = subprocess.run(
        [sys.executable, "-m", "experiments.run", "--workdir=none", "--quiet"],
        capture_output=True, text=True, cwd=ROOT, check=False,
        env={**os.environ, "JAX_PLATFORMS": "none", "MPLBACKEND": "none"},
    )
    self.assertEqual(
        result.stderr,
        "error: JAX_PLATFORMS=none: must be platforms that are here: cpu\n",
    )


class SeenTest(absltest.TestCase):
  """What describe_data counts, by hand."""

  def federated(self, labels, **more):
    return data.FederatedData(
        clients=data.ClientData.of(
            np.zeros((8, 3), np.int8),
            np.array(labels),
            [np.array([4, 1, 0]), np.array([2])],
        ),
        test_rows=np.array([3, 5, 6, 7]),
        test_clients=np.array([1, 0, -1, 1]),
        client_names=np.array(["a", "b"]),
        **more,
    )

  def lines(self, federated):
    """The table and the summary; the figure can be drawn."""
    found = describe_data.seen(federated)
    np.testing.assert_array_equal(found.sizes, [[3, 1], [1, 2]])
    with tempfile.TemporaryDirectory() as folder:
      path = Path(folder) / "labels.png"
      describe_data.draw(federated.client_names, found, "title", path)
      self.assertGreater(np.ptp(matplotlib_image.imread(path)[..., :3]), 0.9)
    text = describe_data.table(federated.client_names, found)
    _, *lines = [line.split() for line in text.splitlines()]
    return lines, describe_data.summary(federated, found)

  def test_classes(self):
    federated = self.federated([0, 90, 2, 0, 90, 90, 2, 0], num_classes=91)
    found = describe_data.seen(federated)
    np.testing.assert_array_equal(found.labels, [0, 2, 90])
    np.testing.assert_array_equal(
        found.counts, [[[1, 0, 2], [0, 1, 0]], [[0, 0, 1], [2, 0, 0]]]
    )
    lines, _ = self.lines(federated)
    self.assertEqual(lines, [[*"a31", "0:1", "90:2"], [*"b12", "2:1"]])

  def test_sequences(self):
    """Each place of a sequence counts, but for those without label."""
    labels = np.repeat([[0], [9], [2], [0], [9], [9], [2], [0]], 3, 1)
    labels[1, :2] = -1
    lines, summary = self.lines(
        self.federated(labels, num_classes=10, task="next_token")
    )
    self.assertEqual(lines, [["a", "3", "1", "7", "2"], [*"b1231"]])
    self.assertEqual(
        summary,
        "2 clients, 4 training samples, 4 test samples (3 of them belong to a "
        "client), 3 different labels, samples of shape 3 int8, 10 different "
        "tokens, 3 "
        "labels a sample, task next_token",
    )

  def test_real_numbers(self):
    lines, summary = self.lines(
        self.federated(np.zeros((8, 2)), num_classes=2, task="regression")
    )
    self.assertEqual(lines, [[*"a31"], [*"b12"]])
    self.assertIn("labels of shape 2", summary)

  def test_control_characters(self):
    """A terminal would obey them."""
    found = describe_data.Seen(
        np.ones((2, 1), int), np.array([5]), np.ones((2, 1, 1), int)
    )
    text = describe_data.table(np.array(["é\x1b[2J"]), found)
    self.assertEqual(text.splitlines()[1].split(), ["é\\x1b[2J", *"11", "5:1"])


if __name__ == "__main__":
  absltest.main()
