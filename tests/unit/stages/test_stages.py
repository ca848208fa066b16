"""What each stage and each of its options does to the two models, on one rank."""

import dataclasses
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.run import RunConfig
from megatron_gad.config.stages import AdversarialConfig, WarmupConfig
from megatron_gad.data.batching import teacher_batch
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.runtime.run_folder import LOCK_FILE
from megatron_gad.stages.begin import begin_stage, find_stage, reason_to_end
from megatron_gad.stages.stage import Stage
from tests.stage_steps import take_step


@pytest.fixture
def start(build, assets: Path, tmp_path: Path):
    """Return a function that builds a run inside its first stage, with held-out rows."""

    def start_run(stage: str, **sections: dict[str, Any]) -> tuple[Run, Stage]:
        held_out = ("--data.eval-path", str(assets / "eval.jsonl"))
        run = build(tmp_path, "--stages", stage, *held_out, **sections)
        return run, begin_stage(run)

    return start_run


def record_prompts(run: Run) -> list[list[int]]:
    """Return a list that gets the prompts of every sampling, by their rows."""
    sampled: list[list[int]] = []
    engine: Any = run.sampler.engine
    generate = engine.generate

    def record(prompts, sampling):
        sampled.append([prompt.index for prompt in prompts])
        return generate(prompts, sampling)

    engine.generate = record
    return sampled


def end_after_step(run: Run, stage: Stage) -> str:
    """Take a step; return why the stage ends after it, if it does."""
    take_step(run, stage)
    return reason_to_end(run, stage)


