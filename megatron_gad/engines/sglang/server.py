"""One SGLang server process of ours: started, watched and stopped by handle."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_gad.engines.sglang import keeper
from megatron_gad.engines.sglang.client import SGLangClient

POLL_S = 0.5
HEALTH_TIMEOUT_S = 5.0
GONE_TIMEOUT_S = 30.0
GONE_POLL_S = 0.05


class ServerStartError(RuntimeError):
    """A server did not come up; the message ends with the last lines of its log."""

    def __init__(self, message: str, timed_out: bool = False) -> None:
        """timed_out: it did not end, but was not healthy in time."""
        super().__init__(message)
        self.timed_out = timed_out


class ServerProcess:
    """A server in a process group of its own, whose output goes to a file.

    No process of the group survives ``stop``, nor the end of this process, however that comes.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], log_path: Path
    ) -> None:
        """Start it. command: arguments of the server without its address."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = log_path
        log_path.parent.mkdir(parents=True, exist_ok=True)
        address = ["--host", "127.0.0.1", "--port", str(self.port)]
        self._is_stopped = False
        kept = [sys.executable, "-I", keeper.__file__, str(os.getpid())]
        with log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [*kept, *command, *address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )

    @property
    def is_alive(self) -> bool:
        """Whether the server's process still runs; a hung one does."""
        return self._process.poll() is None

    @property
    def group(self) -> int:
        """The id of the process group that holds the server and all that it starts."""
        return self._process.pid

    def wait_until_healthy(self, timeout_s: float) -> None:
        """Wait until it can generate. Raises ServerStartError, after stopping it."""
        client = SGLangClient(self.url, HEALTH_TIMEOUT_S)
        deadline = time.monotonic() + timeout_s
        while self.is_alive and time.monotonic() < deadline:
            if client.is_healthy(HEALTH_TIMEOUT_S):
                return
            time.sleep(POLL_S)
        ended = not self.is_alive
        self.stop()
        reason = "ended" if ended else f"was not healthy after {timeout_s:g} s"
        message = f"the SGLang server {reason}; {self.last_log_lines()}"
        raise ServerStartError(message, timed_out=not ended)

    def last_log_lines(self, count: int = 25) -> str:
        """Return the end of its log, with the file's name."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-count:]
        return f"last lines of {self.log_path}:\n" + "\n".join(lines)

    def stop(self, patience_s: float = 0.0) -> None:
        """Kill the whole group and wait until it is gone; again is harmless.

        A process holds its memory, on a GPU too, until the kernel has taken it apart: who starts
        another one then finds that memory free.

        patience_s: how long it may take to end by itself, which leaves no files behind.
        """
        if self._is_stopped:
            return
        self._is_stopped = True
        # The keeper leads the group; what it leaves behind where it was killed keeps the id in use.
        with contextlib.suppress(ProcessLookupError):
            if patience_s and self.is_alive:
                os.killpg(self._process.pid, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(patience_s)
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        deadline = time.monotonic() + GONE_TIMEOUT_S
        while any(map(_holds_memory, keeper.members(self.group))) and time.monotonic() < deadline:
            time.sleep(GONE_POLL_S)


def _holds_memory(process: int) -> bool:
    """Say whether a process has not ended; one that nobody waits for is listed for ever."""
    folder = Path(f"/proc/{process}")
    try:
        state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        num_threads = len(list((folder / "task").iterdir()))
    except OSError:
        return False
    return state not in "ZX" or num_threads > 1


def free_port() -> int:
    """Return a port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
