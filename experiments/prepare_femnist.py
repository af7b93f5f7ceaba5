"""Makes the data set `femnist` from LEAF's folder, for TensorFlow Datasets."""

from absl import flags

from agsfl.files import expanded
from experiments.lib import scripts, stopping

_LEAF_DIR = flags.DEFINE_string(
    "leaf_dir",
    None,
    "LEAF's folder data/femnist/data after ./preprocess.sh -s niid -t sample. "
    "It has the folders train and test.",
    required=True,
)
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Folder of TensorFlow Datasets. Default: TFDS_DATA_DIR, or the folder in "
    "the user's home. --dataset=femnist reads from there.",
)


def main(argv):
  scripts.start(argv)
  with scripts.one_line_errors(), stopping.Signals() as signals:
    import tensorflow_datasets as tfds  # takes a second

    from agsfl.data.sources import femnist

    # A bar would stand on the same line as an error.
    tfds.disable_progress_bar()
    data_dir = _DATA_DIR.value and str(expanded(_DATA_DIR.value))
    place = femnist.prepare(
        expanded(_LEAF_DIR.value), data_dir, should_stop=lambda: signals.seen
    )
    print(place)


if __name__ == "__main__":
  scripts.run(main)
