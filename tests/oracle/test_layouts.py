"""Layouts of two ranks against plain transformers and torch, step by step."""

from pathlib import Path

from tests.oracle import layouts_worker
from tests.ranks import run_on_ranks


def test_layouts_are_what_the_oracle_says(assets: Path, tmp_path: Path) -> None:
    """The worker compares on every rank, and fails with what differs."""
    run_on_ranks(layouts_worker.main, 2, assets, tmp_path)
