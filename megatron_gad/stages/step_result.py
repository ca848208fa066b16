"""What a step hands back: numbers that are equal on all ranks, and a few responses to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import zero_advantage_share
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Group, Metrics


@dataclass(frozen=True)
class StepResult:
    """metrics: "group/name" -> number, equal on all ranks. samples: this rank's, to look at."""

    metrics: Metrics
    samples: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        metrics: Metrics,
        judged: Sequence[StepOutput] = (),
        learned: StepOutput | None = None,
        samples: Sequence[dict[str, Any]] = (),
        rewards: Metrics | None = None,
    ) -> "StepResult":
        """Put together what is known of a step.

        metrics: of the sampling, and the stage's own. rewards: from ``reward_metrics``.
        judged: passes of the discriminator, the one over the step's groups first; its numbers are
            reported. Tokens and skipped steps are counted over all of them.
        learned: of the student, if it took part.
        """
        found = {**metrics, **(rewards or {})}
        outputs = {"discriminator": judged[0] if judged else None, "student": learned}
        for model, output in outputs.items():
            if output is not None:
                own = {**output.metrics, "padding_share": output.padding_share}
                found |= {f"{model}/{name}": value for name, value in own.items()}
        skipped = [each.metrics.get("skipped_steps") for each in judged]
        if any(each is not None for each in skipped):
            found["discriminator/skipped_steps"] = sum(each or 0.0 for each in skipped)
        passes = [*judged, *([learned] if learned else [])]
        found["tokens/trained"] = float(sum(each.trained_tokens for each in passes))
        return cls(found, list(samples))


def reward_metrics(parallel: Parallel, rewards_PG: Tensor, advantages_PG: Tensor) -> Metrics:
    """Return mean and std of the rewards, and the share of groups that teach nothing.

    rewards_PG, advantages_PG: [P, G] float32 of this data rank. The std is over all responses of
    the step.
    """
    zeros, count = zero_advantage_share(advantages_PG)
    rewards = torch.cat(parallel.gather_over_data(rewards_PG.flatten())).double()
    share = parallel.mean_over_data({"advantage/zero_share": (float(zeros), float(count))})
    return {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std()), **share}


def sample_rows(
    groups: Sequence[Group],
    scores_PG: Tensor | None = None,
    advantages_PG: Tensor | None = None,
    rewards: Mapping[str, Tensor] | None = None,
    most: int = 4,
) -> list[dict[str, Any]]:
    """Return the first groups as rows for the samples file.

    scores_PG, advantages_PG: [P, G] float32; None in stages without.
    rewards: name -> the same shape; what each gave, if there are any beside the score.
    """
    rows = []
    for p, group in enumerate(groups[:most]):
        rollouts = [
            {
                "text": rollout.text,
                "score": None if scores_PG is None else float(scores_PG[p, g]),
                "advantage": None if advantages_PG is None else float(advantages_PG[p, g]),
                **({"rewards": {n: float(v[p, g]) for n, v in rewards.items()}} if rewards else {}),
                "length": len(rollout.ids),
                "finish_reason": rollout.finish_reason,
            }
            for g, rollout in enumerate(group.rollouts)
        ]
        prompt = group.prompt
        asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages)
        rows.append({"prompt": asked, "teacher": prompt.teacher_text, "rollouts": rollouts})
    return rows
