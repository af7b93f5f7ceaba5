"""The console command `agsfl`: all commands of this folder by their names.

    agsfl run --model=mlp --workdir=runs/first

is `python -m experiments.run --model=mlp --workdir=runs/first`.
"""

import runpy
import sys

import agsfl

# What each command does, by its name.
COMMANDS = {
    "run": "train once, and keep the records in a folder",
    "sweep": "run every combination of some settings",
    "tune": "search for good settings",
    "plot": "draw runs in one figure",
    "report": "write one HTML page about runs",
    "export": "write all rows of runs as one CSV file",
    "describe_data": "show which samples go to which client",
    "decode_images": "make an npz data set from PNG or JPEG images",
    "prepare_femnist": "make the data set femnist from LEAF's files",
    "docs": "write the documentation as HTML pages",
    "benchmark": "measure how fast rounds are",
}


def main():
  """Runs the command that the first argument names; its flags follow."""
  name = sys.argv[1] if len(sys.argv) > 1 else ""
  if name == "--version":
    print(agsfl.__version__)
  elif name in COMMANDS:
    del sys.argv[1]
    runpy.run_module(
        f"experiments.{name}", run_name="__main__", alter_sys=True
    )
  else:
    if name:
      print(f"agsfl: there is no command {name}", file=sys.stderr)
    lines = [f"  {one:16} {what}" for one, what in COMMANDS.items()]
    print("usage: agsfl COMMAND [--flags]; agsfl --version", file=sys.stderr)
    print("\n".join(lines), file=sys.stderr)
    print("agsfl COMMAND --helpshort lists its flags", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
  main()
