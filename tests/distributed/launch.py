"""Starts a worker script of the tests on several ranks."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run_on_ranks(script: Path, num_ranks: int, *arguments: str, timeout_s: float = 900) -> None:
    """Run a script under torchrun on the CPU, one thread a rank, and fail with its output.

    A process pays seconds of imports, so a worker checks as much as it can in one start.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(num_ranks), str(script), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"{script.name} failed:\n{done.stdout}\n{done.stderr[-6000:]}"
