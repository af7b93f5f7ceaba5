"""FEMNIST by writer for TensorFlow Datasets, made from LEAF's JSON folders.

Importing this registers the builder `agsfl_femnist`. It needs no TensorFlow:

    from agsfl.data.sources import femnist
    femnist.prepare("leaf/data/femnist/data")
    tfds.data_source("agsfl_femnist", split="train")
"""

import io
import os
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from agsfl.data.sources import leaf
from agsfl.errors import StoppedError, refuse, refused
from agsfl.settings import require_utf8

CLASSES = (*string.digits, *string.ascii_uppercase, *string.ascii_lowercase)
_SIDE = 28
_STAMP = "leaf_files"


class AgsflFemnist(tfds.core.GeneratorBasedBuilder):
  """EMNIST by writer, as LEAF splits it; ink is 0 on paper of 255."""

  VERSION = tfds.core.Version("1.0.0")
  MANUAL_DOWNLOAD_INSTRUCTIONS = """
  The folder data/femnist/data of LEAF (https://github.com/TalwalkarLab/leaf)
  after its ./preprocess.sh -s niid -t sample: it holds train/ and test/.
  """

  should_stop: Callable[[], bool] = staticmethod(lambda: False)

  def _info(self):
    return self.dataset_info_from_configs(
        description="Handwritten characters with the ids of their writers.",
        features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(_SIDE, _SIDE, 1)),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "writer": tfds.features.Text(),
        }),
        supervised_keys=("image", "label"),
        # The files that the set is made of; see `_split_generators`.
        metadata=tfds.core.MetadataDict(),
        homepage="https://github.com/TalwalkarLab/leaf",
        citation=(
            "@article{leaf2018, title={LEAF: A Benchmark for Federated "
            "Settings}, author={Caldas, Sebastian and others}, "
            "journal={arXiv:1812.01097}, year={2018}}"
        ),
    )

  def _split_generators(self, dl_manager):
    folder = Path(dl_manager.manual_dir)
    setting = _setting(folder)
    files = leaf.files_of(setting, folder)
    self.info.metadata[_STAMP] = leaf.stamp_of(setting, files)
    return {
        split: self._generate_examples(
            setting, [path for path, of in files if of == split]
        )
        for split in leaf.SPLITS
    }

  def _generate_examples(self, setting, files):
    count = 0
    for path in files:
      sizes = leaf.sizes_of(setting, path)
      for name, rows, labels in leaf.users_of(
          setting, path, sizes, len(CLASSES)
      ):
        if self.should_stop():
          raise StoppedError("stopped")
        are_numbers = rows.dtype == np.float32 and rows.shape[1] == _SIDE**2
        images = leaf.as_bytes(rows) if are_numbers else None
        if images is None:
          refuse(
              setting,
              f"{path}: user_data of {name!r}, x: must be 784 multiples of "
              "1/255 each",
          )
        for image, label in zip(images, labels, strict=True):
          count += 1
          yield count, {
              "image": _png(image.reshape(_SIDE, _SIDE)),
              "label": int(label),
              "writer": name,
          }
    if not count:
      refuse(setting, f"{files[0].parent}: must hold samples, found none")


def _setting(folder):
  """The beginning of messages."""
  return f"--leaf_dir={folder}"


def _png(image: np.ndarray) -> bytes:
  """The image as a PNG file; for arrays TFDS would need TensorFlow."""
  file = io.BytesIO()
  Image.fromarray(image).save(file, "PNG")
  return file.getvalue()


def prepare(
    leaf_dir: str | Path,
    data_dir: str | Path | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> Path:
  """Converts LEAF's folders; a set that is already there stays as it is.

  Args:
    leaf_dir: the folder with `train` and `test`; ~ is the home folder.
    data_dir: of TensorFlow Datasets; None means its default.
    should_stop: asked before each writer.

  Returns:
    The folder of the data set.

  Raises:
    ConfigError: the text names the file and the key, or the folder of a set
      that was made from other files.
    StoppedError: `should_stop` said so; nothing of the set is left.
  """
  leaf_dir = os.path.expanduser(leaf_dir)
  for name, path in (("leaf_dir", leaf_dir), ("data_dir", data_dir or "")):
    require_utf8(name, str(path))
  setting = _setting(leaf_dir)
  stamp = leaf.stamp_of(setting, leaf.files_of(setting, Path(leaf_dir)))
  with refused(
      f"--data_dir={data_dir}", "must be a folder that can be written"
  ):
    builder = AgsflFemnist(data_dir=data_dir, file_format="array_record")
    builder.should_stop = should_stop
    builder.download_and_prepare(
        download_config=tfds.download.DownloadConfig(manual_dir=leaf_dir)
    )
  if builder.info.metadata.get(_STAMP) != stamp:
    refuse(
        setting,
        f"{builder.data_dir} was prepared from other files; remove that "
        "folder, or give another --data_dir",
    )
  return Path(builder.data_dir)
