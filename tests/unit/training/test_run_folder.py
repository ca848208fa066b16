"""One run has a run directory at a time."""

import subprocess
import sys
from pathlib import Path

import pytest

from megatron_gad.runtime.run_folder import LOCK_FILE, RunFolderLock

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
print("node7, process 4711", file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def start_other(folder: Path) -> subprocess.Popen[str]:
    """Start a process that waits for the directory and has it until its input ends."""
    command = [sys.executable, "-c", HOLD, str(folder / LOCK_FILE)]
    return subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_a_second_run_is_refused_until_the_first_was_killed(tmp_path: Path) -> None:
    with start_other(tmp_path) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(ValueError, match=r"in use by another run \(node7, process 4711\)"):
            RunFolderLock(tmp_path, patience_s=0).take()
        other.kill()
        other.wait()
        lock = RunFolderLock(tmp_path)
        lock.take()
        lock.close()


def test_a_run_that_ended_leaves_the_directory_to_others(tmp_path: Path) -> None:
    lock = RunFolderLock(tmp_path)
    lock.take()
    lock.take()  # this process has it already
    with start_other(tmp_path) as other:
        lock.close()
        assert other.communicate("", timeout=60)[0] == "held\n"
