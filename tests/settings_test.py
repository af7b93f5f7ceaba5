"""What a setting takes, by its type, and the one line that refuses others."""

import dataclasses
import fractions
import pathlib
from typing import Literal

import hypothesis
import hypothesis.strategies as st
import numpy as np
from absl.testing import absltest, parameterized

from agsfl import settings
from agsfl.errors import ConfigError
from agsfl.settings import Amount, elements, setting


@dataclasses.dataclass(frozen=True)
class Toy:
  """A setting of each type."""

  whole: int = setting(3, "A whole number.", least=1, most=20_000)
  real: float = setting(0.5, "A number.", least=0, most=2.5)
  free: float = setting(0.5, "A number without bounds.")
  share: Amount = setting(9.0, "Elements.", least=2)
  text: str = setting("a", "A text.")
  choice: Literal["a", "b"] = setting("a", "A choice.")
  size: Literal[16, 32] | None = setting(None, "None, or one of two numbers.")
  part: Literal["a"] | str = setting("a", "A part.", choices={"a": 1, "b": 2})
  switch: bool = setting(False, "A switch.")
  perhaps: int | None = setting(None, "None, or a whole number.", least=1)

  def __post_init__(self):
    settings.check(self)


SHARE = "must be a number, or a share from above 0% to 100%, such as 1%"
# Field, value, the line that refuses it.
REFUSED = (
    ("whole", 2.0, "--whole=2.0: must be a whole number"),
    ("whole", "2", "--whole='2': must be a whole number"),
    ("whole", True, "--whole=True: must be a whole number"),
    ("whole", None, "--whole=None: must be a whole number"),
    ("whole", 0, "--whole=0: must be at least 1"),
    ("whole", 20_001, "--whole=20001: must be at most 20,000"),
    ("real", "0.5", "--real='0.5': must be a number"),
    ("real", False, "--real=False: must be a number"),
    ("real", None, "--real=None: must be a number"),
    ("real", 1j, "--real=1j: must be a number"),
    ("real", float("nan"), "--real=nan: must be a finite number"),
    ("real", np.float32("-inf"), "--real=-inf: must be a finite number"),
    ("real", -1e-9, "--real=-1e-09: must be at least 0"),
    ("real", 2.6, "--real=2.6: must be at most 2.5"),
    ("free", 1.1e30, "--free=1.1e+30: must be at most 1e+30"),
    ("share", "x", f"--share=x: {SHARE}"),
    ("share", "", f"--share=: {SHARE}"),
    ("share", "%", f"--share=%: {SHARE}"),
    ("share", "1%%", f"--share=1%%: {SHARE}"),
    ("share", "101%", f"--share=101%: {SHARE}"),
    ("share", "0%", f"--share=0%: {SHARE}"),
    ("share", "-1%", f"--share=-1%: {SHARE}"),
    ("share", "nan", f"--share=nan: {SHARE}"),
    ("share", "inf%", f"--share=inf%: {SHARE}"),
    ("share", "1.5", "--share=1.5: must be at least 2"),
    ("share", 1.5, "--share=1.5: must be at least 2"),
    ("share", True, "--share=True: must be a number"),
    ("share", None, "--share=None: must be a number"),
    ("text", 3, "--text=3: must be text"),
    ("text", b"a", "--text=b'a': must be text"),
    ("text", "a\udcff", "--text=a\\udcff: must be text in UTF-8"),
    ("choice", "c", "--choice=c: must be one of a, b"),
    ("choice", "a\nb", "--choice=a b: must be one of a, b"),
    ("choice", 3, "--choice=3: must be text"),
    ("choice", None, "--choice=None: must be text"),
    ("size", 8, "--size=8: must be one of 16, 32"),
    ("size", "16", "--size='16': must be a whole number"),
    ("part", "c", "--part=c: must be one of a, b"),
    ("switch", "false", "--switch='false': must be True or False"),
    ("switch", 1, "--switch=1: must be True or False"),
    ("perhaps", 0, "--perhaps=0: must be at least 1"),
)
# Field, value, what it becomes: what JSON and a command line have.
TAKEN = (
    ("whole", np.int64(9), 9),
    ("whole", np.uint8(9), 9),
    ("whole", 20_000, 20_000),
    ("real", 2, 2.0),
    ("real", np.int32(2), 2.0),
    ("real", np.float32(0.25), 0.25),
    ("real", fractions.Fraction(1, 4), 0.25),
    ("real", 0.0, 0.0),
    ("free", -1e30, -1e30),
    ("share", "1000", 1000.0),
    ("share", " 1e3 ", 1000.0),
    ("share", "1%", "1%"),
    ("share", "1.50%", "1.5%"),
    ("share", "100%", "100%"),
    ("share", np.float32(2.5), 2.5),
    ("text", np.str_("b"), "b"),
    ("text", pathlib.PurePosixPath("a/b"), "a/b"),
    ("choice", "b", "b"),
    ("size", np.int64(16), 16),
    ("size", None, None),
    ("part", "b", "b"),
    ("switch", np.True_, True),
    ("perhaps", None, None),
)


class CheckTest(parameterized.TestCase):

  @parameterized.parameters(*REFUSED)
  def test_refused(self, field, value, line):
    with self.assertRaises(ConfigError) as caught:
      Toy(**{field: value})
    self.assertEqual(str(caught.exception), line)

  @parameterized.parameters(*TAKEN)
  def test_taken(self, field, value, want):
    held = getattr(Toy(**{field: value}), field)
    self.assertIs(type(held), type(want))
    self.assertEqual(held, want)

  def test_a_number_too_large_for_a_float(self):
    with self.assertRaisesRegex(ConfigError, "^--free=10+: must be a number"):
      Toy(free=10**400)

  def test_what_is_said_of_a_field(self):
    fields = {field.name: field for field in dataclasses.fields(Toy)}
    self.assertEqual(
        settings.said_of(fields["whole"]),
        settings.Setting("A whole number.", 1, 20_000, None),
    )
    self.assertEqual(settings.said_of(fields["size"]).choices, (16, 32))
    self.assertEqual(settings.kinds_of(fields["share"]), (float, str))
    self.assertEqual(settings.kinds_of(fields["size"]), (int,))
    self.assertEqual(settings.kinds_of(fields["part"]), (str,))
    self.assertEqual(settings.kinds_of(fields["perhaps"]), (int,))
    self.assertTrue(settings.is_optional(fields["perhaps"]))
    self.assertFalse(settings.is_optional(fields["share"]))


class ElementsTest(parameterized.TestCase):

  @parameterized.parameters(
      (7.5, 100, 7.5), ("1%", 444_062, 4440.62), ("100%", 17, 17.0),
      ("0.2%", 444_062, 888.124), ("1%", 9610, 96.1),
      # A share stands for one element at least.
      ("1%", 50, 1.0),
  )
  def test_by_hand(self, amount, dim, want):
    """Law: the float that is nearest to the decimal number, bit for bit."""
    self.assertEqual(elements(amount, dim), want)

  @hypothesis.given(
      st.floats(1e-6, 100.0, exclude_min=True), st.integers(1, 10**9)
  )
  def test_a_share_lies_between_one_and_all(self, share, dim):
    checked = Toy(share=f"{share}%").share
    self.assertBetween(elements(checked, dim), 1, dim)


if __name__ == "__main__":
  absltest.main()
