"""A disk that is full, or taken away, ends a run with one message, and nothing is lost."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_gad.errors import NO_STORAGE
from tests.e2e import tiny_run

STEPS = 11  # of the tiny recipe


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder of its own file system; its size is set in the test."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small file system has to be mounted, which this user or container may not")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """The steps of a run on a disk with room."""
    return tiny_run.run(tmp_path_factory.mktemp("whole") / "run")


@pytest.mark.parametrize(("size", "num_ranks"), [("1600k", 1), ("3m", 1), ("4m", 1), ("3m", 2)])
def test_a_full_disk_is_one_message_and_the_run_goes_on_when_there_is_room(
    size: str, num_ranks: int, small_disk: Path, whole: list[dict], tmp_path: Path
) -> None:
    _resize(small_disk, size)
    save = small_disk / "run"
    flags = ("--save-interval", "1")
    statuses, said = tiny_run.outcome(save, tmp_path / "log", *flags, num_ranks=num_ranks)
    assert NO_STORAGE in statuses
    assert set(statuses) <= {NO_STORAGE, None, -9}, statuses
    assert "Traceback" not in said, said
    (message,) = [line for line in said.splitlines() if line.startswith(f"megatron_gad: {save}")]
    assert "No space left on device" in message
    assert "make room there" in message
    newest = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert f"The newest checkpoint, {save}/iter_{newest:07d}, was whole before" in message
    _resize(small_disk, "64m")
    statuses, said = tiny_run.outcome(save, tmp_path / "log", *flags, num_ranks=num_ranks)
    assert set(statuses) == {0}, said
    assert f"resuming from {save}/iter_{newest:07d}" in said
    records = tiny_run.metrics(save)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    if num_ranks == 1:
        compared = tiny_run.compared_over_restarts
        assert [*map(compared, records)] == [*map(compared, whole)]


def test_a_run_whose_directory_is_taken_away_ends_and_writes_no_other(tmp_path: Path) -> None:
    save, moved = tmp_path / "run", tmp_path / "moved"
    flags = ("--stages", "seqkd", "--seqkd.steps", "100000", "--save-interval", "50")
    process = tiny_run.start(save, *flags)
    try:
        tiny_run.wait_for_steps(process, save, 3)
        save.rename(moved)
        assert process.wait(timeout=600) == NO_STORAGE
    finally:
        process.kill()
    said = tiny_run.log_of(save).read_text()
    assert f"megatron_gad: {save}: No such file or directory; bring it back" in said
    assert "Traceback" not in said
    assert not save.exists()
