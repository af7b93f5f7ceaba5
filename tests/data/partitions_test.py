"""The partitions, by their laws."""

import dataclasses
import doctest
import itertools
import re
from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl.data import partitions
from agsfl.data.partitions import (
  PARTITIONS,
  Partition,
  assign,
  register_partition,
)
from agsfl.data.samples import Samples, coded
from agsfl.errors import ConfigError

# Other tests may register more.
BUILT_IN = sorted(PARTITIONS)


def samples_of(labels, is_train, owners=None):
  """A data set whose features are not read."""
  labels = np.asarray(labels, np.int32)
  features = np.zeros((len(labels), 1), np.uint8)
  codes = ()
  if owners is not None:
    codes = coded("set", "client", np.asarray(owners))
  return Samples("set", features, labels, np.asarray(is_train, bool), *codes)


def example(num_train=4000, num_test=1000, num_classes=10, num_owners=60):
  """Labels and owners at random, of uneven shares."""
  rng = np.random.default_rng(0)
  count = num_train + num_test
  labels = np.minimum(
      rng.integers(0, num_classes, count), rng.integers(0, num_classes, count)
  )
  labels[:num_classes] = np.arange(num_classes)
  owners = rng.integers(0, num_owners, count)
  owners[:num_owners] = np.arange(num_owners)
  return samples_of(labels, np.arange(count) < num_train, owners)


def histograms(samples, rows):
  """[N, L] samples of each label at each client."""
  size = samples.labels.max() + 1
  own = [np.asarray(one, np.int64) for one in rows]
  return np.array(
      [np.bincount(samples.labels[one], minlength=size) for one in own]
  )


