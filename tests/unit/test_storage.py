"""What is said of a disk that takes or gives nothing, and that nothing else is taken for it."""

import errno
import os
import resource
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from megatron_gad.errors import RunStoppedError
from megatron_gad.storage import StorageError, lost_folder, storage_error, telling_of_storage
from tests.ranks import statuses_of_ranks

SAID = 9


def _fails(folder: Path, library: str) -> int:
    """Write more than this process may write to a file, and say what is told of it."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    tensor = torch.zeros(1000)
    try:
        with telling_of_storage(folder):
            if library == "safetensors":
                save_file({"a": tensor}, folder / "file")
            elif library == "torch":
                torch.save(tensor, folder / "file")
            else:
                (folder / "file").write_text("a" * 1001)
    except StorageError as error:
        print(error)
        return SAID
    return 0


@pytest.mark.parametrize("library", ["safetensors", "torch", "python"])
def test_a_file_that_takes_no_more_is_a_failure_of_the_disk(library: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    (tmp_path / "run").mkdir()
    # By a limit of the system, which stands for a full disk on any machine.
    assert statuses_of_ranks(_fails, 1, tmp_path / "run", library, log=log, timeout_s=300) == [SAID]
    assert f"{tmp_path}/run" in log.read_text()
    assert "There is no checkpoint yet; the same command begins anew" in log.read_text()


def _as_nobody(folder: Path) -> int:
    if os.geteuid() == 0:
        os.setuid(65534)
    try:
        with telling_of_storage(folder):
            (folder / "file").write_text("")
    except StorageError as error:
        print(error)
        return SAID
    return 0


def test_a_folder_that_may_not_be_written_to_is_named(tmp_path: Path) -> None:
    log = tmp_path / "log"
    # Where others than this user may look, as into the run of another user.
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        run = Path(folder) / "run"
        run.mkdir()
        (run / "latest_checkpointed_iteration.txt").write_text("7")
        run.chmod(0o555)
        assert statuses_of_ranks(_as_nobody, 1, run, log=log, timeout_s=300) == [SAID]
        run.chmod(0o755)
    assert log.read_text() == (
        f"{run}/file: Permission denied; let this user read and write it. The newest checkpoint, "
        f"{run}/iter_0000007, was whole before and is not touched; the same command goes on from "
        "there\n"
    )


class _OfRanks(BaseException):
    """As torch hands the failures of ranks to one of them."""

    def __init__(self, failures: dict[int, tuple[BaseException, None]]) -> None:
        super().__init__("write")
        self.failures = failures


def test_a_failure_is_found_behind_others(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    behind = RuntimeError("a worker failed")
    behind.__cause__ = full
    in_text = RuntimeError("Worker failure: [Errno 28] No space left on device")
    for error in (full, behind, in_text, _OfRanks({1: (in_text, None)})):
        told = str(storage_error(error, tmp_path))
        assert told.startswith(f"{tmp_path}: No space left on device (")
        assert "bytes are free); make room there" in told
    assert "another rank" in str(storage_error(_OfRanks({}), tmp_path))
    gone = FileNotFoundError(errno.ENOENT, "No such file or directory", str(tmp_path / "a"))
    assert str(storage_error(gone, tmp_path)).startswith(f"{tmp_path}/a: No such file")
    assert str(lost_folder(tmp_path)).startswith(f"{tmp_path}: No such file")


def test_nothing_else_is_a_failure_of_the_disk(tmp_path: Path) -> None:
    told = ValueError("a wrong value")
    told.__cause__ = FileNotFoundError(errno.ENOENT, "No such file or directory", "a")
    while_handling = KeyError("a mistake")
    while_handling.__context__ = OSError(errno.ENOSPC, "No space left on device")
    others = (told, while_handling, RunStoppedError("the weights are lost"), KeyboardInterrupt())
    others += (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), OSError("a text"))
    for error in (*others, RuntimeError("shapes differ"), _OfRanks({0: (KeyError("a"), None)})):
        assert storage_error(error, tmp_path) is None
        with pytest.raises(type(error)), telling_of_storage(tmp_path):
            raise error
