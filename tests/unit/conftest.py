"""What tests of whole runs on one rank begin with."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from examples.tiny.prepare import prepare
from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import open_run
from megatron_gad.training import parallel


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Student and data of the tiny example."""
    folder = tmp_path_factory.mktemp("assets")
    prepare(folder)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[parallel.Parallel]:
    """A world of one."""
    yield parallel.initialize(RunConfig().parallel, 0)
    parallel.shut_down()


@pytest.fixture(scope="module")
def configure(assets: Path) -> Callable[..., RunConfig]:
    """A function that configures the tiny example in a folder, without held-out rows."""

    def make(folder: Path, *flags: str, **sections: dict[str, Any]) -> RunConfig:
        words = ["examples/tiny/run.toml", "--save", str(folder), "--no-tensorboard"]
        words += ["--data.path", str(assets / "train.jsonl"), "--data.eval-path", ""]
        config, _ = load_config([*words, "--student.path", str(assets / "student"), *flags])
        changed = {
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        }
        return dataclasses.replace(config, **changed)

    return make


@pytest.fixture(scope="module")
def build(configure, place: parallel.Parallel) -> Callable[..., Run]:
    """A function that builds a run before its first stage; takes what ``configure`` does."""
    return lambda *words, **sections: open_run(configure(*words, **sections), place)
