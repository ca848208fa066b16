"""Server processes: whatever ends the run ends them too. Commands stand in for a server here."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_gad.engines.sglang.server import ServerProcess, ServerStartError
from tests.processes import wait_until_gone

ROOT = Path(__file__).parents[3]


def test_no_process_survives_the_run_however_it_ends(tmp_path):
    script = (
        "import subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from megatron_gad.engines.sglang.server import ServerProcess\n"
        "inner = 'import subprocess, sys, time; "
        'subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]); '
        "time.sleep(600)'\n"
        f"server = ServerProcess([sys.executable, '-c', inner], {{}}, Path('{tmp_path}/log'))\n"
        "print(server.group, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    group = int(parent.stdout.readline())
    deadline = time.monotonic() + 20
    while len(in_group(group)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = in_group(group)
    assert len(processes) == 3
    shared = Path("/dev/shm") / f"torch_{parent.pid}_left_behind"
    shared.write_bytes(b"a bucket on its way")
    weights = Path("/dev/shm") / f"megatron_gad_weights_{socket.gethostname()}_{parent.pid}_x"
    weights.mkdir()
    (weights / "model-00000.safetensors").write_bytes(b"weights")
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_until_gone(processes) == []
    assert not shared.exists()
    assert not weights.exists()


def test_a_scheduler_that_warns_every_process_ends_no_server(tmp_path):
    sleeping = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = ServerProcess(sleeping, {}, tmp_path / "log")
    deadline = time.monotonic() + 60
    while len(in_group(server.group)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    ignored = [ignored_signals(process.pid) for process in in_group(server.group)]
    server.stop()
    assert len(ignored) == 2  # the keeper and the server
    assert all(signals >> (signal.SIGUSR1 - 1) & 1 for signals in ignored)


def ignored_signals(process: int) -> int:
    """Return the kernel's mask of them, whose lowest bit is signal 1."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(status.split("SigIgn:")[1].split()[0], base=16)


def in_group(group: int) -> list[psutil.Process]:
    """Return the processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group:
                found.append(process)
        except ProcessLookupError:
            continue
    return found


def holds_memory(process: psutil.Process) -> bool:
    """Say whether a process has not ended yet."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_stopped_process_is_gone(tmp_path):
    server = ServerProcess(
        [sys.executable, "-c", "import time; time.sleep(600)"], {}, tmp_path / "l"
    )
    processes = in_group(server.group)
    server.stop()
    assert not any(map(holds_memory, processes))
    server.stop()
    assert not server.is_alive
    assert wait_until_gone(processes) == []


def test_what_a_killed_keeper_left_running_is_gone_after_a_stop(tmp_path):
    # A process that its parent's death does not end, in the group that the keeper leads.
    command = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; "
    command += "time.sleep(600)']); import time; time.sleep(600)"
    server = ServerProcess([sys.executable, "-c", command], {}, tmp_path / "l")
    deadline = time.monotonic() + 20
    while len(in_group(server.group)) < 3 and time.monotonic() < deadline:
        time.sleep(0.1)
    processes = in_group(server.group)
    assert len(processes) == 3
    os.kill(server.group, signal.SIGKILL)
    while server.is_alive:
        time.sleep(0.1)
    server.stop()
    assert not any(map(holds_memory, processes))
    assert wait_until_gone(processes) == []


def test_a_server_that_ends_while_starting_leaves_its_last_words(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('the port is on fire')"]
    server = ServerProcess(command, {}, tmp_path / "logs" / "server.log")
    with pytest.raises(ServerStartError, match=r"ended; last lines of .*server\.log:\n.*on fire"):
        server.wait_until_healthy(timeout_s=30)


def test_a_server_that_is_never_healthy_is_given_up_and_stopped(tmp_path):
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = ServerProcess(command, {}, tmp_path / "server.log")
    processes = in_group(server.group)
    with pytest.raises(ServerStartError, match=r"was not healthy after 1 s"):
        server.wait_until_healthy(timeout_s=1)
    assert wait_until_gone(processes) == []
