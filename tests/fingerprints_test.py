"""Fingerprints of objects that others made; more in doors_test."""

import functools

from absl.testing import absltest, parameterized

from agsfl.fingerprints import fingerprint


def scaled(factor, shift=0.0):
  return lambda x: factor * x + shift


def add(x, y):
  return x + y


class Scale:

  def __init__(self, factor):
    self.factor = factor

  def __call__(self, x):
    return self.factor * x

  def times(self, x):
    return self.factor * x


def from_text(text):
  """A function whose source is in no file."""
  space = {}
  exec(text, space)
  return space["made"]


class FingerprintTest(parameterized.TestCase):

  @parameterized.parameters(
      (scaled, (2.0,), (3.0,)),
      (scaled, (2.0, 0.0), (2.0, 1.0)),
      (Scale, (2.0,), (3.0,)),
      (lambda factor: Scale(factor).times, (2.0,), (3.0,)),
      (lambda y: functools.partial(add, y=y), (2.0,), (3.0,)),
      (lambda y: {"a": y, "b": [y]}, (1,), (True,)),
  )
  def test_the_same_source_with_other_numbers(self, make, numbers, others):
    """Law: made twice, the same; made of other numbers, another."""
    one, again, other = map(
        fingerprint, (make(*numbers), make(*numbers), make(*others))
    )
    self.assertRegex(one, "^[0-9a-f]{16}$")
    self.assertEqual(one, again)
    self.assertNotEqual(one, other)

  def test_a_function_of_itself(self):
    """Law: a circle ends."""

    def down(x):
      return down(x - 1) if x else 0

    self.assertEqual(fingerprint(down), fingerprint(down))

  def test_what_has_no_source(self):
    """Law: rather none than one that another object may have too."""
    function = from_text("made = lambda x: x")
    for part in (function, [1, function], Scale(function), object()):
      self.assertIsNone(fingerprint(part))


if __name__ == "__main__":
  absltest.main()
