"""What editors and type checkers say of a script of a user, in its own folder.
"""

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

import mypy.api
from absl.testing import absltest

# Lines that end with a comment are wrong, and mypy says so in these words.
SCRIPT = '''
import agsfl

name = "a_method_of_ones_own"
config = agsfl.Config(
    dataset="npz:a.npz", model=name, controller="sign", k="1%", num_rounds=3,
    learning_rate=1, local_optimizer="adam", store=None, value_bits=16,
    clock="file:a.csv",
)
agsfl.Config(methd=name)  # Unexpected keyword argument "methd" for "Config"
agsfl.Config(num_rounds="3")  # "num_rounds" to "Config" has incompatible type
agsfl.Config(local_optimizer="adm")  # expected "Literal['sgd', 'momentum', 'ad
agsfl.Config(value_bits=8)  # expected "Literal[16, 32]"
agsfl.Config(sampling=name)  # "sampling" to "Config" has incompatible type
agsfl.build_schedule("cosin")  # incompatible type "Literal['cosin']"

data = agsfl.from_arrays([[1.0]], [0], task="regression")
agsfl.from_arrays([[1.0]], [0], task="regresion")  # "Literal['regresion']"
run: agsfl.Run = agsfl.simulate(config, data=data, on_row=print)
print(run.summary["test_accuracy"], run.rows[-1]["k"], run.params.mean())
print(run.sumary)  # has no attribute "sumary"
'''
# The types of other libraries take 20 s to read, and no line needs them.
SETTINGS = """
[mypy]
[mypy-chex.*,flax.*,jax.*,jaxlib.*,numpy.*,optax.*,orbax.*,pandas.*]
follow_imports = skip
follow_imports_for_stubs = True
"""


class EditorsTest(absltest.TestCase):

  def test_a_script_of_a_user(self):
    """Law: the package and its types are found as it is installed; what is
    wrong is marked, and nothing else.
    """
    folder = Path(self.enter_context(tempfile.TemporaryDirectory()))
    (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "mypy.ini").write_text(SETTINGS, encoding="utf-8")
    self.enter_context(contextlib.chdir(folder))  # not that of the package
    self.enter_context(mock.patch.dict(os.environ))
    os.environ.pop("MYPYPATH", None)
    report, _, _ = mypy.api.run(
        ["--cache-dir=cache", "--hide-error-codes", "script.py"]
    )

    wanted = {
        number: line.split("  # ")[1]
        for number, line in enumerate(SCRIPT.splitlines(), start=1)
        if "  # " in line
    }
    errors = [
        line.split(":", 2)[1:]
        for line in report.splitlines()
        if line.startswith("script.py:")
    ]
    self.assertEqual([int(number) for number, _ in errors], [*wanted], report)
    for number, text in errors:
      self.assertIn(wanted[int(number)], text)
    self.assertLen(report.splitlines(), len(wanted) + 1, report)


if __name__ == "__main__":
  absltest.main()
