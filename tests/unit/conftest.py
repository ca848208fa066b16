"""What tests of whole runs on one rank begin with."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.tiny.prepare import prepare
from megatron_gad.config.run import RunConfig
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
