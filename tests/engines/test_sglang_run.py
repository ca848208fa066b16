"""Adversarial runs that sample on a real SGLang server on the CPU: ``make test-sglang``."""

import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.e2e import tiny_run

SERVER_PYTHON = Path(__file__).parents[2] / ".venv-sglang/bin/python"
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        not SERVER_PYTHON.is_file(), reason="no .venv-sglang; tools/make_sglang_env.sh makes it"
    ),
]
FLAGS = (
    *("--stages", "adversarial", "--adversarial.steps", "10"),
    *("--rollout.engine", "sglang", "--sglang.python", str(SERVER_PYTHON)),
    *("--sglang.verify-interval", "3", "--sglang.server-args", "max_total_tokens", "16384"),
)
# Between the float32 of the trainer and of the server, in nats on a sampled token.
BOUND = 1e-5


def servers_of(save: Path) -> list[psutil.Process]:
    """Return the processes that serve the model of a run, found by their log's name."""
    parents = {int(log.stem.split("_")[1]) for log in (save / "logs").glob("sglang_*.log")}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if any("keeper.py" in part for part in command) and parents & {
            int(part) for part in command if part.isdigit()
        }:
            found += [process, *process.children(recursive=True)]
    return found


@pytest.mark.parametrize("num_ranks", [1, 2], ids=["TP1", "TP2"])
def test_after_every_swap_engine_and_trainer_agree(tmp_path, num_ranks):
    save = tmp_path / "run"
    flags = (*FLAGS, "--tensor-model-parallel-size", str(num_ranks))
    records = tiny_run.run(save, *flags, num_ranks=num_ranks)
    assert [record["stage"] for record in records] == ["adversarial"] * 10
    gaps = [record["engine/logprob_gap_max"] for record in records]
    assert len(gaps) == 10
    assert max(gaps) < BOUND
    assert all(record["swap/bytes"] > 0 for record in records)
    assert servers_of(save) == []


def test_a_killed_run_leaves_no_server(tmp_path):
    save = tmp_path / "run"
    process = tiny_run.start(save, *FLAGS)
    try:
        deadline = time.monotonic() + 120
        while len(servers_of(save)) < 2 and time.monotonic() < deadline:
            assert process.poll() is None, tiny_run.log_of(save).read_text()[-2000:]
            time.sleep(0.5)
        servers = servers_of(save)
        assert len(servers) >= 2
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, alive = psutil.wait_procs(servers, timeout=20)
    assert [p for p in alive if p.status() != psutil.STATUS_ZOMBIE] == []
