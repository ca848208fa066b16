"""Numbers that are not finite: which model skips its step, what is told, and when a run stops."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.errors import RunStoppedError
from megatron_gad.resume import load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.stop_request import StopRequest
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.stage import Stage
from megatron_gad.train import _run_stage
from megatron_gad.training.checkpoint_files import whole_iterations
from megatron_gad.training.trainer import Trainer
from tests.stage_steps import health_of, take_step


@pytest.fixture
def build(build, tmp_path: Path):
    """Return a function that builds a run before its first stage."""
    return lambda stage, **sections: build(tmp_path, "--stages", stage, **sections)


@pytest.fixture
def start(build):
    """Return a function that builds a run inside its first stage."""

    def start_run(stage: str, **sections: dict[str, Any]) -> tuple[Run, Stage]:
        run = build(stage, **sections)
        return run, begin_stage(run)

    return start_run


def break_head(discriminator: Trainer) -> None:
    """Make every score NaN."""
    (head,) = [
        parameter
        for chunk in discriminator.modules_to_write()
        for name, parameter in chunk.named_parameters()
        if "output_layer" in name
    ]
    with torch.no_grad():
        head.view(-1)[0] = math.nan


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(map(torch.equal, first, second))


NEVER = {"max_skipped_steps": 0}
FROZEN = {"discriminator_interval": 0, "extra_discriminator_steps": 0}


@pytest.mark.parametrize(
    ("options", "skipped_by_discriminator"),
    [
        (FROZEN, None),
        ({"discriminator_interval": 2, "extra_discriminator_steps": 0}, None),
        ({"discriminator_interval": 1, "extra_discriminator_steps": 0}, 1.0),
        ({"discriminator_interval": 1, "extra_discriminator_steps": 2}, 3.0),
        ({"discriminator_interval": 1, "student_updates": 3}, 3.0),
    ],
    ids=["frozen", "off its turn", "learns", "extra steps", "three updates"],
)
def test_no_score_that_is_not_finite_reaches_the_student(
    start, options, skipped_by_discriminator
) -> None:
    run, stage = start("adversarial", adversarial=options, watchdog=NEVER)
    take_step(run, stage)
    break_head(run.discriminator)
    student, version = run.student.snapshot(), run.progress.weights_version
    steps = [trainer.schedule.num_steps for trainer in (run.student, run.discriminator)]
    metrics = take_step(run, stage).metrics
    assert metrics["student/skipped_steps"] == options.get("student_updates", 1)
    assert metrics.get("discriminator/skipped_steps") == skipped_by_discriminator
    assert same(student, run.student.snapshot())
    assert run.progress.weights_version == version
    assert steps == [trainer.schedule.num_steps for trainer in (run.student, run.discriminator)]
    assert math.isnan(metrics["reward/mean"])


def test_after_a_skipped_step_the_run_goes_on(start) -> None:
    run, stage = start("adversarial")
    assert take_step(run, stage).metrics["student/skipped_steps"] == 0.0
    whole = run.discriminator.snapshot()
    break_head(run.discriminator)
    stage.config = dataclasses.replace(
        run.config, adversarial=dataclasses.replace(run.config.adversarial, **FROZEN)
    )
    for _ in range(3):  # as many as would stop the run in a row
        before = run.student.snapshot()
        assert take_step(run, stage).metrics["student/skipped_steps"] == 1.0
        assert same(before, run.student.snapshot())
        run.discriminator.restore(whole)
        assert take_step(run, stage).metrics["student/skipped_steps"] == 0.0
        assert not same(before, run.student.snapshot())
        break_head(run.discriminator)


def test_a_run_stops_after_skipping_in_a_row_and_names_rows_and_checkpoint(start, caplog) -> None:
    run, stage = start("adversarial", adversarial=FROZEN)
    save(run, stage)
    break_head(run.discriminator)
    before = run.student.snapshot()
    for _ in range(2):
        take_step(run, stage)
    third = run.data.prompts, dataclasses.replace(run.progress), run.data.order.state_dict()
    with pytest.raises(RunStoppedError) as stopped:
        take_step(run, stage)
    run.data.order.load_state_dict(third[2])
    rows = ", ".join(str(prompt.index) for prompt in sorted_by_row(run.data.take(4)))
    for words in (
        "the student skipped 3 steps in a row (watchdog.max_skipped_steps = 3)",
        f"not finite at the rows {rows} of data.path",
        "The weights of the discriminator are not finite already",
        str(run.folder / "iter_0000000"),
    ):
        assert words in str(stopped.value)
    assert same(before, run.student.snapshot())
    assert "the student's step is skipped (2 in a row)" in caplog.text


def test_scoring_between_skipped_steps_is_no_step_that_was_taken(start) -> None:
    """The discriminator learns in every second step and only scores in the others."""
    options = {"discriminator_interval": 2, "extra_discriminator_steps": 0}
    run, stage = start("adversarial", adversarial=options, watchdog=NEVER)
    break_head(run.discriminator)
    for _ in range(4):
        take_step(run, stage)
    assert run.skips_in_a_row["discriminator"] == 2


def sorted_by_row(prompts):
    return sorted(prompts, key=lambda prompt: prompt.index)


def test_one_bad_row_is_named_and_a_resumed_run_skips_it_again(
    build, start, assets: Path, tmp_path: Path
) -> None:
    """A token that the student cannot read, and that one row of every epoch has."""
    lines = (assets / "train.jsonl").read_text().splitlines(True)
    plain = [line for line in lines if ">" not in line]
    odd = next(line for line in lines if ">" in line)
    (tmp_path / "odd.jsonl").write_text("".join([*plain[:5], odd, *plain[5:7]]))
    sections = {"data": {"path": str(tmp_path / "odd.jsonl")}}
    run, stage = start("seqkd", watchdog={"max_skipped_steps": 1}, **sections)
    tokens = [{*prompt.ids, *prompt.teacher_ids} for prompt in run.data.prompts]
    token = max(tokens[5] - set().union(*tokens[:5], *tokens[6:]))
    assert take_step(run, stage).metrics["student/skipped_steps"] == 0.0
    save(run, stage)
    break_embedding(run.student, token)
    with pytest.raises(RunStoppedError, match=r"not finite at the rows 5 of data\.path"):
        take_step(run, stage)
    again = build("seqkd", watchdog={"max_skipped_steps": 2}, **sections)
    resumed = load_latest(again)
    assert resumed is not None
    break_embedding(again.student, token)
    version = again.progress.weights_version
    assert take_step(again, resumed).metrics["student/skipped_steps"] == 1.0
    assert again.progress.weights_version == version


def break_embedding(student: Trainer, token: int) -> None:
    for chunk in student.modules_to_write():
        for name, parameter in chunk.named_parameters():
            if "word_embeddings" in name:
                with torch.no_grad():
                    parameter[token] = math.inf


def test_weights_too_large_to_compute_with_stop_the_run_and_say_so(start) -> None:
    run, stage = start("seqkd", seqkd={"lr": 1e30}, optimizer={"clip_grad": 0.0})
    words = (
        r"student skipped 3 steps .* All weights are finite; there is no checkpoint yet, "
        r".* begins anew without one"
    )
    with pytest.raises(RunStoppedError, match=words):
        for _ in range(5):
            take_step(run, stage)


def test_no_checkpoint_is_written_while_steps_are_skipped_and_a_usable_one_is_named(start) -> None:
    """The fourth step's update leaves weights of which each is finite, and no logit is."""
    run, stage = start("seqkd", watchdog={"max_skipped_steps": 2}, **checkpoint_every_step())
    learn = stage.step

    def step(run: Run):
        result = learn(run)
        if run.progress.iteration == 3:
            with torch.no_grad():
                for parameter in run.student.modules_to_write()[0].parameters():
                    parameter.mul_(1e15)
        return result

    stage.step = step
    with pytest.raises(RunStoppedError) as stopped:
        _run_stage(run, stage, StopRequest(), health_of(run))
    assert run.progress.iteration == 5
    assert whole_iterations(run.folder) == [3, 4]
    newest, usable = (run.folder / f"iter_000000{number}" for number in (4, 3))
    for words in (
        f"All weights are finite; the newest checkpoint is {newest}, whose weights were found fin",
        f"If it fails again, go back to {usable}, with whose weights a later step was taken",
    ):
        assert words in str(stopped.value)


def checkpoint_every_step() -> dict[str, Any]:
    return {"checkpoint": {"save_interval": 1, "keep_last": 2}, "seqkd": {"steps": 20}}


def test_a_loss_that_is_not_finite_is_no_part_of_the_running_loss(start) -> None:
    run, stage = start("warmup", watchdog=NEVER)
    take_step(run, stage)
    break_head(run.discriminator)
    metrics = take_step(run, stage).metrics
    assert math.isnan(metrics["discriminator/loss"])
    assert metrics["discriminator/skipped_steps"] == 1.0
    assert len(stage.recent_losses) == 1
