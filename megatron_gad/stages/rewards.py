"""The reward of every response: the discriminator's score, and what else the user names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.rewards import weighed_reward, without_dropped
from megatron_gad.config.rewards import DISCRIMINATOR, RewardConfig
from megatron_gad.engines.rewards.client import Answered
from megatron_gad.errors import RunStoppedError
from megatron_gad.runtime.run import Run
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group, Metrics, Rollout

SCORE = RewardConfig(name=DISCRIMINATOR)


@dataclass(frozen=True)
class Rewarded:
    """The rewards of groups.

    total_PG: [P, G] float32, the weighed sum.
    is_dropped_P: [P] bool, True for groups that are to teach the student nothing.
    parts: name -> [P, G] float32 as the reward gave it; nan where it failed.
    """

    total_PG: Tensor
    is_dropped_P: Tensor
    parts: Mapping[str, Tensor]
    metrics: Metrics


def reward_groups(run: Run, groups: Sequence[Group], scores_PG: Tensor) -> Rewarded:
    """Sum up the rewards of groups. All ranks call it.

    scores_PG: [P, G] float32. Without any [[rewards]] they are the rewards.

    Raises RunStoppedError on all ranks if one fails whose on_error = "stop".
    """
    is_dropped_P = torch.zeros(len(groups), dtype=torch.bool)
    if not run.config.rewards:
        return Rewarded(scores_PG, is_dropped_P, {}, {})
    answers = _ask(run, groups)
    parts = {name: torch.tensor(each.values).view_as(scores_PG) for name, each in answers.items()}
    parts[DISCRIMINATOR] = scores_PG
    total_PG = torch.zeros_like(scores_PG)
    metrics: Metrics = {}
    for config in with_score(run.config.rewards):
        values_PG = parts[config.name]
        metrics |= _describe(run.parallel, config, values_PG)
        if config.function:  # a score that is not finite is the discriminator's own trouble
            has_failed_PG = values_PG.isnan()
            values_PG = torch.where(has_failed_PG, 0.0, values_PG)
            if config.on_error == "drop":
                is_dropped_P |= has_failed_PG.any(dim=1)
        shares = run.parallel.gather_over_data(values_PG.flatten())
        total_PG = total_PG + weighed_reward(
            values_PG, config.weight, config.clip, config.normalization, torch.cat(shares)
        )
    return Rewarded(without_dropped(total_PG, is_dropped_P), is_dropped_P, parts, metrics)


def with_score(configs: Sequence[RewardConfig]) -> list[RewardConfig]:
    """Return the rewards with the discriminator's score among them, as it is by default."""
    has_score = any(each.name == DISCRIMINATOR for each in configs)
    return [*configs] if has_score else [SCORE, *configs]


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


def _describe(parallel: Parallel, config: RewardConfig, values_PG: Tensor) -> Metrics:
    """Return the mean of what a reward gave, and how often it failed if it may."""
    known = values_PG[~values_PG.isnan()]
    sums = {f"reward/{config.name}": (float(known.sum()), float(known.numel()))}
    if config.on_error != "stop":
        failed = values_PG.numel() - known.numel()
        sums[f"reward/{config.name}_failed"] = (float(failed), float(values_PG.numel()))
    return parallel.mean_over_data(sums)
