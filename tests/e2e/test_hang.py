"""A run that hangs, or whose launcher or rank is killed, ends and says why; nothing survives it."""

import os
import re
import signal
import socket
from pathlib import Path

from tests.e2e import tiny_run

STEPS = ("--stages", "seqkd", "--seqkd.steps", "100000", "--data.eval-path", "")
TP2 = ("--tensor-model-parallel-size", "2")


def test_a_stopped_rank_ends_the_run_which_names_it(tmp_path: Path) -> None:
    save = tmp_path / "run"
    deadlines = ("--watchdog.phase-s", "20")
    process = tiny_run.start(save, *STEPS, *TP2, *deadlines, num_ranks=2)
    tiny_run.wait_for_steps(process, save, 3)
    processes = tiny_run.processes_of(save)
    assert len(processes) == 3
    stopped = tiny_run.rank_of(save, 1)
    stopped.send_signal(signal.SIGSTOP)
    # The launcher gives the stopped rank 30 seconds to end before it kills it.
    assert process.wait(timeout=600) != 0
    tiny_run.assert_all_end(processes, timeout_s=60)
    log = tiny_run.log_of(save).read_text()
    assert re.search(
        r"rank 0 of 2 \(.*\) hangs: it is in phase '(student|between)' for \d+ s, allowed are 20 s "
        r"\(watchdog\.phase_s\)",
        log,
    )
    assert re.search(rf"rank 1 \(.*, process {stopped.pid}\) is not heard from for \d+ s", log)
    report = (save / "hang_rank_00000.txt").read_text()
    assert "stack of rank 0, thread MainThread:" in report
    assert re.search(r'File ".*/megatron_gad/train.py", line \d+, in _run_stage', report)


def test_a_server_that_never_answers_ends_the_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        save = tmp_path / "run"
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        flags = ("--stages", "adversarial", "--rollout.engine", "sglang", "--sglang.urls", url)
        process = tiny_run.start(save, *flags, "--watchdog.start-s", "20")
        assert process.wait(timeout=600) == 4
    report = (save / "hang_rank_00000.txt").read_text()
    assert "hangs: it is in phase 'start' for " in report
    assert "in wait_until_healthy" in report


def test_ranks_end_when_their_launcher_is_killed(tmp_path: Path) -> None:
    save = tmp_path / "run"
    process = tiny_run.start(save, *STEPS, *TP2, num_ranks=2)
    tiny_run.wait_for_steps(process, save, 3)
    processes = tiny_run.processes_of(save)
    assert len(processes) == 3
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    tiny_run.assert_all_end(processes, timeout_s=60)
    assert "its launcher, process" in tiny_run.log_of(save).read_text()


def test_the_run_ends_when_a_rank_is_killed(tmp_path: Path) -> None:
    save = tmp_path / "run"
    process = tiny_run.start(save, *STEPS, *TP2, num_ranks=2)
    tiny_run.wait_for_steps(process, save, 3)
    processes = tiny_run.processes_of(save)
    tiny_run.rank_of(save, 1).kill()
    assert process.wait(timeout=600) != 0
    tiny_run.assert_all_end(processes, timeout_s=60)


def test_an_error_on_one_rank_ends_a_rank_that_waits_for_something_else(tmp_path: Path) -> None:
    save = tmp_path / "run"
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens there
        urls = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in (silent, closed)]
        flags = ("--stages", "adversarial", "--rollout.engine", "sglang", "--sglang.urls", *urls)
        flags += ("--sglang.start-timeout-s", "20")
        process = tiny_run.start(save, *flags, num_ranks=2)
        assert process.wait(timeout=600) == 1
    # Whichever rank gives up first ends the other.
    assert "has not answered /health for 20 s" in tiny_run.log_of(save).read_text()
    assert tiny_run.processes_of(save) == []
