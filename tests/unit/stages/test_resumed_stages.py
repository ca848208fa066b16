"""The stages without a game go on from a checkpoint bit for bit; the others: tests/e2e."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megatron_gad.checks.resume import check_resume
from megatron_gad.config.rewards import RewardConfig
from megatron_gad.config.run import RunConfig
from megatron_gad.resume import load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.stage import Stage
from tests.stage_steps import take_step
from tests.tiny_training import training_state

RATE = ("--seed", "3", "--rollout.temperature", "0.6")
FLAGS = {
    "preference": ("--preference.prompts-per-step", "4", "--preference.student-lr", "0.01"),
    "white_box": ("--white-box.prompts-per-step", "4", "--white-box.student-lr", "0.01"),
    "best_of_n": (
        *("--best-of-n.prompts-per-step", "4", "--best-of-n.group-size", "4"),
        *("--best-of-n.keep", "2", "--best-of-n.student-lr", "0.01"),
    ),
}


DOCUMENTED = (Path(__file__).parents[3] / "docs/metrics.md").read_text()


def take_steps(run: Run, stage: Stage, count: int) -> list[float]:
    """The student's losses of some steps, every number of which is documented."""
    found = [take_step(run, stage).metrics for _ in range(count)]
    names = {name for metrics in found for name in metrics}
    assert not [name for name in sorted(names) if f"| `{name}` |" not in DOCUMENTED]
    return [metrics["student/loss"] for metrics in found]


@pytest.mark.parametrize("name", FLAGS)
def test_a_stage_goes_on_bit_for_bit(
    build: Callable[..., Run], assets: Path, tmp_path: Path, name: str
) -> None:
    flags = ["--stages", name, "--white-box.teacher", str(assets / "student"), *RATE, *FLAGS[name]]
    whole = build(tmp_path / "whole", *flags)
    expected = take_steps(whole, begin_stage(whole), 4)

    parted = build(tmp_path / "parted", *flags)
    stage = begin_stage(parted)
    take_steps(parted, stage, 2)
    save(parted, stage)
    parted.close()
    again = build(tmp_path / "parted", *flags)
    resumed = load_latest(again)
    assert resumed is not None
    assert take_steps(again, resumed, 2) == expected[2:]
    states = zip(training_state(again.student), training_state(whole.student), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in states)
    assert len(set(expected)) == 4
    whole.close()
    again.close()


def test_rewards_that_rank_may_not_change_inside_the_stage(
    build: Callable[..., Run], configure: Callable[..., RunConfig], tmp_path: Path
) -> None:
    flags = ["--stages", "best_of_n", *RATE, *FLAGS["best_of_n"]]
    run = build(tmp_path, *flags)
    stage = begin_stage(run)
    take_steps(run, stage, 1)
    save(run, stage)
    run.close()
    config = configure(tmp_path, *flags)
    assert check_resume(config).refused == []
    other = replace(config, rewards=(RewardConfig("odd", "tests.oracle.given:odd"),))
    (problem,) = check_resume(other).refused
    assert problem.startswith("rewards = [{'name': 'odd'")
