"""Runs a server so that it cannot outlive the run: ``python keeper.py PARENT COMMAND...``.

Started as the leader of a process group of its own. When the parent is gone, however it ended, or
when the server is, everything in the group is killed and the shared memory left behind is freed.
Only the standard library is imported, so that the process is small.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

POLL_S = 0.5
LOOK_AROUND_S = 5.0
PR_SET_PDEATHSIG = 1  # of Linux's sys/prctl.h
SHARED_MEMORY = Path("/dev/shm")
# How torch names what it shares, and SGLang the queues between its ranks; a process's id follows.
SHARED_NAMES = ("torch_", "sgl_shm_mq_")
# How a folder of weights is named; the host's name and a process's id follow.
WEIGHTS_NAME = "megatron_gad_weights_"


def keep(parent: int, command: list[str]) -> None:
    """Run a command until it ends or the parent process does; then kill the whole group."""
    # Asked to end, the server ends first. A handler, unlike SIG_IGN, is not passed on to it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    # A scheduler may send it to every process; it asks the ranks, which still need the server.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    server = subprocess.Popen(command, preexec_fn=_end_with_parent)
    own = os.getpgrp()
    owners, looked = members(own), time.monotonic()
    while server.poll() is None and os.getppid() == parent:
        time.sleep(POLL_S)
        if time.monotonic() > looked + LOOK_AROUND_S:  # processes may be gone at the end
            owners, looked = owners | members(own), time.monotonic()
    owners |= members(own)
    if os.getppid() != parent:
        owners.add(parent)
    _free_shared_memory(owners)
    # Also this process: a handle on it then tells that the server is gone.
    os.killpg(own, signal.SIGKILL)


def _end_with_parent() -> None:
    """Let the kernel kill the server if this process is killed alone (Linux)."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def members(group: int) -> set[int]:
    """Return the processes of a group, by the kernel's list (Linux)."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(int(folder.name)) == group:
                found.add(int(folder.name))
    return found


def _free_shared_memory(owners: set[int]) -> None:
    """Remove the files of shared memory that carry an owner's number, which nobody else would."""
    names = (*SHARED_NAMES, f"{WEIGHTS_NAME}{socket.gethostname()}_")
    beginnings = tuple(f"{name}{owner}_" for name in names for owner in owners)
    for file in SHARED_MEMORY.glob("*") if owners else ():
        if file.name.startswith(beginnings) and file.is_dir():
            shutil.rmtree(file, ignore_errors=True)
        elif file.name.startswith(beginnings):
            file.unlink(missing_ok=True)


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2:])