@st.composite
def cases(draw):
  """Any small data set, and a partition that fits it."""
  name = draw(st.sampled_from(BUILT_IN))
  num_clients = draw(st.integers(1, 12))
  classes = draw(
      st.lists(st.integers(0, 20), min_size=1, max_size=5, unique=True)
  )
  shards = draw(st.integers(1, 3))
  if name == "one_class":
    num_clients = max(num_clients, len(classes))
    least = -(-num_clients // len(classes))
    sizes = [draw(st.integers(least, least + 6)) for _ in classes]
    labels = draw(st.permutations(np.repeat(classes, sizes).tolist()))
  else:
    least = num_clients * (shards if name == "shards" else 1)
    # Shares by chance leave some with nothing where there is little.
    least *= 20 if name == "dirichlet_split" else 1
    labels = draw(
        st.lists(st.sampled_from(classes), min_size=least, max_size=least + 30)
    )
  num_train, tests = len(labels), draw(st.integers(1, 12))
  labels = labels + draw(
      st.lists(st.integers(0, 20), min_size=tests, max_size=tests)
  )
  ids = draw(
      st.lists(
          st.integers(-99, 99),
          min_size=num_clients,
          max_size=num_clients,
          unique=True,
      )
  )
  more = len(labels) - num_clients
  owners = ids + draw(
      st.lists(st.sampled_from(ids), min_size=more, max_size=more)
  )
  if draw(st.booleans()):
    owners = [f"w{owner}" for owner in owners]
  order = np.array(draw(st.permutations(range(len(labels)))))
  samples = samples_of(
      np.array(labels)[order],
      (np.arange(len(labels)) < num_train)[order],
      np.array(owners)[order],
  )
  return samples, Partition(
      partition=name,
      num_clients=num_clients,
      shards_per_client=shards,
      min_samples=draw(st.sampled_from((0, 1))),
      dirichlet_alpha=draw(st.sampled_from((0.5, 1.0, 50.0))),
      power=draw(st.sampled_from((0.0, 1.0, 3.0))),
      seed=draw(st.integers(0, 2**32 - 1)),
  )


class LawsTest(parameterized.TestCase):

  @hypothesis.settings(max_examples=400, deadline=None)
  @hypothesis.given(cases())
  def test_laws(self, case):
    samples, settings = case
    assigned = assign(samples, settings)
    train = list(itertools.chain(*assigned.train))
    test = list(itertools.chain(*assigned.test))
    # Law: every training sample once; a test sample at most once.
    self.assertEqual(sorted(train), np.flatnonzero(samples.is_train).tolist())
    self.assertLen(set(test), len(test))
    self.assertFalse(samples.is_train[np.array(test, int)].any())
    # Law: N clients, each with a name and enough training samples.
    self.assertLen(assigned.train, settings.num_clients)
    self.assertLen(assigned.test, settings.num_clients)
    self.assertLen(set(assigned.names), settings.num_clients)
    self.assertGreaterEqual(
        min(map(len, assigned.train)), settings.min_samples
    )
    # Law: of the tests only those are left whose label no training sample has.
    # They count in the test set.
    left = np.setdiff1d(np.flatnonzero(~samples.is_train), test)
    np.testing.assert_array_equal(assigned.others, left)
    known = set(samples.labels[samples.is_train])
    if settings.partition == "natural":
      self.assertEmpty(left)
    else:
      self.assertTrue(known.isdisjoint(samples.labels[left]))
      # Law: a client is tested on labels that it trains on, and on as many of
      # each as its share of the training samples asks for, to one.
      mine, tested = (
          histograms(samples, rows) for rows in (assigned.train, assigned.test)
      )
      whole, all_tests = mine.sum(axis=0), tested.sum(axis=0)
      want = mine / whole.clip(1) * all_tests
      self.assertLess(np.abs(tested - want).max(), 1 + 1e-9)
      self.assertFalse(tested[mine == 0].any())
    # Law: the data's seed decides, which is the seed if it is not set.
    seed = settings.seed
    for change in {}, {"seed": seed ^ 1, "data_seed": seed}:
      again = assign(samples, dataclasses.replace(settings, **change))
      for part in ("train", "test"):
        pairs = zip(getattr(assigned, part), getattr(again, part), strict=True)
        for one, other in pairs:
          np.testing.assert_array_equal(one, other)

  @parameterized.parameters(sorted(set(PARTITIONS) - {"natural"}))
  def test_another_seed_gives_other_rows(self, name):
    one, other = (
        assign(example(), Partition(name, 20, seed=seed)).train
        for seed in (0, 1)
    )
    same = [
        np.array_equal(np.sort(a), np.sort(b))
        for a, b in zip(one, other, strict=True)
    ]
    self.assertFalse(all(same))

  def test_natural_takes_no_seed(self):
    one, other = (
        assign(example(), Partition("natural", seed=seed)) for seed in (0, 1)
    )
    lists = one.train + one.test, other.train + other.test
    for a, b in zip(*lists, strict=True):
      np.testing.assert_array_equal(a, b)


class IidTest(absltest.TestCase):

  def test_sizes_differ_by_one_at_most(self):
    assigned = assign(example(4003), Partition("iid", 20))
    sizes = list(map(len, assigned.train))
    self.assertLessEqual(max(sizes) - min(sizes), 1)


class OneClassTest(parameterized.TestCase):

  @parameterized.parameters(10, 13, 40)
  def test_one_class_each_shared_equally(self, num_clients):
    samples = example()
    assigned = assign(samples, Partition("one_class", num_clients))
    of_class = {}
    for train, test in zip(assigned.train, assigned.test, strict=True):
      (label,) = set(samples.labels[train])
      self.assertLessEqual(set(samples.labels[test]), {label})
      of_class.setdefault(label, []).append(len(train))
    self.assertEqual(set(of_class), set(range(10)))
    sizes = [len(shares) for shares in of_class.values()]
    self.assertLessEqual(max(sizes) - min(sizes), 1)
    for shares in of_class.values():
      self.assertLessEqual(max(shares) - min(shares), 1)

  def test_default_number_of_clients(self):
    """Ten, or the number of classes."""
    for num_classes in (3, 10, 13):
      samples = example(num_classes=num_classes)
      self.assertLen(assign(samples, Partition()).names, max(10, num_classes))


class NaturalTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5, 10)
  def test_takes_the_first_ids(self, count):
    """In order of the numbers; test samples of others do not count."""
    owners = [9, 10, 2, 33, 7, 4, 5, 81, 6, 8, 9, 10, 2, 33, 2]
    samples = samples_of(np.zeros(15), np.arange(15) < 13, owners)
    assigned = assign(samples, Partition("natural", count))
    self.assertEmpty(assigned.others)
    first = [2, 4, 5, 6, 7, 8, 9, 10, 33, 81][:count]
    self.assertEqual(assigned.names.tolist(), [str(n) for n in first])
    for client, name in enumerate(first):
      members = [row for row, owner in enumerate(owners) if owner == name]
      self.assertEqual(
          [*assigned.train[client], *assigned.test[client]], members
      )

  def test_small_clients_are_left_out(self):
    owners = [1, 1, 1, 2, 3, 3, 1, 2, 3]
    samples = samples_of(np.zeros(9), np.arange(9) < 6, owners)
    assigned = assign(samples, Partition("natural", min_samples=2))
    self.assertEqual(assigned.names.tolist(), ["1", "3"])
    self.assertEqual(list(map(list, assigned.train)), [[0, 1, 2], [4, 5]])
    self.assertEqual(list(map(list, assigned.test)), [[6], [8]])

  @parameterized.parameters(0, 1)
  def test_owners_of_test_samples_alone_are_no_clients(self, least):
    """As in LEAF's split by user: they are in the global test set only."""
    samples = samples_of(
        np.zeros(5), [1, 1, 0, 0, 0], ["a", "b", "a", "c", "c"]
    )
    assigned = assign(samples, Partition("natural", min_samples=least))
    self.assertEqual(assigned.names.tolist(), ["a", "b"])
    self.assertEqual(list(map(list, assigned.test)), [[2], []])
    self.assertEqual(assigned.others.tolist(), [3, 4])

  @parameterized.parameters({"num_clients": 1}, {"min_samples": 2})
  def test_clients_without_test_samples(self, **settings):
    """The test samples are those of a client that is left out."""
    samples = samples_of(np.zeros(5), [1, 1, 1, 0, 0], [1, 1, 2, 2, 2])
    self.assertLen(assign(samples, Partition("natural")).names, 2)
    with self.assertRaisesRegex(
        ConfigError, "--partition=natural: none of the clients that train"
    ):
      assign(samples, Partition("natural", **settings))


