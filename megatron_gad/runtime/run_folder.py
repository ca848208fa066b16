"""One run directory for all ranks: is it the same one, and what does it say?"""

import contextlib
import errno
import fcntl
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO, TypeVar
from uuid import uuid4

from megatron_gad.files import sync
from megatron_gad.storage import lost_folder
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")

# NFS may keep a folder as it was for 60 s by default.
PATIENCE_S = 70.0
# NFS frees what a dead host had locked after 90 s by default; a killed process frees it at once.
LOCK_PATIENCE_S = 120.0
LOCK_FILE = "run.lock"
POLL_S = 0.5

logger = logging.getLogger(__name__)


def check_is_shared(folder: Path, parallel: Parallel, patience_s: float = PATIENCE_S) -> None:
    """Raise ValueError, alike on all ranks, where some do not see what the first one writes.

    Without this check nothing would fail until a resume: every host makes the folders it misses.
    """
    if parallel.world_size == 1:
        return
    # A name that nobody asked for before is in no host's cache of names that do not exist.
    token = parallel.from_first_rank(uuid4().hex)
    file = folder / f"shared_{token}.tmp"
    if parallel.is_writer:
        folder.mkdir(parents=True, exist_ok=True)
        file.touch()
        sync(file)
    parallel.barrier()
    host = socket.gethostname()
    answers = parallel.gather_over_world((host, _comes_to_exist(file, patience_s)))
    if parallel.is_writer:
        file.unlink()
    blind = {host for host, is_seen in answers if not is_seen}
    if blind:
        raise ValueError(
            f"checkpoint.save = {str(folder)!r}: what rank 0 on {answers[0][0]} writes there is "
            f"not seen on {', '.join(sorted(blind))}; name a directory on a file system that all "
            "hosts of the run share, by a path that is the same on all"
        )


class RunFolderLock:
    """Keeps a second run out of a run directory until it is closed or its process ends.

    Every rank has one, and only the first takes the directory.
    """

    def __init__(self, folder: Path, patience_s: float = LOCK_PATIENCE_S):
        """Take nothing yet. patience_s: how long another run's end is waited for."""
        self._path = folder / LOCK_FILE
        self._patience_s = patience_s
        self._file: TextIO | None = None

    def take(self) -> None:
        """Take the directory, unless this process has it.

        Raises ValueError if another run has it for longer than a run that was killed would.
        """
        if self._file is None:
            self._take(time.monotonic() + self._patience_s)

    def check_is_there(self) -> None:
        """Raise StorageError on the rank that writes if the directory was taken away, or replaced.

        Files that are open go on into nothing, and the next checkpoint would be in a new folder.
        """
        if self._file is not None:
            own = os.fstat(self._file.fileno())
            with contextlib.suppress(OSError):
                found = self._path.stat()
                if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                    return
            raise lost_folder(self._path.parent)

    def close(self) -> None:
        """Let others have the directory."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _take(self, deadline: float) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = file = self._path.open("a+")
        is_said = False
        while not self._is_free(file):
            file.seek(0)
            in_use = f"is in use by another run ({file.read().strip()})"
            if time.monotonic() >= deadline:
                self.close()
                raise ValueError(
                    f"checkpoint.save = {str(self._path.parent)!r} {in_use}; end that run, or use "
                    "another --save"
                )
            if not is_said:
                logger.warning("%s %s; waiting for its end", self._path.parent, in_use)
                is_said = True
            time.sleep(POLL_S)
        file.truncate(0)
        file.write(f"{socket.gethostname()}, process {os.getpid()}\n")
        file.flush()

    def _is_free(self, file: TextIO) -> bool:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            # Lustre without -o flock, for one, has no locks; a run can do without.
            logger.warning("%s cannot be locked against a second run: %s", self._path, error)
        return True


def ask_first_rank(parallel: Parallel, question: Callable[[], T]) -> T:
    """Return the first rank's answer on every rank, and raise its ValueError on every rank.

    Hosts of a network file system may see different files for some seconds; one has to decide.
    """
    given: Any = None
    if parallel.is_writer:
        try:
            given = question(), None
        except ValueError as error:
            given = None, str(error)
    answer, problem = parallel.from_first_rank(given)
    if problem is not None:
        raise ValueError(problem)
    return answer


def _comes_to_exist(file: Path, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not file.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
