"""Options of the adversarial stage, on one rank, where the oracle does not reach."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.stage import Stage
from megatron_gad.training import parallel
from tests.stage_steps import take_step


@pytest.fixture(scope="module")
def place() -> Iterator[parallel.Parallel]:
    """A world of one."""
    config = RunConfig()
    yield parallel.initialize(config.parallel, config.seed)
    parallel.shut_down()


@pytest.fixture
def start(assets: Path, place: parallel.Parallel, tmp_path: Path):
    """Return a function that builds a run inside the adversarial stage."""

    def build(**sections: dict[str, Any]) -> tuple[Run, Stage]:
        flags = ["examples/tiny/run.toml", "--stages", "adversarial", "--save", str(tmp_path)]
        flags += ["--data.path", str(assets / "train.jsonl"), "--no-tensorboard"]
        flags += ["--data.eval-path", "", "--student.path", str(assets / "student")]
        config, _ = load_config(flags)
        changed = {
            name: dataclasses.replace(getattr(config, name), **values)
            for name, values in sections.items()
        }
        run = open_run(dataclasses.replace(config, **changed), place)
        return run, begin_stage(run)

    return build


def test_a_step_whose_responses_were_all_cut_leaves_the_student_as_it_is(start) -> None:
    run, stage = start(
        data={"max_response_tokens": 1},
        gad={"mask_truncated": True},
        student={"weight_decay": 0.0},
        adversarial={"prompts_per_step": 2, "group_size": 2},
    )
    before = run.student.snapshot()
    metrics = take_step(run, stage).metrics
    assert metrics["response/truncated_share"] == 1.0
    assert (metrics["student/loss"], metrics["student/grad_norm"]) == (0.0, 0.0)
    assert metrics["student/skipped_steps"] == 0.0
    assert all(map(torch.equal, before, run.student.snapshot()))
    assert metrics["discriminator/grad_norm"] > 0