def are_equal(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_seqkd_learns_and_touches_no_engine(start) -> None:
    run, stage = start("seqkd")
    losses = [take_step(run, stage).metrics["student/loss"] for _ in range(3)]
    assert losses[2] < losses[0] - 0.2
    assert run.sampler.engine is None
    assert not run.has_discriminator


def test_the_discriminator_starts_from_the_student(start) -> None:
    run, _ = start("warmup")
    student = dict(run.student.hf_weights())
    discriminator = dict(run.discriminator.hf_weights())
    assert discriminator.pop("score.weight").shape == (1, 32)
    assert discriminator.keys() == {name for name in student if name != "lm_head.weight"}
    assert all(torch.equal(discriminator[name], student[name]) for name in discriminator)


def test_warmup_teaches_the_discriminator_alone_first(start) -> None:
    run, stage = start("warmup", warmup={"discriminator_only_steps": 1})
    before = run.student.snapshot()
    first = take_step(run, stage)
    assert are_equal(before, run.student.snapshot())
    assert "student/loss" not in first.metrics
    second = take_step(run, stage)
    assert not are_equal(before, run.student.snapshot())
    assert second.metrics["student/loss"] > 0


def test_warmup_can_leave_the_student_alone(start) -> None:
    run, stage = start("warmup", warmup={"train_student": False, "discriminator_only_steps": 0})
    before = run.student.snapshot()
    assert "swap/bytes" in take_step(run, stage).metrics
    assert "swap/bytes" not in take_step(run, stage).metrics, "unchanged weights"
    assert are_equal(before, run.student.snapshot())


def test_a_frozen_discriminator_scores_and_never_learns(start) -> None:
    never = {"discriminator_interval": 0, "extra_discriminator_steps": 0}
    run, stage = start("adversarial", adversarial=never)
    before = run.discriminator.snapshot()
    metrics = take_step(run, stage).metrics
    assert are_equal(before, run.discriminator.snapshot())
    assert metrics["reward/std"] > 0
    assert "discriminator/grad_norm" not in metrics
    assert metrics["discriminator/loss"] > 0


def test_extra_steps_and_the_interval_set_how_often_the_discriminator_learns(start) -> None:
    options = {"extra_discriminator_steps": 3, "extra_prompts": 8, "discriminator_interval": 2}
    run, stage = start("adversarial", adversarial=options)
    counts = []
    for _ in range(3):
        take_step(run, stage)
        counts.append(run.discriminator.schedule.num_steps)
    assert counts == [1 + 3, 1 + 3 + 3, 2 * (1 + 3) + 3]


def test_no_kl_pays_no_reference(start) -> None:
    run, stage = start("adversarial", gad={"kl_coef": 0.0})
    assert stage.reference is None
    assert "student/kl" not in take_step(run, stage).metrics


def test_kl_to_the_stage_start_begins_at_zero_and_grows(start) -> None:
    run, stage = start("adversarial")
    kl = [take_step(run, stage).metrics["student/kl"] for _ in range(3)]
    assert kl[0] == 0.0
    assert 0 < kl[1] < kl[2]


def test_kl_in_the_reward_lowers_it_by_the_summed_estimate(start) -> None:
    # The KL is not zero once the student has moved.
    options = {"kl_in": "reward", "kl_coef": 10.0, "kl_estimator": "k3"}
    run, stage = start("adversarial", gad=options)
    take_step(run, stage)
    metrics = take_step(run, stage).metrics
    mean_score = metrics["discriminator/student_score"]
    assert metrics["reward/mean"] < mean_score
    # k3 is positive; the mean over responses of its sum is the mean over tokens times the length.
    expected = 10.0 * metrics["student/kl"] * metrics["response/length_mean"]
    assert mean_score - metrics["reward/mean"] == pytest.approx(expected, rel=1e-4)


def test_rewards_are_the_raw_scores_from_before_the_update(start) -> None:
    run, stage = start("adversarial")
    metrics = take_step(run, stage).metrics
    assert metrics["reward/mean"] == pytest.approx(metrics["discriminator/student_score"], rel=1e-6)


def test_several_updates_on_one_batch_move_the_ratio(start) -> None:
    run, stage = start(
        "adversarial", adversarial={"student_updates": 3}, optimizer={"clip_grad": 1.0}
    )
    version = run.progress.weights_version
    metrics = take_step(run, stage).metrics
    assert run.progress.weights_version == version + 3
    assert run.student.schedule.num_steps == 3
    assert metrics["student/ratio_mean"] != 1.0


def test_one_update_needs_no_old_logprobs(start) -> None:
    assert take_step(*start("adversarial")).metrics["student/ratio_mean"] == 1.0


def test_an_engine_with_another_weight_stops_the_run_and_names_it(start) -> None:
    run, stage = start("adversarial")
    take_step(run, stage)
    load = run.sampler.engine.load_weights

    def load_and_damage(weights, version: int) -> None:
        load(weights, version)
        held = dict(run.sampler.engine.held_weights())
        held["model.layers.1.mlp.down_proj.weight"].data[3, 5] += 0.5

    run.sampler.engine.load_weights = load_and_damage
    with pytest.raises(RunStoppedError, match=r"model\.layers\.1\.mlp\.down_proj\.weight .* 0\.5"):
        take_step(run, stage)


def test_extra_steps_have_prompts_of_their_own(start) -> None:
    run, stage = start(
        "adversarial", adversarial={"extra_discriminator_steps": 2, "extra_prompts": 4}
    )
    before = run.data.extra_order.epoch
    sampled = record_prompts(run)
    take_step(run, stage)
    assert run.data.extra_order.epoch - before == pytest.approx(2 * 4 / 64)
    assert run.data.order.epoch == pytest.approx(4 / 64)
    assert [len(rows) for rows in sampled] == [4, 8]
    assert len({row for rows in sampled for row in rows}) == 12


def test_no_step_has_a_prompt_twice_and_none_that_is_an_extra_one(start) -> None:
    """48 + 16 prompts of 64 in a step, so that the epochs end inside steps."""
    sizes = {"prompts_per_step": 48, "group_size": 2}
    extra = {"extra_discriminator_steps": 2, "extra_prompts": 8}
    run, stage = start("adversarial", adversarial=sizes | extra)
    sampled = record_prompts(run)
    for _ in range(6):
        take_step(run, stage)
    for rows, extra_rows in zip(sampled[::2], sampled[1::2], strict=True):
        assert sorted([*rows, *extra_rows]) == list(range(64))
    visits = Counter(row for rows in sampled[::2] for row in rows)
    assert {visits[row] for row in range(64)} == {4, 5}


def test_more_extra_prompts_than_the_data_has_are_refused(start) -> None:
    extra = {"extra_discriminator_steps": 3, "extra_prompts": 22}
    with pytest.raises(ValueError, match=r"extra_prompts = 22 .*_steps = 3 take 66 .* 64 usable"):
        start("adversarial", adversarial=extra)


def test_a_step_larger_than_the_data_is_refused(start) -> None:
    with pytest.raises(ValueError, match=r"warmup\.prompts_per_step = 65, but .* 64 usable rows"):
        start("warmup", warmup={"prompts_per_step": 65})
    with pytest.raises(ValueError, match=r"seqkd\.batch_size = 65, but .* make it at most 64"):
        start("seqkd", seqkd={"batch_size": 65})


def test_a_run_lets_go_of_its_folder_if_its_engine_does_not_end(start) -> None:
    run, _ = start("warmup")
    engine: Any = run.sampler.engine

    def fail() -> None:
        raise OSError("it does not end")

    engine.close = fail
    with pytest.raises(OSError, match="it does not end"):
        run.close()
    # The lock of a process keeps others out alone.
    take = "import fcntl, sys; fcntl.lockf(open(sys.argv[1], 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    subprocess.run([sys.executable, "-c", take, str(run.folder / LOCK_FILE)], check=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (WarmupConfig(discriminator_only_steps=4), (6, 10)),
        (WarmupConfig(train_student=False), (0, 10)),
        (AdversarialConfig(extra_discriminator_steps=3), (10, 40)),
        (AdversarialConfig(discriminator_interval=3, student_updates=2), (20, 4)),
        (AdversarialConfig(discriminator_interval=0), (10, 0)),
    ],
)
def test_schedules_are_as_long_as_the_models_learn(settings, expected) -> None:
    name = "warmup" if isinstance(settings, WarmupConfig) else "adversarial"
    stage = find_stage(name)(dataclasses.replace(RunConfig(), **{name: settings}))
    learning = (stage.student_learning(10), stage.discriminator_learning(10))
    assert tuple(each.num_steps for each in learning) == expected


