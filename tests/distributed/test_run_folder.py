"""Ranks that do not see the same run directory notice it, and all say the same."""

import socket
from pathlib import Path

import pytest
import torch

from megatron_gad.training.checkpoint_files import LATEST
from tests.distributed import run_folder_worker
from tests.ranks import run_on_ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks left behind, of which each also had a directory of its own."""
    folder = tmp_path_factory.mktemp("run_folder")
    run_on_ranks(run_folder_worker.main, 2, folder)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict]:
    """What each rank saw."""
    return torch.load(folder / "results.pt")


def test_a_directory_that_all_see_is_taken_and_left_as_it_was(
    folder: Path, results: list[dict]
) -> None:
    assert [mine["shared"] for mine in results] == ["", ""]
    assert list((folder / "shared").iterdir()) == []


def test_a_directory_of_each_rank_is_refused_by_all(folder: Path, results: list[dict]) -> None:
    host = socket.gethostname()
    for rank, mine in enumerate(results):
        expected = f"checkpoint.save = '{folder}/own_{rank}': what rank 0 on {host} writes there"
        assert mine["unshared"].startswith(f"{expected} is not seen on {host}; name a directory")
    assert [path.name for path in (folder / "own_0").iterdir()] == [LATEST]


def test_all_go_on_from_where_the_first_rank_says(results: list[dict]) -> None:
    assert [mine["found"] for mine in results] == [7, 7]
    assert LATEST in results[0]["refused"]
    assert results[1]["refused"] == results[0]["refused"]
