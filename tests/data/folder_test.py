"""Folders of images, by what a test writes into them."""

import tempfile
import warnings
from pathlib import Path
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized
from PIL import Image

from agsfl.data import federated as data
from agsfl.data import sources
from agsfl.data.partitions import Partition
from agsfl.data.sources import SourceOptions
from agsfl.errors import ConfigError
from tests.data.helpers import numbered, samples_or_one_line


class FolderTest(parameterized.TestCase):

  def setUp(self):
    super().setUp()
    self.folder = self.enter_context(tempfile.TemporaryDirectory())
    self.place = Path(self.folder)

  def write(self, name, image):
    """Saves an array, or an image, in the form of its name."""
    path = self.place / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, np.ndarray):
      image = Image.fromarray(image)
    image.save(path)
    return path

  def write_classes(self, *, per_class=5, names=("cat", "ant"), shape=(2, 3)):
    """Numbered images; class names in the order given."""
    images = numbered(per_class * len(names), shape)
    for index, image in enumerate(images):
      name = names[index // per_class]
      self.write(f"{name}/{index:02}.png", image)
    return images

  def read(self, **options):
    return sources.read(f"folder:{self.folder}", SourceOptions(**options), 0)

  def error(self, **options):
    with self.assertRaises(ConfigError) as caught:
      self.read(**options)
    self.assertNotIn("\n", str(caught.exception))
    self.assertStartsWith(
        str(caught.exception), f"--dataset=folder:{self.folder}: "
    )
    return str(caught.exception)

  @parameterized.parameters(((2, 3), 1), ((2, 3, 3), 3))
  def test_pixels_and_sorted_classes(self, shape, channels):
    """Law: the bytes are the files', and classes their folders' names."""
    images = self.write_classes(shape=shape)
    samples = self.read()
    # ant's files come before cat's.
    want = np.concatenate([images[5:], images[:5]]).reshape(10, 2, 3, channels)
    np.testing.assert_array_equal(samples.features, want)
    self.assertEqual(samples.features.dtype, np.uint8)
    self.assertEqual(samples.features.ctypes.data % 64, 0)
    self.assertEqual(samples.labels.tolist(), [0] * 5 + [1] * 5)
    self.assertEqual(samples.is_train.sum(), 8)

  def test_train_and_test(self):
    """A class may be in one of them alone."""
    for name, level in (
        ("test/b/0.png", 0), ("train/a/1.png", 1), ("train/c/2.bmp", 2),
        ("train/b/3.gif", 3), ("test/d/4.PNG", 4),
    ):
      self.write(name, np.full((2, 2), level, np.uint8))
    samples = self.read()
    levels = samples.features[:, 0, 0, 0].tolist()
    self.assertEqual(
        dict(zip(levels, samples.labels.tolist(), strict=True)),
        {0: 1, 1: 0, 2: 2, 3: 1, 4: 3},
    )
    self.assertEqual(
        {level for level, train in zip(levels, samples.is_train, strict=True)
         if train},
        {1, 2, 3},
    )

  def test_train_and_test_beside_others_are_classes(self):
    self.write_classes(names=("train", "test", "more"))
    self.assertEqual(np.bincount(self.read().labels).tolist(), [5, 5, 5])

  def test_what_is_passed_over(self):
    images = self.write_classes()
    (self.place / "readme.txt").write_text("hello", encoding="utf-8")
    (self.place / "cat" / "notes.txt").write_text("hello", encoding="utf-8")
    (self.place / "cat" / ".hidden.png").write_bytes(b"no image")
    (self.place / ".git").mkdir()
    self.assertLen(self.read().labels, len(images))

  def test_grey_and_colour_together_become_rgb(self):
    grey = np.full((2, 2), 7, np.uint8)
    self.write("a/0.png", grey)
    self.write("a/1.png", np.full((2, 2, 3), (1, 2, 3), np.uint8))
    self.write("a/2.png", np.full((2, 2, 4), (4, 5, 6, 9), np.uint8))
    palette = Image.fromarray(np.full((2, 2, 3), (8, 9, 10), np.uint8))
    palette = palette.quantize()
    palette.info["transparency"] = b"\x80" * 9
    self.write("a/3.png", palette)
    self.write("a/4.gif", Image.fromarray(grey))
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      samples = self.read()
    self.assertEqual(
        samples.features[:, 1, 1].tolist(),
        [[7, 7, 7], [1, 2, 3], [4, 5, 6], [8, 9, 10], [7, 7, 7]],
    )

  def test_bits_are_0_and_255(self):
    for index in range(5):
      self.write(f"a/{index}.png", np.array([[True, False]]))
    self.assertEqual(self.read().features[0].tolist(), [[[255], [0]]])

  def test_jpeg(self):
    """Loses little of one colour."""
    for index, end in enumerate(("jpg", "jpeg", "JPG", "jpg", "jpg")):
      self.write(f"a/{index}.{end}", np.full((8, 8, 3), 100, np.uint8))
    features = self.read().features.astype(int)
    self.assertLess(np.abs(features - 100).max(), 3)

  def test_image_size(self):
    """Law: an image of one colour stays so at every size."""
    for index, shape in enumerate(((2, 2), (7, 3), (4, 9), (5, 5), (1, 1))):
      self.write(f"a/{index}.png", np.full(shape, 10 * index, np.uint8))
    want = np.arange(5)[:, None, None, None] * 10 * np.ones((1, 4, 4, 1))
    np.testing.assert_array_equal(self.read(image_size=4).features, want)
    # Resizing to the size that an image has changes nothing.
    images = self.write_classes(names=("a", "b"), shape=(6, 6))
    for index in range(5):
      (self.place / "a" / f"{index}.png").unlink()
    features = self.read(image_size=6).features
    np.testing.assert_array_equal(features[..., 0], images)

  def test_sizes_differ(self):
    self.write_classes()
    other = self.write("cat/z.png", np.zeros((4, 5), np.uint8))
    error = self.error()
    self.assertIn(f"{self.place / 'ant/05.png'} is 3 x 2", error)
    self.assertIn(f"{other} 5 x 4; give --image_size", error)

  @parameterized.parameters(b"", b"no image", None)
  def test_unreadable(self, content):
    """None: the file is cut off after its header."""
    self.write_classes(shape=(50, 50))
    path = self.place / "cat" / "03.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:60] if content is None else content)
    self.assertIn(f"{path}: cannot be read as an image", self.error())

  def test_the_name_does_not_decide_the_form(self):
    """Only the four forms are read, whatever a file is called."""
    self.write_classes()
    path = self.place / "cat" / "03.png"
    Image.fromarray(np.zeros((2, 3), np.uint8)).save(path, "TIFF")
    self.assertIn(f"{path}: cannot be read as an image", self.error())

  def test_too_large(self):
    self.write_classes()
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 5):
      self.assertIn("ant/05.png: cannot be read as an image", self.error())

  def test_more_than_8_bits(self):
    path = self.write("a/0.png", np.zeros((2, 2), np.uint16))
    self.assertIn(f"{path}: must be of 8 bits, is of mode I;16", self.error())

  def test_no_images(self):
    self.assertIn("must hold one folder of images for each", self.error())
    (self.place / "a").mkdir()
    self.assertIn(f"{self.place / 'a'}: holds no PNG, JPEG", self.error())
    with self.assertRaisesRegex(ConfigError, "must be a folder that can be"):
      data.load(f"folder:{self.folder}/none")

  def test_loads_for_clients(self):
    self.write_classes(per_class=10)
    federated = data.load(f"folder:{self.folder}", Partition("one_class", 2))
    self.assertEqual(federated.num_classes, 2)

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.sampled_from(["PNG", "JPEG", "GIF", "BMP", None]),
      st.data(),
  )
  def test_any_file(self, form, draws):
    """Any bytes, or an image with a byte changed or its end cut off."""
    if not (self.place / "cat").exists():
      self.write_classes()
    path = self.place / "cat" / "x.png"
    if form is None:
      path.write_bytes(draws.draw(st.binary(max_size=99)))
    else:
      image = numbered(1, draws.draw(st.sampled_from(((2, 3), (2, 3, 3)))))[0]
      Image.fromarray(image).save(path, form)
      content = path.read_bytes()
      at = draws.draw(st.integers(0, len(content) - 1))
      byte = draws.draw(st.binary(max_size=1))
      path.write_bytes(content[:at] + (byte and byte + content[at + 1 :]))
    samples_or_one_line(
        self,
        f"folder:{self.folder}",
        image_size=draws.draw(st.none() | st.integers(1, 9)),
    )


if __name__ == "__main__":
  absltest.main()
