"""--ckpt-step, --no-load-optim and --finetune: what of another run a run begins with."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megatron_gad.checks.resume import check_resume
from megatron_gad.checks.sections import check_run_directory
from megatron_gad.resume import load_latest, save
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.training import parallel
from megatron_gad.training.optimizer import torch_optimizers
from megatron_gad.training.trainer import Trainer
from tests.stage_steps import take_step


@pytest.fixture(scope="module")
def configure(configure):
    """A function that makes the configuration of a warm-up in a folder."""
    return lambda folder, *flags: configure(folder, "--stages", "warmup", *flags)


@pytest.fixture(scope="module")
def other(configure, place: parallel.Parallel, tmp_path_factory) -> tuple[Path, list[list[Tensor]]]:
    """A run with checkpoints of steps 1 and 2, and the student's weights in each."""
    folder = tmp_path_factory.mktemp("other")
    run = open_run(configure(folder, "--stages", "seqkd", "warmup"), place)
    stage = begin_stage(run)
    held = []
    for _ in range(2):
        take_step(run, stage)
        save(run, stage)
        held.append(run.student.snapshot())
    run.close()
    return folder, held


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(map(torch.equal, first, second))


def moments(trainer: Trainer) -> list[Tensor]:
    parts = torch_optimizers(trainer.optimizer_to_write())
    held = [state for part in parts for state in part.state.values()]
    return [state["exp_avg"] for state in held if "exp_avg" in state]


SAME_STAGES = ("--stages", "seqkd", "warmup")


def test_ckpt_step_chooses_a_checkpoint_of_load(configure, place, other, tmp_path: Path) -> None:
    folder, held = other
    flags = (*SAME_STAGES, "--load", str(folder))
    run = open_run(configure(tmp_path / "a", *flags, "--ckpt-step", "1"), place)
    stage = load_latest(run)
    assert stage is not None
    assert run.progress.iteration == 1
    assert same(run.student.snapshot(), held[0])
    assert any(each.any() for each in moments(run.student))
    # Once it has a checkpoint of its own it goes on from that.
    take_step(run, stage)
    take_step(run, stage)
    save(run, stage)
    run.close()
    again = open_run(configure(tmp_path / "a", *flags, "--ckpt-step", "1", "--finetune"), place)
    assert load_latest(again) is not None
    assert again.progress.iteration == 3
    again.close()


def test_a_ckpt_step_that_is_not_there_is_told_with_those_that_are(
    configure, place, other, tmp_path: Path
) -> None:
    config = configure(tmp_path, *SAME_STAGES, "--load", str(other[0]), "--ckpt-step", "7")
    words = "ckpt_step = 7: .* has checkpoints of the iterations 1, 2; choose one of these"
    (problem,) = check_resume(config).refused
    run = open_run(config, place)
    with pytest.raises(ValueError, match=words) as refused:
        load_latest(run)
    run.close()
    assert problem == str(refused.value)


def test_without_the_optimizers_states_a_run_goes_on_with_a_first_step(
    configure, place, other, tmp_path: Path
) -> None:
    """AdamW's first step moves a weight by about the learning rate, whatever its gradient is."""
    folder, held = other
    run = open_run(
        configure(tmp_path, *SAME_STAGES, "--load", str(folder), "--no-load-optim"), place
    )
    stage = load_latest(run)
    assert stage is not None
    assert run.progress.iteration == 2
    assert same(run.student.snapshot(), held[1])
    assert not any(each.any() for each in moments(run.student))
    take_step(run, stage)
    steps = {
        int(state["step"])
        for part in torch_optimizers(run.student.optimizer_to_write())
        for state in part.state.values()
    }
    assert steps == {1}
    run.close()


def test_finetune_takes_the_students_weights_and_nothing_else(
    configure, place, other, tmp_path: Path
) -> None:
    """Other stages and another seed are no change of a run that has not begun."""
    folder, held = other
    flags = ("--load", str(folder), "--finetune", "--seed", "77")
    config = configure(tmp_path, *flags)
    assert check_resume(config).refused == []
    run = open_run(config, place)
    assert load_latest(run) is None
    assert run.progress == type(run.progress)()
    assert same(run.student.snapshot(), held[1])
    assert not moments(run.student)
    assert not run.has_discriminator
    stage = begin_stage(run)
    assert stage.name == "warmup"
    run.close()


def test_what_says_how_load_is_read_needs_load(configure, tmp_path: Path) -> None:
    flags = ("--ckpt-step", "3", "--no-load-optim", "--finetune")
    config = configure(tmp_path, *flags)
    problems = list(check_run_directory(config.checkpoint, config.log))
    keys = [problem.split(" ")[0] for problem in problems]
    assert keys == ["checkpoint.ckpt_step", "checkpoint.load_optim", "checkpoint.finetune"]
    assert "write 3 into latest_checkpointed_iteration.txt" in problems[0]