class RegisteredTest(parameterized.TestCase):
  """Rules of a user, removed when the test ends."""

  def setUp(self):
    super().setUp()
    self.enter_context(mock.patch.dict(PARTITIONS._added))

  def register(self, rows):
    register_partition("own")(lambda labels, settings, rng: rows)

  def test_example_of_the_docstring(self):
    results = doctest.testmod(partitions)
    self.assertEqual((results.failed, results.attempted > 0), (0, True))
    self.assertIn("halves", PARTITIONS)

  def test_gets_labels_settings_and_a_seeded_generator(self):
    draws = []

    @register_partition("own")
    def own(labels, settings, rng):
      self.assertEqual(settings.power, 3.0)
      draws.append(rng.integers(2**40))
      order = np.argsort(labels, kind="stable")
      labels.sort()  # must not reach the data
      return np.split(order, [2])

    samples = samples_of([1, 0, 0, 1, 2, 0, 1], [1, 1, 1, 1, 0, 0, 0])
    for seed in (0, 0, 1):
      settings = Partition("own", 2, power=3.0, seed=seed)
      assigned = assign(samples, settings)
    self.assertEqual(draws[0], draws[1])
    self.assertNotEqual(draws[0], draws[2])
    self.assertEqual(list(map(list, assigned.train)), [[1, 2], [0, 3]])
    # Test samples follow the labels; label 2 is in no training sample.
    self.assertEqual(list(map(list, assigned.test)), [[5], [6]])

  def test_may_leave_out_samples(self):
    self.register([[3], [0]])
    samples = samples_of([0, 1, 1, 0, 0, 1], [1, 1, 1, 1, 0, 0])
    assigned = assign(samples, Partition("own"))
    self.assertEqual(list(map(list, assigned.train)), [[3], [0]])
    # Label 1 has no client.
    self.assertEqual(sorted(itertools.chain(*assigned.test)), [4])

  @parameterized.parameters(
      ([[0, 1], [1]], "client 1 has 1, which is given twice"),
      ([[0, 0]], "client 0 has 0, which is given twice"),
      ([[0], [4]], "client 1 has 4"),
      ([[0], [-1]], "client 1 has -1"),
      ([[0.0, 1.0]], "client 0 are float64[2]"),
      ([np.ones(4, bool)], "client 0 are bool[4]"),
      ([[[0, 1]]], "client 0 are int64[1, 2]"),
      (["ab"], "client 0 are"),
      ([[0], [[1], [2, 3]]], "no list of arrays"),
      (None, "no list of arrays"),
      ([], "gives no client"),
      ([[0], []], "client 1 has 0 of them, min_samples is 1"),
  )
  def test_wrong_results_are_refused(self, rows, problem):
    self.register(rows)
    samples = samples_of(np.arange(5) % 2, np.arange(5) < 4)
    with self.assertRaises(ConfigError) as caught:
      assign(samples, Partition("own"))
    self.assertStartsWith(str(caught.exception), "--partition=own: must give")
    self.assertIn(problem, str(caught.exception))
    self.assertNotIn("\n", str(caught.exception))

  def test_another_number_of_clients_is_refused(self):
    self.register([[0], [1]])
    samples = samples_of(np.zeros(4), np.arange(4) < 3)
    with self.assertRaisesRegex(ConfigError, "2 clients, num_clients is 3"):
      assign(samples, Partition("own", 3))

  @parameterized.parameters("iid", "natural", "a b", "")
  def test_names_that_cannot_be_registered(self, name):
    with self.assertRaisesRegex(ConfigError, f"--partition={name}: must be"):
      register_partition(name)(lambda labels, settings, rng: [])

  @hypothesis.settings(deadline=None)
  @hypothesis.given(
      st.lists(st.lists(st.integers(-2, 6), max_size=4), max_size=4),
      st.integers(0, 2),
  )
  def test_any_lists(self, rows, least):
    """Law: each position at most once and in range, or one line."""
    self.register(rows)
    samples = samples_of(np.arange(7) % 2, np.arange(7) < 5)
    given = [row for own in rows for row in own]
    fits = (
        rows
        and min(map(len, rows)) >= least
        and len(set(given)) == len(given)
        and set(given) <= set(range(5))
    )
    try:
      assigned = assign(samples, Partition("own", min_samples=least))
    except ConfigError as error:
      self.assertFalse(fits)
      self.assertNotIn("\n", str(error))
    else:
      self.assertTrue(fits)
      self.assertEqual([list(own) for own in assigned.train], rows)


