"""The three stages, one function for one step of each."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import group_advantages, zero_advantage_share
from megatron_gad.algorithms.discriminator import split_scores
from megatron_gad.algorithms.kl import sequence_kl
from megatron_gad.algorithms.policy import PolicyOptions, policy_loss
from megatron_gad.algorithms.supervised import supervised_loss
from megatron_gad.config.stages import AdversarialConfig, SeqkdConfig, WarmupConfig
from megatron_gad.data.balance import group_cost, prompt_cost
from megatron_gad.data.batching import pair_batch, policy_batch, teacher_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.agreement import GapBound, check_gap
from megatron_gad.stages.judging import judge, score_only
from megatron_gad.stages.rollouts import adversarial_rollouts, logprob_gap_bound, sample_groups
from megatron_gad.stages.skipped_steps import note_step
from megatron_gad.training.exchange import Moved, move
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.rebalance import rebalance
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Group, PairBatch, Prompt

Metrics = dict[str, float]


@dataclass(frozen=True)
class StepResult:
    """metrics: "group/name" -> number, equal on all ranks. samples: this rank's, to look at."""

    metrics: Metrics
    samples: list[dict[str, Any]] = field(default_factory=list)


def seqkd_step(run: Run, stage: SeqkdConfig) -> StepResult:
    """Fit the teacher's responses by cross-entropy."""
    prompts = run.take_prompts(stage.batch_size)
    return StepResult(_learn_from_teacher(run, prompts))


def warmup_step(run: Run, stage: WarmupConfig) -> StepResult:
    """Teach the discriminator on fresh samples, and the student on the teacher's responses."""
    prompts = run.take_prompts(stage.prompts_per_step)
    sampled, metrics = sample_groups(run, prompts, stage.group_size)
    groups = _even_share(run, sampled)
    moved = _to_discriminator(run, groups)
    pairs = pair_batch(moved.items)
    judged = _learn_from_pairs(run, pairs, moved.items)
    metrics |= _reported("discriminator", judged)
    metrics["tokens/trained"] = _num_tokens(run.discriminator, pairs)
    if stage.train_student and run.progress.step_in_stage >= stage.discriminator_only_steps:
        learned = _learn_from_teacher(run, prompts)
        metrics["tokens/trained"] += learned.pop("tokens/trained")
        metrics |= learned
    scores_PG = split_scores(moved.back(judged.rows), stage.group_size)[1]
    return StepResult(metrics, _samples(groups, scores_PG, None))


def adversarial_step(run: Run, stage: AdversarialConfig) -> StepResult:
    """Sample, let the discriminator score and learn, then raise what it scored above the group."""
    sampled = adversarial_rollouts(run, stage)
    groups, metrics = _even_share(run, sampled.groups), sampled.metrics
    extra = [_extra_groups(run, each) for each in sampled.extra_groups]
    extra_pairs = [pair_batch(each) for each in extra]
    batch = policy_batch(groups)
    moved = _to_discriminator(run, groups)
    pairs = pair_batch(moved.items, stage.discriminator_samples)

    learns = _discriminator_learns(run, stage)
    judged = _judge(run, pairs, moved.items, learns)
    scores_PG = split_scores(moved.back(judged.rows), stage.group_size)[1]
    metrics |= _reported("discriminator", judged)
    learned_extra = [_learn_from_pairs(run, *each) for each in zip(extra_pairs, extra, strict=True)]
    if learned_extra:
        skipped = sum(each.metrics.get("skipped_steps", 0.0) for each in (judged, *learned_extra))
        metrics["discriminator/skipped_steps"] = skipped
    trained = [pairs, *extra_pairs] if learns else extra_pairs
    metrics["tokens/trained"] = sum(_num_tokens(run.discriminator, each) for each in trained)

    batch = _with_reference(run, batch)
    rewards_PG = _rewards(run, batch, scores_PG)
    advantages_PG = group_advantages(rewards_PG, run.config.gad.advantage)
    metrics |= _reward_metrics(run, rewards_PG, advantages_PG)

    if run.progress.step_in_stage >= stage.discriminator_only_steps:
        batch = batch.with_advantages(advantages_PG.flatten())
        learned = _learn_from_rewards(run, batch, groups, stage.student_updates)
        if not learned.is_skipped:
            metrics |= _compare_all(run, learned.rows, batch, sampled.weights_lag)
        metrics |= _reported("student", learned)
        metrics["tokens/trained"] += stage.student_updates * _num_tokens(run.student, batch)
    return StepResult(metrics, _samples(groups, scores_PG, advantages_PG))


def _compare_all(run: Run, logprobs: Tensor, batch: Batch, weights_lag: int) -> Metrics:
    """Compare engine and trainer on the whole batch; older weights may differ by any amount."""
    bound = GapBound() if weights_lag else logprob_gap_bound(run)
    gap = check_gap(run.student, None, logprobs, batch, bound)
    name = "off_policy_gap" if weights_lag else "logprob_gap"
    return {f"engine/{name}_max": gap.largest, f"engine/{name}_mean": gap.mean}


def _even_share(run: Run, groups: Sequence[Group]) -> list[Group]:
    """Return the groups to train on: this rank sampled for its prompts, however long they got."""
    return rebalance(groups, group_cost, run.parallel)


def _learn_from_teacher(run: Run, prompts: Sequence[Prompt]) -> Metrics:
    prompts = rebalance(prompts, prompt_cost, run.parallel)
    batch = teacher_batch(prompts)
    with run.turn("student"):
        learned = run.student.train(batch, supervised_loss)
    run.progress.weights_version += not learned.is_skipped
    note_step(run, "student", learned, batch, [prompt.index for prompt in prompts])
    num_tokens = _num_tokens(run.student, batch)
    return {**_reported("student", learned), "tokens/trained": num_tokens}


