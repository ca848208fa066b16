"""What a stage takes from the configuration: rates, data orders, how to sample; what it counts."""

from pathlib import Path
from typing import Any

import pytest

from megatron_gad.engines.base import request_seed
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage
from megatron_gad.stages.stage import Stage
from megatron_gad.types import Group
from tests.stage_steps import take_step

SEED = 1234
# One extra step of the discriminator, so that a step samples twice.
GAME = {"prompts_per_step": 4, "group_size": 2, "extra_discriminator_steps": 1, "extra_prompts": 4}


@pytest.fixture
def start(build, tmp_path: Path):
    """Return a function that builds a run at the beginning of its first stage."""

    def start_run(*stages: str, seed: int = SEED, **sections: dict[str, Any]) -> tuple[Run, Stage]:
        flags = ("--stages", *stages, "--seed", str(seed))
        run = build(tmp_path / f"{seed}", *flags, **sections)
        return run, begin_stage(run)

    return start_run


def test_sampling_takes_every_setting_of_the_configuration(start) -> None:
    run, stage = start("adversarial", adversarial=GAME, rollout={"temperature": 0.7})
    asked = []
    generate = run.sampler.engine.generate

    def note(prompts, sampling):
        asked.append(sampling)
        return generate(prompts, sampling)

    run.sampler.engine.generate = note
    take_step(run, stage)
    take_step(run, stage)
    assert [each.num_samples for each in asked] == [2, 1, 2, 1]
    for each in asked:
        assert each.temperature == 0.7
        assert each.max_new_tokens == run.config.data.max_response_tokens
        assert each.stop_ids == run.codec.stop_ids
    # Of every step and sampling its own, from the run's seed.
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert [each.seed for each in asked] == [request_seed(SEED, *each) for each in places]


def test_the_orders_of_a_stage_follow_from_seed_and_stage(start) -> None:
    def orders(run: Run) -> list[list[int]]:
        run.data.start_stage(run.progress.stage_index)
        return [run.data.order.take(64), run.data.extra_order.take(64)]

    run, _ = start("warmup", "adversarial")
    first, again = orders(run), orders(run)
    assert first == again
    run.progress.stage_index = 1
    second = orders(run)
    other_seed = orders(start("warmup", "adversarial", seed=SEED + 1)[0])
    every = [tuple(rows) for pair in (first, second, other_seed) for rows in pair]
    assert len(set(every)) == 6
    assert all(sorted(rows) == list(range(64)) for rows in every)


def test_a_stage_without_rates_takes_those_of_the_models(start) -> None:
    run, stage = start(
        "adversarial",
        adversarial={**GAME, "student_lr": None, "discriminator_lr": None},
        student={"lr": 1.25e-3},
        discriminator={"lr": 2.5e-3},
    )
    metrics = take_step(run, stage).metrics
    assert (metrics["student/lr"], metrics["discriminator/lr"]) == (1.25e-3, 2.5e-3)


def test_a_stage_begins_without_the_numbers_of_the_one_before(start) -> None:
    run, stage = start("warmup")
    stage.recent_losses = [0.1] * 20
    assert begin_stage(run).state(run) == {"recent_losses": []}


def test_the_trained_tokens_are_those_of_every_pass(start) -> None:
    compute = {"max_tokens_per_microbatch": 10_000}
    run, stage = start("adversarial", adversarial={**GAME, "student_updates": 2}, compute=compute)
    sampled: list[list[Group]] = []
    sample = run.sampler.sample

    def keep(requests):
        sampled.extend(sample(requests))
        return sampled

    run.sampler.sample = keep
    found = take_step(run, stage).metrics["tokens/trained"]
    groups, extra = sampled
    # Both read the prompt of a group once.
    student = sum(len(g.prompt.ids) + sum(len(r.ids) for r in g.rollouts) for g in groups)
    discriminator = sum(
        len(group.prompt.ids)
        + sum(map(len, {group.prompt.teacher_ids, *(r.text_ids for r in group.rollouts)}))
        for group in (*groups, *extra)
    )
    assert found == 2 * student + discriminator


@pytest.mark.parametrize("stage", ["warmup", "adversarial"])
def test_what_samples_show_of_tokens_changes_no_number_of_a_step(start, stage: str) -> None:
    sections = {"warmup": {"prompts_per_step": 8, "group_size": 2}, "adversarial": GAME}
    numbers, shown = [], []
    for interval in (0, 2):
        log = {"samples_interval": interval}
        run, begun = start(stage, log=log, discriminator={"score": "sum"}, **sections)
        results = [take_step(run, begun) for _ in range(4)]
        for result in results:
            del result.metrics["engine/tokens_per_s"]  # which depends on the clock
        numbers.append([result.metrics for result in results])
        shown.append(["teacher_tokens" in result.samples[0] for result in results])
        run.close()
    assert numbers[0] == numbers[1]
    # In the steps that write samples alone: the first of a stage, and every other one.
    assert shown == [[False] * 4, [True, True, False, True]]
