"""Runs a server so that it cannot outlive the run: ``python keeper.py PARENT COMMAND...``.

Started as the leader of a process group of its own. When the parent is gone, however it ended, or
when the server is, everything in the group is killed. Only the standard library is imported, so
that the process is small.
"""

import os
import signal
import subprocess
import sys
import time

POLL_S = 0.5


def keep(parent: int, command: list[str]) -> None:
    """Run a command until it ends or the parent process does; then kill the whole group."""
    # Asked to end, the server ends first. A handler, unlike SIG_IGN, is not passed on to it.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = subprocess.Popen(command)
    while server.poll() is None and os.getppid() == parent:
        time.sleep(POLL_S)
    # Also this process: a handle on it then tells that the server is gone.
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    keep(int(sys.argv[1]), sys.argv[2:])
