"""A run that stops goes on where it was."""

import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.e2e import tiny_run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run that kept a checkpoint of every step."""
    save = tmp_path_factory.mktemp("whole") / "run"
    tiny_run.run(save, "--save-interval", "1", "--keep-last", "0")
    return save


@pytest.mark.parametrize(("iteration", "stage"), [(2, "seqkd"), (8, "adversarial")])
def test_a_restart_gives_the_bits_of_the_uninterrupted_run(
    iteration: int, stage: str, uninterrupted: Path, tmp_path: Path
) -> None:
    save = tmp_path / "run"
    tiny_run.restore(uninterrupted, save, iteration)
    again = tiny_run.run(save)
    whole = tiny_run.metrics(uninterrupted)
    assert again[iteration - 1]["stage"] == stage
    assert [r["step"] for r in again] == list(range(1, 12))
    for expected, ours in zip(whole[iteration:], again[iteration:], strict=True):
        assert tiny_run.compared_over_restarts(ours) == tiny_run.compared_over_restarts(expected)
    expected_weights = load_file(uninterrupted / "student_hf/model.safetensors")
    weights = load_file(save / "student_hf/model.safetensors")
    assert expected_weights.keys() == weights.keys()
    assert all(torch.equal(weights[name], expected_weights[name]) for name in weights)


def test_a_run_killed_while_it_saves_in_the_background_goes_on_bit_for_bit(
    uninterrupted: Path, tmp_path: Path
) -> None:
    save, flags = tmp_path / "run", ("--save-interval", "1", "--async-save", "--keep-last", "1")
    for steps in (3, 6):
        process = tiny_run.start(save, *flags)
        tiny_run.wait_for_steps(process, save, steps)
        killed = tiny_run.processes_of(save)
        for each in killed:
            each.kill()
        tiny_run.assert_all_end(killed, timeout_s=60)
        process.wait(timeout=60)
    again = tiny_run.run(save, *flags)
    whole = tiny_run.metrics(uninterrupted)
    for expected, ours in zip(whole, again, strict=True):
        assert tiny_run.compared_over_restarts(ours) == tiny_run.compared_over_restarts(expected)
    weights, expected_weights = (
        load_file(folder / "student_hf/model.safetensors") for folder in (save, uninterrupted)
    )
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


def test_a_distributed_optimizer_goes_on_bit_for_bit_in_the_warmup(tmp_path: Path) -> None:
    flags = ["--use-distributed-optimizer", "--stages", "warmup", "--warmup.steps", "4"]
    flags += ["--save-interval", "2", "--keep-last", "0"]
    whole = tiny_run.run(tmp_path / "whole", *flags, num_ranks=2)
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again/latest_checkpointed_iteration.txt").write_text("2")
    shutil.rmtree(tmp_path / "again/student_hf")
    again = tiny_run.run(tmp_path / "again", *flags, num_ranks=2)
    assert [r["step"] for r in again] == [1, 2, 3, 4]
    for expected, ours in zip(whole[2:], again[2:], strict=True):
        assert tiny_run.compared(ours) == tiny_run.compared(expected)
    expected_weights = load_file(tmp_path / "whole/student_hf/model.safetensors")
    weights = load_file(tmp_path / "again/student_hf/model.safetensors")
    assert all(torch.equal(weights[name], expected_weights[name]) for name in expected_weights)


def test_sigterm_saves_after_the_step_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    save = tmp_path / "run"
    process = tiny_run.start(save, "--stages", "seqkd", "--seqkd.steps", "100000")
    tiny_run.wait_for_steps(process, save, 3)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 0
    saved = int((save / "latest_checkpointed_iteration.txt").read_text())
    assert [r["step"] for r in tiny_run.metrics(save)] == list(range(1, saved + 1))
    assert "stopped by SIGTERM" in tiny_run.log_of(save).read_text()

    records = tiny_run.run(save, "--stages", "seqkd", "--seqkd.steps", str(saved + 2))
    assert [r["step"] for r in records] == list(range(1, saved + 3))
