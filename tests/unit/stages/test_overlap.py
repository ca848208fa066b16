"""Sampling while training: each step trains on rollouts of the weights before the last update."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from examples.tiny.prepare import prepare
from megatron_gad.config.command_line import load_config
from megatron_gad.config.run import RunConfig
from megatron_gad.data.order import PromptOrder
from megatron_gad.engines.base import SamplingConfig, request_seed
from megatron_gad.engines.embedded import EmbeddedEngine
from megatron_gad.engines.replay import write_groups
from megatron_gad.resume import load_latest, save
from megatron_gad.runtime.run import Run
from megatron_gad.stages.begin import begin_stage, open_run
from megatron_gad.stages.stage import Stage
from megatron_gad.training import parallel
from tests.stage_steps import take_step

NUM_STEPS = 4
COMPARED = (
    *("student/loss", "student/grad_norm", "student/kl", "student/entropy", "reward/mean"),
    *("discriminator/loss", "discriminator/grad_norm", "response/length_mean", "data/epoch"),
)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """The tiny example's adversarial stage with overlap, on its own."""
    folder = tmp_path_factory.mktemp("assets")
    prepare(folder)
    flags = ["examples/tiny/run.toml", "--stages", "adversarial", "--no-tensorboard"]
    flags += ["--data.path", str(folder / "train.jsonl"), "--data.eval-path", ""]
    flags += ["--student.path", str(folder / "student"), "--adversarial.steps", str(NUM_STEPS)]
    flags += ["--gad.tis-cap", "2", "--adversarial.overlap"]
    return load_config(flags)[0]


@pytest.fixture(scope="module")
def place(config: RunConfig) -> Iterator[parallel.Parallel]:
    """A world of one."""
    yield parallel.initialize(config.parallel, config.seed)
    parallel.shut_down()


def start(config: RunConfig, place: parallel.Parallel, save: Path) -> tuple[Run, Stage]:
    """Build a run that stands before its next step."""
    checkpoint = dataclasses.replace(config.checkpoint, save=str(save))
    run = open_run(dataclasses.replace(config, checkpoint=checkpoint), place)
    return run, load_latest(run) or begin_stage(run)


def step(run: Run, stage: Stage) -> dict[str, float]:
    """Take a step; return its metrics with the epoch, as ``train`` does."""
    return {**take_step(run, stage).metrics, "data/epoch": run.data.epoch}


@pytest.fixture(scope="module")
def overlapped(
    config: RunConfig, place: parallel.Parallel, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, float]]:
    """The metrics of every step of a run that samples while it trains."""
    run, stage = start(config, place, tmp_path_factory.mktemp("overlapped"))
    return [step(run, stage) for _ in range(NUM_STEPS)]


def test_rollouts_are_one_update_old_from_the_second_step_on(overlapped) -> None:
    assert [m["engine/weights_lag"] for m in overlapped] == [0.0, 1.0, 1.0, 1.0]
    # After each swap engine and trainer agree, while older rollouts are as far off as the update.
    assert max(m["engine/logprob_gap_max"] for m in overlapped[:-1]) < 1e-5
    assert min(m["engine/off_policy_gap_max"] for m in overlapped[1:]) > 1e-3


def test_what_the_engine_did_is_reported_in_every_step(overlapped, config: RunConfig) -> None:
    for metrics in overlapped:
        assert metrics["engine/tokens_per_s"] > 0
        assert metrics["engine/running_rows"] >= 1
        assert metrics["engine/waiting_rows"] == 0
        # All responses to a prompt but its first have it from the cache.
        assert 0 < metrics["engine/cache_hit_share"] <= 1 - 1 / config.adversarial.group_size


def test_it_equals_a_schedule_by_hand_that_samples_one_step_early(
    config: RunConfig, place: parallel.Parallel, tmp_path: Path, overlapped
) -> None:
    """A run without overlap is given rollouts that were sampled, by hand, one step early."""
    game = dataclasses.replace(config.adversarial, overlap=False)
    rollout = dataclasses.replace(
        config.rollout, engine="replay", replay=str(tmp_path), logprob_gap_bound=0.0
    )
    by_hand_config = dataclasses.replace(config, adversarial=game, rollout=rollout)
    run, stage = start(by_hand_config, place, tmp_path)
    engine = EmbeddedEngine(config.student.path, "cpu", torch.float32)
    order = PromptOrder(len(run.data.prompts), config.seed)
    extra_order = PromptOrder(len(run.data.prompts), config.seed + 500)

    def sample(number: int) -> None:
        """Record what step ``number`` (from 0) trains on, from the weights of this moment."""
        engine.load_weights(run.student.hf_weights(), version=number)
        rows = order.take(game.prompts_per_step)
        extra_rows = extra_order.take(2 * game.extra_prompts, besides=rows)
        for draw, (drawn, size) in enumerate([(rows, game.group_size), (extra_rows, 1)]):
            sampling = SamplingConfig(
                num_samples=size,
                temperature=config.rollout.temperature,
                max_new_tokens=config.data.max_response_tokens,
                stop_ids=run.codec.stop_ids,
                seed=request_seed(config.seed, number, draw),
            )
            groups = engine.generate([run.data.prompts[row] for row in drawn], sampling)
            write_groups(tmp_path, f"step_{number + 1:07d}_{draw}", groups)

    sample(0)
    by_hand = []
    for number in range(NUM_STEPS):
        sample(number + 1)
        by_hand.append(step(run, stage))
    for ours, theirs in zip(overlapped, by_hand, strict=True):
        assert {k: ours[k] for k in COMPARED} == {k: theirs[k] for k in COMPARED}


def test_a_checkpoint_holds_the_rollouts_that_wait(
    config: RunConfig, place: parallel.Parallel, tmp_path: Path, overlapped
) -> None:
    run, stage = start(config, place, tmp_path)
    for _ in range(2):
        step(run, stage)
    save(run, stage)
    resumed, its_stage = start(config, place, tmp_path)
    assert resumed.data.ahead is not None
    for expected in overlapped[2:]:
        ours = step(resumed, its_stage)
        assert {k: ours[k] for k in COMPARED} == {k: expected[k] for k in COMPARED}

    # With other settings the same prompts are sampled anew.
    larger = dataclasses.replace(config.adversarial, group_size=6)
    accepting = dataclasses.replace(config.checkpoint, override_config=("adversarial.group_size",))
    changed = dataclasses.replace(config, adversarial=larger, checkpoint=accepting)
    again, its_stage = start(changed, place, tmp_path)
    assert again.data.ahead is None
    assert again.data.epoch == overlapped[1]["data/epoch"]
    assert step(again, its_stage)["engine/weights_lag"] == 0.0
