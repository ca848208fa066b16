"""One run directory for all ranks: is it the same one, and what does it say?"""

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from uuid import uuid4

from megatron_gad.records import sync
from megatron_gad.training.parallel import Parallel

T = TypeVar("T")

# NFS may keep a folder as it was for 60 s by default.
PATIENCE_S = 70.0
POLL_S = 0.5


def check_is_shared(folder: Path, parallel: Parallel, patience_s: float = PATIENCE_S) -> None:
    """Raise ValueError, alike on all ranks, where some do not see what the first one writes.

    Without this check nothing would fail until a resume: every host makes the folders it misses.
    """
    if parallel.world_size == 1:
        return
    # A name that nobody asked for before is in no host's cache of names that do not exist.
    token = parallel.gather_over_world(uuid4().hex)[0]
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


def ask_first_rank(parallel: Parallel, question: Callable[[], T]) -> T:
    """Return the first rank's answer on every rank, and raise its ValueError on every rank.

    Hosts of a network file system may see different files for some seconds; one has to decide.
    """
    answer: T | None = None
    problem = None
    if parallel.is_writer:
        try:
            answer = question()
        except ValueError as error:
            problem = str(error)
    given: list = parallel.gather_over_world((answer, problem))
    answer, problem = given[0]
    if problem is not None:
        raise ValueError(problem)
    return answer  # pyright: ignore[reportReturnType]


def _comes_to_exist(file: Path, patience_s: float) -> bool:
    deadline = time.monotonic() + patience_s
    while not file.exists():
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_S)
    return True