def test_seqkd_hands_over_its_best_weights(start) -> None:
    run, stage = start("seqkd", seqkd={"keep_best": True, "lr": 1e-2, "steps": 40})
    seen: list[float] = []
    reason = ""
    while not reason:
        if run.progress.step_in_stage == 24:
            run.student.begin_stage(lr=3.0, total_steps=16)  # ruins the weights
        metrics = take_step(run, stage).metrics
        reason = reason_to_end(run, stage)
        seen += [metrics["student/eval_loss"]] if "student/eval_loss" in metrics else []
    assert len(seen) == 5
    assert seen[-1] > min(seen) + 0.5
    stage.finish(run)
    batch = teacher_batch(run.data.eval_prompts)
    loss = run.student.evaluate(batch, supervised_loss).metrics["loss"]
    assert loss == pytest.approx(min(seen), rel=1e-6)


def test_patience_ends_seqkd(start) -> None:
    run, stage = start("seqkd", seqkd={"patience": 2, "lr": 1e-12, "steps": 1000})
    steps = 1
    while not (reason := end_after_step(run, stage)):
        steps += 1
    assert "has not fallen below" in reason
    # The first of an evaluation for each pass over 64 rows stays the best.
    assert steps == (1 + 2) * 64 // 8


def test_warmup_ends_when_the_discriminator_separates(start) -> None:
    run, stage = start("warmup", warmup={"steps": 400, "stop_below": 0.6, "train_student": False})
    steps = 1
    while not (reason := end_after_step(run, stage)):
        steps += 1
    assert "below 0.6" in reason
    assert 20 <= steps < 400
    assert sum(stage.recent_losses) / 20 < 0.6


def test_a_warmup_that_failed_is_refused_with_the_remedy(start) -> None:
    run, stage = start("warmup", warmup={"steps": 1, "stop_below": 0.01})
    assert end_after_step(run, stage)
    assert "chance (0.693) than to warmup.stop_below = 0.01" in stage.refusal()
    assert "warmup.steps" in stage.refusal()
    # Halfway between 0.1 and ln 2 is 0.3966.
    stage.config = dataclasses.replace(run.config, warmup=WarmupConfig(stop_below=0.1))
    for loss, is_refused in ((0.39, False), (0.4, True)):
        stage.recent_losses = [loss] * 20
        assert bool(stage.refusal()) == is_refused
    stage.config = dataclasses.replace(run.config, warmup=WarmupConfig())
    assert not stage.refusal()


@pytest.mark.parametrize("is_reset", [False, True])
def test_the_first_update_of_a_stage_shows_whether_moments_were_kept(start, is_reset) -> None:
    # Adam's first step moves every weight by the rate; with older moments it does not.
    run, stage = start(
        "warmup", warmup={"discriminator_only_steps": 0}, gad={"reset_optimizer": is_reset}
    )
    for _ in range(3):
        take_step(run, stage)
    begin_stage(run)
    before = dict(run.student.hf_weights())["model.embed_tokens.weight"].clone()
    take_step(run, stage)
    after = dict(run.student.hf_weights())["model.embed_tokens.weight"]
    moved = (after - before).abs()
    moved = moved[moved > 0] / 1e-3
    share_of_full_steps = ((moved - 1).abs() < 0.02).float().mean()
    assert (share_of_full_steps > 0.9) == is_reset


def test_samples_show_every_rollout_with_its_score_and_advantage(start) -> None:
    rows = take_step(*start("adversarial")).samples
    assert len(rows) == 4
    for row in rows:
        assert row["prompt"].startswith("user: face ")
        assert len(row["rollouts"]) == 4
        centred = sum(rollout["advantage"] for rollout in row["rollouts"])
        assert centred == pytest.approx(0, abs=1e-5)
        by_score = sorted(row["rollouts"], key=lambda rollout: rollout["score"])
        advantages = [rollout["advantage"] for rollout in by_score]
        assert advantages == sorted(advantages)
