"""Installation of agsfl; `pip install -e .` is all that a run needs."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'__version__ = "(.+)"',
    (ROOT / "agsfl" / "__init__.py").read_text(encoding="utf-8"),
).group(1)

setup(
    name="agsfl",
    version=VERSION,
    description=(
        "Federated learning with adaptive gradient sparsification, "
        "simulated in JAX"
    ),
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(
        include=["agsfl", "agsfl.*", "experiments", "experiments.*"]
    ),
    # With this line pip's -e puts the clone on the module path. Without it,
    # `import agsfl` beside a clone would find the clone's folder itself, and
    # editors and type checkers would not find the package.
    package_dir={"": "."},
    package_data={
        "agsfl": ["py.typed", "*/README.md"],
        "experiments": [
            "*/*.flags", "*/README.md", "report/*.jinja", "report/*.css",
            "report/*.js",
        ],
    },
    entry_points={"console_scripts": ["agsfl=experiments.main:main"]},
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1",
        "altair>=5.5",
        "chex>=0.1.90",
        "flax>=0.12",
        "ijson>=3.3",
        # TensorFlow Datasets prepares sets with it, and does not ask for it.
        "importlib_resources>=6",
        "jax>=0.10,!=0.10.1",
        "jaxlib>=0.10,!=0.10.1",
        "jinja2>=3.1",
        "matplotlib>=3.8",
        "mlxtend>=0.23",
        "numpy>=1.26",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.20",
        "pandas>=2",
        "pillow>=10",
        "scikit-learn>=1.4",
        "tensorflow-datasets>=4.9.8",
        "tqdm>=4.66",
        "vl-convert-python>=1.7",
    ],
    extras_require={
        "docs": ["pdoc>=15"],
        "dashboards": ["tensorboardX>=2.6", "trackio>=0.43", "wandb>=0.31"],
        "slurm": ["submitit>=1.5"],
        "tfds": ["tensorflow>=2.20"],
        "tune": ["optuna>=4"],
        "test": [
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "jupytext>=1.16",
            "mypy>=1.15",
            "nbclient>=0.10",
            "nbformat>=5.10",
            "optuna>=4",
            "pdoc>=15",
            "playwright>=1.40",
            "pytest>=8",
            "ruff>=0.9",
            "submitit>=1.5",
            "tensorboardX>=2.6",
            "wandb>=0.31",
        ],
    },
)
