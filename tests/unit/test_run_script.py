"""The script that starts torchrun passes a request to stop on to ranks that hear it late."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
RANK = """
import pathlib, signal, sys, time
pathlib.Path(sys.argv[1]).touch()
time.sleep(3)
signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7))
time.sleep(120)
"""


def test_a_request_that_comes_while_ranks_start_reaches_them(tmp_path: Path) -> None:
    started = tmp_path / "started"
    (tmp_path / "rank.py").write_text(RANK)
    launcher = tmp_path / "torchrun"  # stands in for it: one rank, whose status is its own
    launcher.write_text(f"#!/bin/bash\n{sys.executable} {tmp_path}/rank.py {started}\nexit $?\n")
    launcher.chmod(0o755)
    script = ROOT / "examples/lmsys_qwen2.5_7b/run.sh"
    process = subprocess.Popen([script], env=os.environ | {"PYTHON": str(launcher)})
    while not started.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=100) == 7
