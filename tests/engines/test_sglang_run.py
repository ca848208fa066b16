"""Adversarial runs that sample on a real SGLang server on the CPU: ``make test-sglang``."""

import math
import os
import signal
import time
from pathlib import Path
from typing import Any

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
    *("--gad.tis-cap", "2", "--rollout.record"),
)
LAYOUTS = {"TP1": 1, "TP2": 2}
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


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of ten-step runs on real servers, by layout, which recorded their rollouts."""
    folder = tmp_path_factory.mktemp("recorded")
    for layout, num_ranks in LAYOUTS.items():
        flags = (*FLAGS, "--tensor-model-parallel-size", str(num_ranks))
        tiny_run.run(folder / layout, *flags, num_ranks=num_ranks)
    return folder


def replay(recorded_run: Path, save: Path, num_ranks: int) -> list[dict[str, Any]]:
    """Run on recorded rollouts, without SGLang, and return the metrics."""
    flags = ("--rollout.engine", "replay", "--rollout.replay", str(recorded_run))
    flags += ("--tensor-model-parallel-size", str(num_ranks))
    return tiny_run.run(save, *FLAGS, *flags, num_ranks=num_ranks)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_after_every_swap_engine_and_trainer_agree(recorded: Path, layout: str) -> None:
    save = recorded / layout
    records = tiny_run.metrics(save)
    assert [record["stage"] for record in records] == ["adversarial"] * 10
    gaps = [record["engine/logprob_gap_max"] for record in records]
    assert len(gaps) == 10
    assert max(gaps) < BOUND
    assert all(record["swap/bytes"] > 0 for record in records)
    assert servers_of(save) == []


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recorded_rollouts_give_the_same_numbers_without_the_engine(
    recorded: Path, layout: str, tmp_path: Path
) -> None:
    again = replay(recorded / layout, tmp_path / "run", LAYOUTS[layout])
    there = tiny_run.metrics(recorded / layout)
    assert [tiny_run.compared(r) for r in again] == [tiny_run.compared(r) for r in there]


def test_recorded_rollouts_give_the_same_losses_on_another_layout(
    recorded: Path, tmp_path: Path
) -> None:
    again = replay(recorded / "TP2", tmp_path / "run", num_ranks=1)
    there = tiny_run.metrics(recorded / "TP2")
    keys = ("student/loss", "student/grad_norm", "discriminator/loss", "discriminator/grad_norm")
    differences = [
        f"step {ours['step']} {key}: {sampled[key]} at TP2, {ours[key]} replayed at TP1"
        for sampled, ours in zip(there, again, strict=True)
        for key in keys
        if not math.isclose(sampled[key], ours[key], rel_tol=1e-4, abs_tol=1e-6)
    ]
    assert not differences, "\n".join(differences)


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
