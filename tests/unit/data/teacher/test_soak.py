"""A collection from a bad endpoint, killed several times: `make soak-collector` in short."""

from pathlib import Path

import pytest

from tests.soak_collector import Soak, run


@pytest.mark.slow
def test_kills_and_failures_lose_and_double_nothing(tmp_path: Path) -> None:
    assert run(Soak(rows=300, kills=3, concurrency=8), tmp_path) == []
