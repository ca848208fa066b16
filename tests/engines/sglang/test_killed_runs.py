"""Runs with a real SGLang server that end otherwise than they should: ``make test-sglang``."""

import subprocess
from pathlib import Path

import psutil

from tests.e2e import tiny_run
from tests.engines.sglang.runs import FLAGS, servers_of
from tests.engines.sglang.servers import MARKS

pytestmark = MARKS


def start_two_ranks(
    save: Path, num_steps: int
) -> tuple[subprocess.Popen, list[psutil.Process], list[psutil.Process]]:
    """Start a run without end at TP2; return it after some steps, with its servers and ranks."""
    tp2 = ("--tensor-model-parallel-size", "2", "--adversarial.steps", "100000")
    process = tiny_run.start(save, *FLAGS, *tp2, num_ranks=2)
    tiny_run.wait_for_steps(process, save, num_steps)
    servers = servers_of(save)
    assert len(servers) >= 4  # keeper, server, scheduler, detokenizer
    return process, servers, tiny_run.processes_of(save)


def test_nothing_survives_when_the_rank_with_the_engine_is_killed(tmp_path: Path) -> None:
    save = tmp_path / "run"
    process, servers, run = start_two_ranks(save, num_steps=1)
    # The launcher and two ranks.
    assert len(run) == 3
    tiny_run.rank_of(save, 0).kill()
    assert process.wait(timeout=600) != 0
    tiny_run.assert_all_end([*run, *servers], timeout_s=60)
    # Tensors that were shared, and the server's queues.
    numbers = [process.pid for process in (*run, *servers)]
    assert [f for f in Path("/dev/shm").iterdir() if any(f"_{n}_" in f.name for n in numbers)] == []


def test_a_launcher_that_is_asked_to_end_leaves_a_checkpoint_and_nothing_else(
    tmp_path: Path,
) -> None:
    save = tmp_path / "run"
    process, servers, run = start_two_ranks(save, num_steps=2)
    process.terminate()
    process.wait(timeout=600)
    tiny_run.assert_all_end([*run, *servers], timeout_s=60)
    saved = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert [record["step"] for record in tiny_run.metrics(save)] == list(range(1, saved + 1))


def test_an_error_of_one_rank_ends_servers_and_the_other_rank(tmp_path: Path) -> None:
    save = tmp_path / "run"
    # The rank with the engine writes this file, and cannot.
    in_its_place = save / "rollouts/step_0000005_0.jsonl"
    in_its_place.mkdir(parents=True)
    process, servers, run = start_two_ranks(save, num_steps=1)
    assert process.wait(timeout=600) != 0
    assert str(in_its_place) in tiny_run.log_of(save).read_text()
    assert [record["step"] for record in tiny_run.metrics(save)] == list(range(1, 5))
    tiny_run.assert_all_end([*run, *servers], timeout_s=60)
