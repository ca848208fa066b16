"""Every option of the algorithm against plain transformers and torch, step by step."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from examples.quickstart.student import StudentShape, make_student
from examples.tiny.prepare import prepare
from megatron_gad.config.layout import ParallelConfig
from megatron_gad.training.parallel import Parallel, initialize, shut_down
from tests.oracle.cases import BASE, CASES
from tests.oracle.compare import compare


@pytest.fixture(scope="module")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, its data, and another model for the discriminator."""
    folder = tmp_path_factory.mktemp("assets")
    prepare(folder)
    shape = StudentShape(num_layers=2, width=48, num_heads=4, num_kv_heads=4, mlp_width=40)
    make_student(folder / "discriminator", 3, shape)
    return folder


@pytest.fixture(scope="module")
def place() -> Iterator[Parallel]:
    """A world of one."""
    yield initialize(ParallelConfig(), BASE["seed"])
    shut_down()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_what_the_oracle_says(
    name: str, assets: Path, place: Parallel, tmp_path: Path
) -> None:
    compare(name, CASES[name], assets, tmp_path / "run", place)
