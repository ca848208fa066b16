"""Runs that are killed at any moment lose nothing and change no bit: `make soak` in short."""

from pathlib import Path

from tests.soak_runs import Soak, run


def test_kills_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    assert run(Soak(kills=5, layouts=("one rank", "TP2 and SP")), tmp_path) == []