class ShardsTest(parameterized.TestCase):

  @parameterized.parameters(1, 2, 5)
  def test_few_labels_each(self, shards):
    """200 equal shards of one class each: at most s labels a client."""
    labels = np.repeat(np.arange(10), 400)
    order = np.random.default_rng(0).permutation(4000)
    samples = samples_of(
        np.concatenate([labels[order], np.repeat(np.arange(10), 40)]),
        np.arange(4400) < 4000,
    )
    settings = Partition("shards", 200 // shards, shards_per_client=shards)
    assigned = assign(samples, settings)
    train, test = (
        histograms(samples, rows) for rows in (assigned.train, assigned.test)
    )
    self.assertEqual(set(train.sum(axis=1)), {20 * shards})
    self.assertEqual((train > 0).sum(axis=1).max(), shards)
    # Law: tested on the labels that it has, in the same shares.
    np.testing.assert_array_equal(train, 10 * test)


class DirichletTest(parameterized.TestCase):

  def test_equal_sizes(self):
    settings = Partition("dirichlet", 20, dirichlet_alpha=0.1)
    assigned = assign(example(4003), settings)
    sizes = list(map(len, assigned.train))
    self.assertLessEqual(max(sizes) - min(sizes), 1)

  @parameterized.parameters("dirichlet", "dirichlet_split")
  def test_large_alpha_is_iid_and_small_is_one_class(self, name):
    """Law: shares of labels go to the whole set's, or to one label alone."""
    samples = example(20000, 5000)
    of_all = histograms(samples, [np.flatnonzero(samples.is_train)])[0] / 20000
    even, mixed, skewed = (
        histograms(
            samples,
            assign(
                samples,
                Partition(name, 10, dirichlet_alpha=alpha, min_samples=0),
            ).train,
        )
        for alpha in (1e6, 1.0, 1e-3)
    )
    shares = even / even.sum(axis=1, keepdims=True)
    # The last of ten gets what the others' draws left.
    np.testing.assert_allclose(shares, np.tile(of_all, (10, 1)), atol=0.04)
    if name == "dirichlet":
      # The first has its one class; the last have what is left.
      self.assertGreater(skewed[0].max() / skewed[0].sum(), 0.95)
    else:
      # A class goes to one client.
      self.assertGreater((skewed.max(axis=0) / skewed.sum(axis=0)).min(), 0.95)
    largest = lambda held: (held.max(axis=1) / held.sum(axis=1).clip(1)).mean()
    self.assertGreater(largest(mixed), 1.3 * largest(even))

  def test_mixes_have_the_moments_of_the_draw(self):
    """q ~ Dir(alpha p): mean p, variance p (1 - p) / (alpha + 1).

    Ten thousand clients of ten samples each hardly exhaust a class before the
    first thousand are served; ten draws from q add q (1 - q) / 10.
    """
    labels = np.repeat([0, 1, 2, 3], [40000, 30000, 20000, 10000])
    samples = samples_of(np.append(labels, 0), np.arange(100001) < 100000)
    alpha, p = 3.0, np.array([0.4, 0.3, 0.2, 0.1])
    settings = Partition("dirichlet", 10000, dirichlet_alpha=alpha)
    assigned = assign(samples, settings)
    shares = histograms(samples, assigned.train)[:1000] / 10
    np.testing.assert_allclose(shares.mean(axis=0), p, atol=0.03)
    of_q = p * (1 - p) / (alpha + 1)
    want = of_q + (p * (1 - p) - of_q) / 10
    np.testing.assert_allclose(shares.var(axis=0), want, rtol=0.15)

  @parameterized.parameters(1, 10, 50)
  def test_minimum(self, least):
    for seed in range(5):
      settings = Partition(
          "dirichlet_split", 20, least, dirichlet_alpha=0.4, seed=seed
      )
      assigned = assign(example(), settings)
      self.assertGreaterEqual(min(map(len, assigned.train)), least)

  def test_empty_where_allowed(self):
    settings = Partition("dirichlet_split", 50, 0, dirichlet_alpha=0.01)
    assigned = assign(example(), settings)
    self.assertEqual(min(map(len, assigned.train)), 0)
    self.assertEqual(sum(map(len, assigned.train)), 4000)


class QuantityTest(parameterized.TestCase):

  def test_power_law_by_hand(self):
    """110 samples, 2 each, the other 100 in shares of 1, 1/2, 1/4, 1/4...

    With power 1: 1, 1/2, 1/3, 1/4, 1/5 of 137/60: 43.8, 21.9, 14.6, 10.9,
    8.8; down to 43, 21, 14, 10, 8; the 4 that are left go to the largest
    remainders, which the third, .6, has not.
    """
    samples = samples_of(np.zeros(115), np.arange(115) < 110)
    assigned = assign(samples, Partition("quantity_power_law", 5, 2))
    self.assertEqual(list(map(len, assigned.train)), [46, 24, 16, 13, 11])

  def test_power_0_is_equal(self):
    assigned = assign(example(), Partition("quantity_power_law", 40, power=0.0))
    self.assertEqual(set(map(len, assigned.train)), {100})

  @parameterized.parameters(0.1, 1.0, 10.0)
  def test_sizes_have_the_variance_of_the_draw(self, alpha):
    """Shares ~ Dir(alpha): variance p (1 - p) / (N alpha + 1), p = 1 / N."""
    samples, count = example(), 40
    shares = []
    for seed in range(60):
      settings = Partition(
          "quantity_dirichlet", count, 0, dirichlet_alpha=alpha, seed=seed
      )
      sizes = [len(own) for own in assign(samples, settings).train]
      shares.append(np.array(sizes) / 4000)
    p = 1 / count
    want = p * (1 - p) / (count * alpha + 1)
    got = np.mean(np.square(np.array(shares) - p))
    np.testing.assert_allclose(got, want, rtol=0.2)

  def test_labels_are_as_in_the_whole(self):
    samples = example()
    assigned = assign(samples, Partition("quantity_power_law", 4))
    held = histograms(samples, assigned.train)
    whole = held.sum(axis=0) / 4000
    shares = held / held.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares, np.tile(whole, (4, 1)), atol=0.06)


