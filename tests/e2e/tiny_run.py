"""Starts ``examples/tiny/run.sh`` and reads what it leaves behind."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What depends on the clock, or on how a run is spread over ranks.
NOT_COMPARED = ("time", "swap/bytes")


def start(save: Path, *flags: str, num_ranks: int = 1) -> subprocess.Popen:
    """Start a tiny run; its output goes to ``<save>.log``."""
    environment = {**os.environ, "PYTHON": sys.executable, "SAVE": str(save)}
    environment |= {"NPROC": str(num_ranks), "OMP_NUM_THREADS": "1"}
    command = [str(ROOT / "examples/tiny/run.sh"), "--no-tensorboard", *flags]
    with log_of(save).open("w") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def run(save: Path, *flags: str, num_ranks: int = 1) -> list[dict[str, Any]]:
    """Run to the end and return the metrics of every step."""
    process = start(save, *flags, num_ranks=num_ranks)
    try:
        status = process.wait(timeout=900)
    finally:
        process.kill()  # the ranks end when it is gone
    assert status == 0, f"exit status {status}\n" + log_of(save).read_text()[-4000:]
    return metrics(save)


def metrics(save: Path) -> list[dict[str, Any]]:
    """Return the lines of ``metrics.jsonl``."""
    return [json.loads(line) for line in (save / "metrics.jsonl").read_text().splitlines()]


def log_of(save: Path) -> Path:
    """Return the file that a run's output goes to."""
    return save.with_name(save.name + ".log")


def compared(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a step's metrics that does not depend on the clock."""
    return {key: value for key, value in record.items() if not key.startswith(NOT_COMPARED)}
