"""Options of the adversarial stage, on one rank, where the oracle does not reach."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.config.rewards import RewardConfig
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.stage import Stage
from megatron_gad.training import parallel
from tests.stage_steps import take_step


@pytest.fixture
def start(configure, place: parallel.Parallel, tmp_path: Path):
    """Return a function that builds a run inside the adversarial stage."""

    def start_run(
        rewards: tuple[RewardConfig, ...] = (), **sections: dict[str, Any]
    ) -> tuple[Run, Stage]:
        config = configure(tmp_path, "--stages", "adversarial", **sections)
        run = open_run(dataclasses.replace(config, rewards=rewards), place)
        return run, begin_stage(run)

    return start_run


def test_a_step_whose_responses_were_all_cut_leaves_the_student_as_it_is(start) -> None:
    run, stage = start(
        data={"max_response_tokens": 1},
        gad={"mask_truncated": True},
        optimizer={"weight_decay": 0.0},
        adversarial={"prompts_per_step": 2, "group_size": 2},
    )
    before = run.student.snapshot()
    metrics = take_step(run, stage).metrics
    assert metrics["response/truncated_share"] == 1.0
    assert (metrics["student/loss"], metrics["student/grad_norm"]) == (0.0, 0.0)
    assert metrics["student/skipped_steps"] == 0.0
    assert all(map(torch.equal, before, run.student.snapshot()))
    assert metrics["discriminator/grad_norm"] > 0


# It fails for row 2, and has a value that tells the others apart.
PICKY = RewardConfig("picky", "tests.unit.engines.rewards.given:fails_for_row_two")
ONE_STEP: dict[str, dict[str, Any]] = {
    "adversarial": {"prompts_per_step": 4, "group_size": 2},
    "data": {"shuffle": False},
}


def test_a_reward_that_fails_stops_the_run_with_row_and_traceback(start) -> None:
    run, stage = start(rewards=(dataclasses.replace(PICKY, on_error="stop"),), **ONE_STEP)
    before = run.student.snapshot()
    with pytest.raises(RunStoppedError) as stopped:
        take_step(run, stage)
    run.close()
    message = str(stopped.value)
    assert message.startswith("the reward 'picky' failed for a response to row 2 of data.path: ")
    assert "ZeroDivisionError" in message
    assert "on_error = 'zero' or 'drop'" in message
    assert all(map(torch.equal, before, run.student.snapshot()))


def test_a_reward_that_fails_counts_zero_if_told_so(start) -> None:
    run, stage = start(rewards=(dataclasses.replace(PICKY, on_error="zero"),), **ONE_STEP)
    result = take_step(run, stage)
    run.close()
    # 1 / (row - 2) of rows 0, 1 and 3; two of eight responses failed.
    assert result.metrics["reward/picky"] == pytest.approx((-0.5 - 1 + 1) / 3)
    assert result.metrics["reward/picky_failed"] == 0.25
    scores = [r["score"] for row in result.samples for r in row["rollouts"]]
    expected = sum(scores) / 8 + (-0.5 - 1 + 0 + 1) / 4
    assert result.metrics["reward/mean"] == pytest.approx(expected, rel=1e-5)
    assert result.metrics["reward/discriminator"] == pytest.approx(sum(scores) / 8, rel=1e-5)
    assert math.isnan(result.samples[2]["rollouts"][0]["rewards"]["picky"])


def test_a_group_whose_reward_fails_is_dropped_if_told_so(start) -> None:
    run, stage = start(rewards=(dataclasses.replace(PICKY, on_error="drop"),), **ONE_STEP)
    result = take_step(run, stage)
    run.close()
    advantages = [[r["advantage"] for r in row["rollouts"]] for row in result.samples]
    assert [any(each) for each in advantages] == [True, True, False, True]
