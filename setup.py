"""Package description; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
FOUND = re.search(r'^__version__ = "(.+)"$', (ROOT / "megatron_gad/__init__.py").read_text(), re.M)
assert FOUND, "megatron_gad/__init__.py has no __version__"

setup(
    name="megatron-gad",
    version=FOUND.group(1),
    description="Generative Adversarial Distillation of language models on Megatron-Core",
    long_description=(ROOT / "README.md").read_text() if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["megatron_gad", "megatron_gad.*"]),
    package_data={
        "megatron_gad.reporting": ["templates/*"],
        "megatron_gad.evaluation.judge": ["prompts/*"],
        "megatron_gad.evaluation.instructions": ["*.jsonl"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        "torch>=2.6,<3",
        # 0.17 needs Python 3.12, 0.18 imports triton, which CPU builds of torch lack.
        "megatron-core>=0.16.1,<0.17",
        "psutil>=5.9,<8",  # Megatron's checkpoint writer imports it without declaring it
        "numpy>=1.26,<3",
        "scipy>=1.15,<2",
        # the models' folders, tokenizers and the embedded engine
        "transformers>=5,<6",
        "tokenizers>=0.22,<1",
        "safetensors>=0.5,<1",
        "xxhash>=3,<5",  # digests of checkpoints
        "jinja2>=3.1,<4",
        # data
        "datasets>=4,<6",
        "pyarrow>=17",
        # configuration
        "tyro>=1,<2",
        "pydantic>=2.7,<3",
        "tomli>=2,<3",
        "tomli-w>=1,<2",
        # the teacher, and seeing a run
        "openai>=2,<4",
        "tensorboard>=2.16,<3",
        "matplotlib>=3.8,<4",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "sglang": ["sglang>=0.5.16,<0.6"],
        # For a torch of CUDA 13, and without build isolation; docs/installation.md has CUDA 12.
        "te": ["transformer-engine[core_cu13,pytorch]>=2.9,<2.12"],
        "wandb": ["wandb>=0.18,<1"],
        # what `megatron-gad evaluate` measures besides a judge's verdicts
        "evaluate": ["scikit-learn>=1.6,<2", "sacrebleu>=2.4,<3", "py3langid>=0.3,<1"],
        # what benchmarks/against_trl.py compares with, in an environment of its own
        "bench": ["trl>=1.16,<2"],
        # reads the model that examples/smollm2 finds on PyPI
        "smollm2": ["gguf>=0.17,<1", "accelerate>=1,<2"],
        "dev": [
            "gguf>=0.17,<1",
            "accelerate>=1,<2",
            "jsonschema>=4,<5",
            "playwright>=1.50,<2",  # drives the system's chromium
            "scikit-learn>=1.6,<2",
            "sacrebleu>=2.4,<3",
            "py3langid>=0.3,<1",
            "pytest>=8,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.14,<1",
            "pyright[nodejs]>=1.1.400,<1.2",
            "pre-commit>=4,<5",
            "setuptools>=70.1",  # a test builds the wheel without build isolation
        ],
    },
    entry_points={"console_scripts": ["megatron-gad = megatron_gad.__main__:main"]},
)
