"""Adversarial runs that sample on a real SGLang server on the CPU: ``make test-sglang``."""

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from examples.tiny.prepare import prepare
from megatron_gad.data.order import PromptOrder
from megatron_gad.engines.sglang.launch import (
    SGLangConfig,
    server_arguments,
    server_environment,
    start_server,
    write_model_folder,
)
from megatron_gad.engines.sglang.server import ServerProcess
from megatron_gad.models.families import load_hf_config
from tests.e2e import tiny_run

SERVER_PYTHON = Path(__file__).parents[2] / ".venv-sglang/bin/python"
pytestmark = [
    pytest.mark.sglang,
    pytest.mark.skipif(
        not SERVER_PYTHON.is_file(), reason="no .venv-sglang; tools/make_sglang_env.sh makes it"
    ),
]
COMMON = (
    *("--stages", "adversarial", "--adversarial.steps", "10"),
    *("--rollout.engine", "sglang", "--sglang.verify-interval", "3"),
    *("--gad.tis-cap", "2", "--rollout.record"),
)
FLAGS = (
    *(*COMMON, "--sglang.python", str(SERVER_PYTHON)),
    *("--sglang.server-args", "max_total_tokens", "16384"),
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server of the tiny student's shape, with random weights, that is not the run's own."""
    folder = tmp_path_factory.mktemp("server")
    prepare(folder / "assets")
    hf_config = load_hf_config(folder / "assets/student")
    model = write_model_folder(hf_config, folder / "model")
    config = SGLangConfig(
        python=str(SERVER_PYTHON),
        log_folder=str(folder),
        server_args={"max_total_tokens": 16384},
    )
    cpu = torch.device("cpu")
    arguments = server_arguments(config, cpu, torch.float32, number=0)
    environment = server_environment(os.environ, cpu, tensor_parallel_size=1)
    process = start_server(config, model, arguments, environment, "server.log")
    try:
        process.wait_until_healthy(600)
        yield process
    finally:
        process.stop()


@pytest.mark.parametrize("transport", ["disk", "broadcast"])
def test_a_server_at_a_url_takes_the_weights_of_every_step(
    transport: str, server: ServerProcess, tmp_path: Path
) -> None:
    flags = ("--sglang.urls", server.url, "--sglang.weight-transport", transport)
    records = tiny_run.run(tmp_path / "run", *COMMON, *flags, "--adversarial.steps", "3")
    assert [record["engine/weights_lag"] for record in records] == [0.0] * 3
    assert max(record["engine/logprob_gap_max"] for record in records) < BOUND
    assert all(record["swap/bytes"] > 0 for record in records)
    assert server.is_alive


def test_overlap_stops_and_goes_on_without_losing_a_prompt(
    server: ServerProcess, tmp_path: Path
) -> None:
    save = tmp_path / "run"
    flags = ("--sglang.urls", server.url, "--adversarial.overlap", "--adversarial.steps")
    process = tiny_run.start(save, *COMMON, *flags, "1000")
    tiny_run.wait_for_steps(process, save, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 0, tiny_run.log_of(save).read_text()[-4000:]
    saved = len(tiny_run.metrics(save))
    assert saved >= 3
    records = tiny_run.run(save, *COMMON, *flags, str(saved + 3))
    assert [record["step"] for record in records] == list(range(1, saved + 4))
    assert [record["engine/weights_lag"] for record in records] == [0.0] + [1.0] * (saved + 2)
    # Every swap is followed by a comparison with the new weights, on a probe.
    assert max(record.get("engine/logprob_gap_max", 0.0) for record in records) < BOUND
    order = PromptOrder(num_rows=64, seed=1234)
    for step in range(1, saved + 4):
        lines = (save / f"rollouts/step_{step:07d}_0.jsonl").read_text().splitlines()
        assert [json.loads(line)["prompt_index"] for line in lines] == order.take(4)
    assert server.is_alive


@pytest.mark.parametrize("victim", ["launcher", "rank with the engine"])
def test_nothing_survives_a_killed(victim: str, tmp_path: Path) -> None:
    save = tmp_path / "run"
    tp2 = ("--tensor-model-parallel-size", "2", "--adversarial.steps", "100000")
    process = tiny_run.start(save, *FLAGS, *tp2, num_ranks=2)
    tiny_run.wait_for_steps(process, save, 1)
    servers, run = servers_of(save), tiny_run.processes_of(save)
    # The keeper, the server, its scheduler and detokenizer; the launcher and two ranks.
    assert len(servers) >= 4
    assert len(run) == 3
    killed = psutil.Process(process.pid) if victim == "launcher" else tiny_run.rank_of(save, 0)
    killed.kill()
    assert process.wait(timeout=600) != 0
    tiny_run.assert_all_end([*run, *servers], timeout_s=60)
    # Tensors that were shared with the server; a killed server leaves one file of 16 KB.
    left = [f for f in Path("/dev/shm").iterdir() if any(f"_{p.pid}_" in f.name for p in run)]
    assert sum(file.stat().st_size for file in left) < 100_000
