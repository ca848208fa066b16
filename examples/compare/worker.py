"""Runs ``megatron_gad`` in forks of one process that has paid for the imports."""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from pathlib import Path

from megatron_gad.cpu_seam import install_if_needed

install_if_needed()

# isort: split
# For the forks, which find them imported.
import megatron_gad.reporting.page  # noqa: E402
import megatron_gad.train  # noqa: E402, F401
from megatron_gad.__main__ import main  # noqa: E402

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])


def run_command(arguments: Sequence[str], log: Path) -> float:
    """Run the command to its end; return the seconds of processor time that it took.

    Time of the processor, not of the clock: other work on the machine counts little.

    Raises:
        RuntimeError: it failed; the log says why.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    forkserver.ensure_running()
    log.parent.mkdir(parents=True, exist_ok=True)
    reader, writer = _CONTEXT.Pipe(duplex=False)
    process = _CONTEXT.Process(target=_work, args=(list(arguments), log, writer))
    process.start()
    writer.close()
    try:
        process.join()
    finally:
        process.kill()
        process.join()
    if process.exitcode != 0 or not reader.poll():
        last = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"megatron_gad {' '.join(arguments)} failed, see {log}:\n{last}")
    return json.loads(reader.recv())


def _work(arguments: list[str], log: Path, writer: Connection) -> None:
    with log.open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["megatron_gad", *arguments]
    start = time.process_time()
    status = main()
    writer.send(json.dumps(time.process_time() - start))
    sys.exit(status)