def _to_discriminator(run: Run, groups: Sequence[Group]) -> Moved[Group]:
    """Share the groups out to the discriminator's data ranks, where its layout has others.

    By cost there, too: the student's may be fewer, or one, over which nothing is balanced.
    """
    return move(groups, group_cost, run.parallel, run.discriminator.parallel)


def _extra_groups(run: Run, groups: Sequence[Group]) -> list[Group]:
    """Return the discriminator's share of an extra step."""
    return _to_discriminator(run, _even_share(run, groups)).items


def _learn_from_pairs(run: Run, pairs: PairBatch, groups: Sequence[Group]) -> StepOutput:
    """Take a step of the discriminator; pairs holds the rows of the groups."""
    config = run.config
    with run.turn("discriminator"):
        judged = judge(
            run.discriminator,
            pairs,
            config.gad.discriminator_loss,
            config.discriminator.split_groups,
        )
    rows = [group.prompt.index for group in groups for _ in range(1 + pairs.group_size)]
    note_step(run, "discriminator", judged, pairs, rows)
    return judged


def _judge(run: Run, pairs: PairBatch, groups: Sequence[Group], learns: bool) -> StepOutput:
    if learns:
        return _learn_from_pairs(run, pairs, groups)
    with run.turn("score"):
        return score_only(run.discriminator, pairs, run.config.gad.discriminator_loss)


def _discriminator_learns(run: Run, stage: AdversarialConfig) -> bool:
    on_turn = run.progress.step_in_stage % stage.discriminator_interval == 0
    return on_turn and not stage.freeze_discriminator


def _with_reference(run: Run, batch: Batch) -> Batch:
    if run.reference is None:
        return batch
    with run.turn("reference"):
        return batch.with_ref_logprobs(
            run.reference.logprobs(batch, run.config.rollout.temperature)
        )


def _rewards(run: Run, batch: Batch, scores_PG: Tensor) -> Tensor:
    """Return [P, G] rewards: the raw scores, less the KL where it belongs to the reward."""
    gad = run.config.gad
    if gad.kl_in == "loss" or batch.ref_logprobs is None:
        return scores_PG
    with run.turn("reference"):
        logprobs = run.student.logprobs(batch, run.config.rollout.temperature)
    kl = sequence_kl(logprobs, batch.ref_logprobs, batch.response_mask, gad.kl_estimator)
    return scores_PG - gad.kl_coef * kl.view_as(scores_PG)


def _learn_from_rewards(
    run: Run, batch: Batch, groups: Sequence[Group], num_updates: int
) -> StepOutput:
    """Take the student's steps on one batch; return the first's rows and the last's metrics.

    groups: whose rollouts are the rows. After a step that is skipped, no other is tried on them: it
    would meet the same numbers.
    """
    gad, temperature = run.config.gad, run.config.rollout.temperature
    options = PolicyOptions(
        clip_range=gad.clip_range,
        kl_coef=gad.kl_coef if gad.kl_in == "loss" else 0.0,
        kl_estimator=gad.kl_estimator,
        aggregation=gad.aggregation,
        tis_cap=gad.tis_cap,
    )
    loss = partial(policy_loss, options=options)
    with run.turn("student"):
        first = learned = run.student.train(batch, loss, temperature)
        num_taken = int(not learned.is_skipped)
        while not learned.is_skipped and num_taken < num_updates:
            # The first update's own forward gave the log-probabilities from before it.
            old = batch.with_old_logprobs(first.rows)
            learned = run.student.train(old, loss, temperature)
            num_taken += not learned.is_skipped
    run.progress.weights_version += num_taken
    rows = [group.prompt.index for group in groups for _ in group.rollouts]
    note_step(run, "student", learned, batch, rows)
    metrics = {**learned.metrics, "skipped_steps": float(num_updates - num_taken)}
    return replace(learned, rows=first.rows, metrics=metrics)


def _reward_metrics(run: Run, rewards_PG: Tensor, advantages_PG: Tensor) -> Metrics:
    zeros, count = zero_advantage_share(advantages_PG)
    rewards = torch.cat(run.parallel.gather_over_data(rewards_PG.flatten())).double()
    share = run.parallel.mean_over_data({"advantage/zero_share": (float(zeros), float(count))})
    return {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std()), **share}


def _num_tokens(trainer: Trainer, batch: Batch | PairBatch) -> float:
    """Return the batch's real tokens, prompts included, over the trainer's data ranks."""
    return float(sum(trainer.parallel.gather_over_data(int(batch.lengths.sum()))))


def _reported(group: str, output: StepOutput) -> Metrics:
    metrics = {**output.metrics, "padding_share": output.padding_share}
    return {f"{group}/{name}": value for name, value in metrics.items()}


def _samples(
    groups: Sequence[Group], scores_PG: Tensor, advantages_PG: Tensor | None, most: int = 4
) -> list[dict[str, Any]]:
    """Return the first groups as rows for the samples file."""
    rows = []
    for p, group in enumerate(groups[:most]):
        rollouts = [
            {
                "text": rollout.text,
                "score": float(scores_PG[p, g]),
                "advantage": None if advantages_PG is None else float(advantages_PG[p, g]),
                "length": len(rollout.ids),
                "finish_reason": rollout.finish_reason,
            }
            for g, rollout in enumerate(group.rollouts)
        ]
        prompt = group.prompt
        asked = "\n".join(f"{role}: {content}" for role, content in prompt.messages)
        rows.append({"prompt": asked, "teacher": prompt.teacher_text, "rollouts": rollouts})
    return rows