class RefusedTest(parameterized.TestCase):

  @parameterized.named_parameters(
      ("iid", ("iid", 9), "--num_clients=9", "at most 8", "iid"),
      # Class 1 has two samples.
      (
          "one_class", ("one_class", 9), "--num_clients=9", "at most 5",
          "class 1 has 2 ", "4 clients",
      ),
      (
          "one_class_uneven", ("one_class", 6), "--num_clients=6", "at most 5",
          "class 1 has 2 ", "3 clients",
      ),
      (
          "one_class_rare", ("one_class", 2, 3), "--min_samples=3", "at most 2",
          "class 1",
      ),
      ("fewer_than_classes", ("one_class", 1), "--num_clients=1", "at least 2"),
      ("natural", ("natural", 5), "--num_clients=5", "at most 4"),
      ("natural_large", ("natural", None, 4), "--min_samples=4", "at most 3"),
      ("iid_by_default", ("iid",), "--num_clients=10", "at most 8"),
      ("least", ("iid", 4, 3), "--num_clients=4", "3 samples"),
      (
          "shards", ("shards", 4, 1, 3), "--shards_per_client=3", "4 clients",
          "at most 2",
      ),
      # Of two shards, whose sizes are 1 and 2, both may be of 1.
      ("shards_few", ("shards", 3, 3), "--num_clients=3", "at most 2"),
      ("least_of_all", ("iid", 1, 9), "--min_samples=9", "at most 8"),
      ("dirichlet", ("dirichlet", 9), "--num_clients=9", "at most 8"),
      (
          "dirichlet_split",
          ("dirichlet_split", 4, 2, 2, 0.001),
          "--num_clients=4", "2 samples", "dirichlet_alpha",
      ),
      ("sizes", ("quantity_power_law", 3, 3), "--num_clients=3", "3 samples"),
  )
  def test_numbers_that_do_not_fit(self, settings, *words):
    samples = samples_of(
        [0, 0, 0, 0, 0, 0, 1, 1, 0, 1],
        np.arange(10) < 8,
        [1, 1, 1, 2, 2, 2, 3, 4, 1, 2],
    )
    with self.assertRaises(ConfigError) as caught:
      assign(samples, Partition(*settings))
    self.assertNotIn("\n", str(caught.exception))
    for word in words:
      self.assertIn(word, str(caught.exception))

  @parameterized.product(
      name=sorted(set(PARTITIONS) - {"natural", "dirichlet_split"}),
      least=(1, 2, 3),
  )
  def test_as_many_clients_as_are_allowed(self, name, least):
    """The number that a refusal names fits; one more does not."""
    samples = samples_of(np.arange(40) % 7 % 3, np.arange(40) < 33)
    with self.assertRaises(ConfigError) as caught:
      assign(samples, Partition(name, 40, least))
    most = int(re.search(r"must be at most (\d+)", str(caught.exception))[1])
    for seed in range(5):
      assigned = assign(samples, Partition(name, most, least, seed=seed))
      self.assertGreaterEqual(min(map(len, assigned.train)), least)
    if name != "shards":
      with self.assertRaisesRegex(ConfigError, f"={most + 1}: .* {most}[, ]"):
        assign(samples, Partition(name, most + 1, least))

  def test_natural_needs_ids(self):
    with self.assertRaisesRegex(ConfigError, "--partition=natural: set .*ids"):
      assign(samples_of(np.zeros(9), np.arange(9) < 7), Partition("natural"))

  @parameterized.parameters(
      (dict(partition="none"), "--partition=none", "one_class, iid"),
      (dict(num_clients=0), "--num_clients=0", "at least 1"),
      (dict(num_clients=2**20 + 1), "--num_clients=1048577", "1,048,576"),
      (dict(min_samples=-1), "--min_samples=-1", "at least 0"),
      (dict(shards_per_client=0), "--shards_per_client=0", "at least 1"),
      (dict(dirichlet_alpha=0.0), "--dirichlet_alpha=0", "0.001"),
      (dict(dirichlet_alpha=float("nan")), "--dirichlet_alpha=nan", "finite"),
      (dict(power=-0.1), "--power=-0.1", "at least 0"),
      (dict(seed=-1), "--seed=-1", "at least 0"),
  )
  def test_settings_out_of_range(self, settings, *words):
    with self.assertRaises(ConfigError) as caught:
      Partition(**settings)
    for word in words:
      self.assertIn(word, str(caught.exception))


if __name__ == "__main__":
  absltest.main()
