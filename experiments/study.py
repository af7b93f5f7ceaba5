"""Several runs for one figure: run what is missing, read all of it back.

A study is a folder: one folder per setting, in it one per seed, each as
`experiments.run` leaves it. Started again, it does what is not finished yet.
"""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from agsfl import records, runs
from agsfl.config import Config, ConfigError
from experiments import flags as run_flags
from experiments import run, scripts

flags.adopt_module_key_flags(run_flags)
flags.adopt_module_key_flags(run)
_SEEDS = flags.DEFINE_list("seeds", ["0"], "Seeds: a run of each setting each.")


class Run(NamedTuple):
  """One finished run, read back.

  Attributes:
    rows: of metrics.jsonl.
    summary: of summary.json.
    contributed: [N] elements that the server used of each client.
    workdir: its folder.
  """

  rows: list[dict]
  summary: dict
  contributed: np.ndarray
  workdir: Path

  def series(self, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Times and values of one key, where rows have it."""
    rows = [row for row in self.rows if key in row]
    return (
        np.array([row["time"] for row in rows]),
        np.array([row[key] for row in rows], float),
    )


def folder() -> Path:
  """The study's folder: --workdir, or runs/ and the script's name."""
  return Path(run.WORKDIR.value or Path("runs") / Path(sys.argv[0]).stem)


def seeds() -> list[int]:
  """The seeds that the flags ask for; see `numbers`."""
  return numbers("seeds", int)


def items(name: str) -> list[str]:
  """The items of a list flag.

  Raises:
    ConfigError: there are none.
  """
  if not flags.FLAGS[name].value:
    raise ConfigError(f"--{name}=: must name at least one")
  return flags.FLAGS[name].value


def numbers(name: str, number: type = float) -> list:
  """The items of a list flag as numbers.

  Raises:
    ConfigError: there are none, or one is no number.
  """
  texts = items(name)
  try:
    return [number(text) for text in texts]
  except ValueError as error:
    kind = "whole numbers" if number is int else "numbers"
    raise ConfigError(
        f"--{name}={','.join(texts)}: must be {kind} with commas"
    ) from error


def seeded(config: Config) -> Callable[[int], Config]:
  """The same settings for any seed."""
  return lambda seed: dataclasses.replace(config, seed=seed)


def share_compiled_code():
  """Keeps compiled programs in the folder, for other seeds and later starts."""
  jax.config.update("jax_compilation_cache_dir", str(folder() / "compiled"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def run_all(
    settings: dict[str, Callable[[int], Config]],
) -> dict[str, list[Run]]:
  """The runs of a study, seed by seed within each setting.

  Seeds of one setting share compiled code, by JAX's cache in the folder.

  Args:
    settings: by label, which names a folder: seed -> Config.

  Returns:
    The runs of each label, in the order of the seeds.

  Raises:
    ConfigError: the folder holds a run of other settings.
  """
  study = folder()
  share_compiled_code()
  done = {}
  for label, config_of in settings.items():
    done[label] = []
    for seed in seeds():
      workdir, config = study / label / f"seed{seed}", config_of(seed)
      if (workdir / "summary.json").exists():
        runs.simulate(config, workdir=workdir)  # refuses other settings
      else:
        print(f"{label}, seed {seed}", flush=True)
        run.run(config, workdir)
      done[label].append(_read(workdir))
  return done


def _read(workdir):
  return Run(
      rows=records.read_rows(workdir),
      summary=records.read_summary(workdir),
      contributed=np.array(records.read_clients(workdir)["contributed"]),
      workdir=workdir,
  )


def spread(runs: list[Run], key: str, points: int = 200):
  """Mean, least and greatest over seeds on a common axis of time.

  Args:
    runs: of one setting.
    key: of the rows.
    points: of the axis.

  Returns:
    (times, mean, least, greatest), [points] each; the axis covers what all
    seeds have seen.
  """
  series = [run.series(key) for run in runs]
  start = max(times[0] for times, _ in series)
  end = min(times[-1] for times, _ in series)
  axis = np.linspace(start, end, points)
  values = np.array([np.interp(axis, *one) for one in series])
  return axis, values.mean(0), values.min(0), values.max(0)


def draw_spread(axes, runs: list[Run], key: str, label: str):
  """Draws `spread` as a line and a band."""
  axis, mean, least, greatest = spread(runs, key)
  (line,) = axes.plot(axis, mean, label=label)
  if len(runs) > 1:
    axes.fill_between(axis, least, greatest, color=line.get_color(), alpha=0.2)


def over_seeds(values, mean: str = ".4g", spread: str = ".2g") -> str:
  """Mean of the seeds' numbers and half their range, in these formats."""
  text = format(np.mean(values), mean)
  if len(values) > 1:
    text += f" ± {format(np.ptp(values) / 2, spread)}"
  return text


def final(runs: list[Run], key: str) -> str:
  """A summary's number `over_seeds`."""
  return over_seeds([run.summary[key] for run in runs])


def jain_index(contributed: np.ndarray) -> float:
  """Jain's fairness index, from 1 / N (one client alone) to 1 (all alike).

  Source: Jain, Chiu, Hawe, "A Quantitative Measure of Fairness and
  Discrimination", DEC TR-301, 1984.
  """
  contributed = np.asarray(contributed, float)
  squares = len(contributed) * np.sum(contributed**2)
  return float(np.sum(contributed) ** 2 / squares) if squares else 1.0


def table(header: list[str], lines: list[list[str]]) -> str:
  """A Markdown table."""
  rows = [header, ["---"] * len(header), *lines]
  return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def finish(figure, text: str):
  """Writes the study's figure.png and table.md.

  Args:
    figure: of Matplotlib.
    text: the table.
  """
  study = folder()
  study.mkdir(parents=True, exist_ok=True)
  figure.savefig(study / "figure.png", dpi=120)
  (study / "table.md").write_text(text + "\n")
  print(text)
  print(f"figure and table: {study}")


def main(script: Callable[[Config], None]) -> Callable[[list[str]], None]:
  """A script's main: gives it the Config of the flags; errors in one line."""

  def checked(argv):
    scripts.start(argv)
    with scripts.one_line_errors(), run.told_how_to_go_on():
      script(run_flags.config_from_flags())

  return checked
