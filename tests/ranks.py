"""Starts ranks of the tests without torchrun.

They are forks of one process that has imported what they need, which takes as long as most tests.
What depends on a launcher starts one: see ``tests/e2e/tiny_run.py``.
"""

import multiprocessing
import multiprocessing.connection
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import forkserver
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
# For the ranks, which find them imported.
import megatron_gad.train  # noqa: E402, F401
import tests.tiny_training  # noqa: E402, F401

# Returns an exit status, as a command does, or None.
Worker = Callable[..., int | None]
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def run_on_ranks(
    function: Worker, num_ranks: int, *arguments: Any, timeout_s: float = 1200
) -> None:
    """Call a function of a module on several ranks of the CPU, and fail with what they print."""
    with TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        statuses = statuses_of_ranks(function, num_ranks, *arguments, log=log, timeout_s=timeout_s)
        assert set(statuses) == {0}, f"exit statuses {statuses}:\n{log.read_text()[-8000:]}"


def statuses_of_ranks(
    function: Worker,
    num_ranks: int,
    *arguments: Any,
    log: Path,
    timeout_s: float,
    meddle: Callable[[Sequence[Any]], None] = lambda ranks: None,
) -> list[int | None]:
    """Return with what exit status each rank ends; the first that fails ends the others.

    Args:
        function: of a module, so that it is found there; one rank alone is told of no others.
        num_ranks: how many of them to start.
        arguments: of the function, picklable.
        log: file that takes what all ranks print.
        timeout_s: seconds after which they are ended.
        meddle: is given the processes when they have started, to do something to them.
    """
    _start_server()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    log.write_text("")
    ranks = [
        _CONTEXT.Process(
            target=_run_rank,
            args=(_environment(rank, num_ranks, store.port), log, function, arguments),
        )
        for rank in range(num_ranks)
    ]
    for process in ranks:
        process.start()
    try:
        meddle(ranks)
        _wait(ranks, timeout_s)
    finally:
        for process in ranks:
            process.kill()
            process.join()
    return [process.exitcode for process in ranks]


def _start_server() -> None:
    """Start the process that ranks are forks of, to import from where this one does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("PYTHONSAFEPATH", "1")
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()


def _environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """This process's, and what torchrun tells a rank, which finds the others at a store here."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    if num_ranks == 1:
        return environment
    return environment | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(num_ranks),
        "LOCAL_WORLD_SIZE": str(num_ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }


def _wait(ranks: list[Any], timeout_s: float) -> None:
    """Return when all have ended, or one with an error, or the time is up."""
    deadline = time.monotonic() + timeout_s
    running = list(ranks)
    while running and time.monotonic() < deadline:
        left_s = deadline - time.monotonic()
        multiprocessing.connection.wait([process.sentinel for process in running], left_s)
        if any(process.exitcode for process in ranks):
            # Time for the others to say what they see of it, as a launcher gives them.
            multiprocessing.connection.wait([process.sentinel for process in running], 5)
            return
        running = [process for process in running if process.exitcode is None]


def _run_rank(
    environment: dict[str, str],
    log: Path,
    function: Worker,
    arguments: tuple[Any, ...],
) -> None:
    """Call the function in a process of its own, with output and environment of a rank."""
    with log.open("a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.clear()
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(function(*arguments))
