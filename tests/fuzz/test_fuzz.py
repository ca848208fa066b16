"""Bad inputs of every kind are taken or refused, never met by a traceback: `make fuzz` in short."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz.__main__ import Fuzz, problems
from tests.fuzz.checkpoints import leave_place

COUNTS = {
    "configurations": 100,
    "data_files": 40,
    "run_folders": 6,
    "checkpoints": 20,
    "model_folders": 20,
}


@pytest.fixture(autouse=True, scope="module")
def _leave_no_world_behind() -> Iterator[None]:
    yield
    leave_place()


@pytest.mark.parametrize("kind", COUNTS)
def test_no_input_is_met_by_a_traceback(kind: str, tmp_path: Path) -> None:
    assert problems(Fuzz(kinds=(kind,), count=COUNTS[kind]), tmp_path) == []
