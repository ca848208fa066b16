"""Every option of the algorithm against plain transformers and torch, step by step."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gad.training.parallel import Parallel, shut_down
from tests.oracle.case import Case
from tests.oracle.cases import CASES
from tests.oracle.compare import compare
from tests.oracle.product import start


@pytest.fixture(scope="module")
def place(assets: Path) -> Iterator[Parallel]:
    """A world of one."""
    yield start(Case().options(assets, assets / "unused"))
    shut_down()


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_what_the_oracle_says(
    name: str, assets: Path, place: Parallel, tmp_path: Path
) -> None:
    compare(name, CASES[name], assets, tmp_path / "run", place)
