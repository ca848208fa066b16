"""Recorded rollouts come back as they were, and what does not fit them is named."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_gad.engines.base import SamplingConfig
from megatron_gad.engines.replay import ReplayEngine, write_groups
from megatron_gad.types import Group, Prompt, Rollout

SAMPLING = SamplingConfig(num_samples=2, name="step_0000003_0")
PROMPTS = [Prompt(index, (), "", (1, index + 2), ()) for index in (4, 0, 9)]


def rollouts_of(prompt: Prompt) -> tuple[Rollout, ...]:
    # Numbers that no decimal of a few digits gives back.
    logprobs = (-1 / (3 + prompt.index), -math.pi)
    return (
        Rollout((5, prompt.index), logprobs, "stop", weights_version=7, text="a\u2028b\n"),
        Rollout((6,), (-0.1,), "length", weights_version=7),
    )


@pytest.fixture
def engine(tmp_path: Path) -> ReplayEngine:
    """The engine over a run directory with one recorded sampling."""
    groups = [Group(prompt, rollouts_of(prompt)) for prompt in PROMPTS]
    write_groups(tmp_path / "rollouts", SAMPLING.name, groups)
    return ReplayEngine(tmp_path)


def test_rollouts_come_back_to_the_bit_in_the_order_that_is_asked_for(engine: ReplayEngine) -> None:
    asked = [PROMPTS[2], PROMPTS[0]]
    groups = engine.generate(asked, SAMPLING)
    assert [group.prompt for group in groups] == asked
    expected = [tuple(replace(r, text="") for r in rollouts_of(prompt)) for prompt in asked]
    assert [group.rollouts for group in groups] == expected


def test_a_recorded_response_that_ends_in_a_stop_id_is_a_stop(engine: ReplayEngine) -> None:
    groups = engine.generate(PROMPTS, replace(SAMPLING, stop_ids=(6,)))
    assert [[r.finish_reason for r in group.rollouts] for group in groups] == [["stop"] * 2] * 3


def test_what_does_not_fit_the_recorded_rollouts_is_named(engine: ReplayEngine) -> None:
    with pytest.raises(ValueError, match="no rollouts 'step_0000004_0', it has step_0000003_0 to"):
        engine.generate(PROMPTS, replace(SAMPLING, name="step_0000004_0"))
    with pytest.raises(ValueError, match=r"for the data rows \[0, 4, 9\], none for row 5"):
        engine.generate([Prompt(5, (), "", (1, 7), ())], SAMPLING)
    with pytest.raises(ValueError, match=r"has 2 rollouts for data row 4, and 3 are wanted"):
        engine.generate(PROMPTS, replace(SAMPLING, num_samples=3))
    with pytest.raises(ValueError, match=r"row 4 were sampled for a prompt of 2 tokens"):
        engine.generate([replace(PROMPTS[0], ids=(1, 7))], SAMPLING)
