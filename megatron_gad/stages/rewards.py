"""The reward of every response: the discriminator's score, and what else the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import length_sums, without_length
from megatron_gad.algorithms.kl import sequence_kl
from megatron_gad.algorithms.rewards import weighed_reward
from megatron_gad.config.rewards import DISCRIMINATOR, with_score
from megatron_gad.engines.rewards.client import Answered
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.types import Batch, Group, Metrics, Rollout


@dataclass(frozen=True)
class Rewarded:
    """The rewards of groups.

    total_PG: [P, G] float32, what advantages are made of.
    is_left_out_PG: [P, G] bool, True for responses that are to teach the student nothing.
    parts: name -> [P, G] float32 as the reward gave it; nan where it failed.
    """

    total_PG: Tensor
    is_left_out_PG: Tensor
    parts: Mapping[str, Tensor]
    metrics: Metrics


def reward_groups(run: Run, batch: Batch, groups: Sequence[Group], scores_PG: Tensor) -> Rewarded:
    """Return the rewards of groups. All ranks call it.

    They are the discriminator's scores, less what lengths explain if that is asked for, with the
    rewards of [[rewards]] added, less the KL if it belongs to the reward.

    batch: the groups' responses as rows. scores_PG: [P, G] float32.
    """
    gad, temperature = run.config.gad, run.config.rollout.temperature
    lengths_PG = torch.tensor([[len(r.ids) for r in group.rollouts] for group in groups])
    shares = run.parallel.gather_over_data(length_sums(scores_PG, lengths_PG))
    products, squares = torch.stack(shares).sum(dim=0).tolist()
    slope = products / squares if squares > 0 else 0.0
    if gad.length_correction:
        scores_PG = without_length(scores_PG, lengths_PG, slope)
    is_cut_PG = torch.tensor(
        [[r.finish_reason == "length" for r in group.rollouts] for group in groups]
    )
    summed = sum_rewards(run, groups, scores_PG)
    is_left_out_PG = summed.is_left_out_PG | (is_cut_PG & gad.mask_truncated)
    total_PG = summed.total_PG
    if gad.kl_in == "reward" and batch.ref_logprobs is not None:
        with run.turn("reference"):
            logprobs = run.student.logprobs(batch, temperature)
        kl = sequence_kl(logprobs, batch.ref_logprobs, batch.response_mask, gad.kl_estimator)
        total_PG = total_PG - gad.kl_coef * kl.view_as(total_PG)
    metrics = {**summed.metrics, "reward/length_slope": slope}
    return replace(summed, total_PG=total_PG, is_left_out_PG=is_left_out_PG, metrics=metrics)


def sum_rewards(run: Run, groups: Sequence[Group], scores_PG: Tensor) -> Rewarded:
    """Add the rewards that the user names to the discriminator's score. All ranks call it.

    scores_PG: [P, G] float32.

    Raises RunStoppedError on all ranks if one fails whose on_error = "stop".
    """
    if not run.config.rewards:
        return Rewarded(scores_PG, torch.zeros_like(scores_PG, dtype=torch.bool), {}, {})
    parts = {DISCRIMINATOR: scores_PG}
    for name, each in _ask(run, groups).items():
        parts[name] = torch.tensor(each.values).view_as(scores_PG)
    is_dropped_P = torch.zeros(len(groups), dtype=torch.bool)
    total_PG = torch.zeros_like(scores_PG)
    sums: dict[str, tuple[float, float]] = {}
    for config in with_score(run.config.rewards):
        values_PG = parts[config.name]
        has_failed_PG = values_PG.isnan()
        num_known = float((~has_failed_PG).sum())
        sums[f"reward/{config.name}"] = (float(values_PG.nansum()), num_known)
        if config.on_error != "stop":
            failed = values_PG.numel() - num_known
            sums[f"reward/{config.name}_failed"] = (failed, float(values_PG.numel()))
        if config.function:  # a score that is not finite is the discriminator's own trouble
            values_PG = torch.where(has_failed_PG, 0.0, values_PG)
            if config.on_error == "drop":
                is_dropped_P |= has_failed_PG.any(dim=1)
        shares = run.parallel.gather_over_data(values_PG.flatten())
        total_PG = total_PG + weighed_reward(
            values_PG, config.weight, config.clip, config.normalization, torch.cat(shares)
        )
    # Equal rewards teach nothing.
    total_PG = total_PG.masked_fill(is_dropped_P[:, None], 0.0)
    is_left_out_PG = is_dropped_P[:, None].expand_as(scores_PG)
    return Rewarded(total_PG, is_left_out_PG, parts, run.parallel.mean_over_data(sums))


def reward_row(group: Group, rollout: Rollout) -> dict[str, Any]:
    """Return what reward functions are told of a response."""
    prompt = group.prompt
    return {
        "row": prompt.index,
        "messages": [dict(turn) for turn in prompt.messages],
        "response": rollout.text,
        "teacher": prompt.teacher_text,
        "length": len(rollout.ids),
        "teacher_length": len(prompt.teacher_ids),
        "truncated": rollout.finish_reason == "length",
        "columns": dict(prompt.columns),
    }


def _ask(run: Run, groups: Sequence[Group]) -> dict[str, Answered]:
    """Ask all rewards on one rank of every model; stop the run if one fails that must not."""
    answers: dict[str, Answered] | None = None
    rows = [(group.prompt.index, rollout) for group in groups for rollout in group.rollouts]
    if run.parallel.is_engine_rank:
        answers = run.rewards.ask([reward_row(g, r) for g in groups for r in g.rollouts])
    answers = run.parallel.from_engine_rank(answers)
    assert answers is not None
    failures = [
        f"the reward {config.name!r} failed for a response to row {row} of data.path: {error}"
        for config in run.config.rewards
        if config.function and config.on_error == "stop"
        for (row, _), error in zip(rows, answers[config.name].errors, strict=True)
        if error
    ]
    failures = [each for share in run.parallel.gather_over_data(failures[:1]) for each in share]
    if failures:
        raise RunStoppedError(
            f"{failures[0].rstrip()}\nThe newest checkpoint is whole. Correct the function, or let "
            "its failures count 0 or drop their groups: on_error = 'zero' or 'drop'"
        )
    return answers
