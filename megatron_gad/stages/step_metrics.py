"""What a step reports: numbers that are equal on all ranks, and a few responses to look at."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import zero_advantage_share
from megatron_gad.data.batching import count_tokens
from megatron_gad.runtime.run import Run
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Batch, Group, Metrics, PairBatch


def reported(group: str, output: StepOutput) -> Metrics:
    """Return a model's step under the names of metrics. group: "student" or "discriminator"."""
    metrics = {**output.metrics, "padding_share": output.padding_share}
    return {f"{group}/{name}": value for name, value in metrics.items()}


def num_tokens(trainer: Trainer, batch: Batch | PairBatch) -> float:
    """Return the real tokens that the model runs over, on all of the trainer's data ranks."""
    return float(sum(trainer.parallel.gather_over_data(count_tokens(batch))))


def reward_metrics(run: Run, rewards_PG: Tensor, advantages_PG: Tensor) -> Metrics:
    """Return mean and std of the rewards, and the share of groups that teach nothing.

    rewards_PG, advantages_PG: [P, G] float32 of this data rank. The std is over all responses of
    the step.
    """
    zeros, count = zero_advantage_share(advantages_PG)
    rewards = torch.cat(run.parallel.gather_over_data(rewards_PG.flatten())).double()
    share = run.parallel.mean_over_data({"advantage/zero_share": (float(zeros), float(count))})
    return {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std()), **share}


def sample_rows(
    groups: Sequence[Group], scores_PG: Tensor, advantages_PG: Tensor | None, most: int = 4
) -> list[dict[str, Any]]:
    """Return the first groups as rows for the samples file.

    scores_PG: [P, G] float32. advantages_PG: the same shape; None in stages without.
    """
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
        asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages)
        rows.append({"prompt": asked, "teacher": prompt.teacher_text, "rollouts": rollouts})
    return rows
