"""What a step hands back: numbers that are equal on all ranks, and a few responses to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from megatron_gad.algorithms.advantages import zero_advantage_share
from megatron_gad.config.output import ModelName
from megatron_gad.stages.token_values import Tokens
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.parallel import Parallel
from megatron_gad.types import Batch, Group, Metrics, PairBatch

SHOWN_GROUPS = 4  # of a step, in its samples


@dataclass(frozen=True)
class ModelStep:
    """What a model computed of one batch.

    output: of its pass; if it learned, of its optimizer step.
    data_rows: the data set's row of every row of this data rank's batch.
    broken_rows: those of them whose numbers made the model skip its step, if each alone did.
    """

    model: ModelName
    output: StepOutput
    data_rows: Sequence[int]
    broken_rows: Sequence[int] = ()

    @classmethod
    def of(
        cls,
        model: ModelName,
        output: StepOutput,
        batch: Batch | PairBatch,
        data_rows: Sequence[int],
    ) -> "ModelStep":
        """Note a pass over this data rank's batch, and what was not finite if it skipped."""
        broken: list[int] = []
        if output.is_skipped:
            finite = zip(data_rows, _are_finite(output, batch), strict=True)
            broken = [row for row, is_finite in finite if not is_finite]
        return cls(model, output, data_rows, broken)


@dataclass(frozen=True)
class StepResult:
    """What one step of a stage leaves behind.

    metrics: "group/name" -> number, equal on all ranks.
    samples: this rank's, to look at.
    models: what the models computed, in this order.
    """

    metrics: Metrics
    samples: list[dict[str, Any]] = field(default_factory=list)
    models: Sequence[ModelStep] = ()

    @classmethod
    def of(
        cls,
        metrics: Metrics,
        judged: Sequence[ModelStep] = (),
        learned: ModelStep | None = None,
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
        models = [*judged, *([learned] if learned else [])]
        for step in (*judged[:1], *models[len(judged) :]):
            shares = {
                "padding_share": step.output.padding_share,
                "shared_prompt_share": step.output.shared_prompt_share,
            }
            own = step.output.metrics | shares
            found |= {f"{step.model}/{name}": value for name, value in own.items()}
        skipped = [step.output.metrics.get("skipped_steps") for step in judged]
        if any(each is not None for each in skipped):
            found["discriminator/skipped_steps"] = sum(each or 0.0 for each in skipped)
        found["tokens/trained"] = float(sum(step.output.trained_tokens for step in models))
        return cls(found, list(samples), models)


def _are_finite(output: StepOutput, batch: Batch | PairBatch) -> list[bool]:
    """Return for every row whether what was computed of it, and for it, is finite."""
    values: list[Tensor] = [output.rows]
    if isinstance(batch, Batch) and batch.advantages is not None:
        values.append(batch.advantages)
    finite = [torch.isfinite(each).reshape(len(each), -1).all(dim=1) for each in values]
    return torch.stack(finite).all(dim=0).tolist()


def reward_metrics(parallel: Parallel, rewards_PG: Tensor) -> Metrics:
    """Return mean and std of the rewards; the std is over all responses of the step.

    rewards_PG: [P, G] float32 of this data rank.
    """
    shares = parallel.gather_over_data(rewards_PG)
    rewards = torch.cat(shares).double()  # [P of all data ranks, G]
    return {"reward/mean": float(rewards.mean()), "reward/std": float(rewards.std())}


def zero_metrics(parallel: Parallel, advantages_PG: Tensor) -> Metrics:
    """Return the share of groups that teach nothing; [P, G] float32 of this data rank."""
    num_zero, num_groups = (float(each) for each in zero_advantage_share(advantages_PG))
    return parallel.mean_over_data({"advantage/zero_share": (num_zero, num_groups)})


def sample_rows(
    groups: Sequence[Group],
    scores_PG: Tensor | None = None,
    advantages_PG: Tensor | None = None,
    rewards: Mapping[str, Tensor] | None = None,
    teacher_scores_P: Tensor | None = None,
    tokens: Mapping[int, Sequence[Tokens]] | None = None,
) -> list[dict[str, Any]]:
    """Return the first groups as rows for the samples file.

    scores_PG, advantages_PG: [P, G] float32; None in stages without. teacher_scores_P: [P] float32.
    rewards: name -> the same shape; what each gave, if there are any beside the score.
    tokens: of the teacher's response and of the rollouts, by the row of the data; of some groups.
    """
    rows = []
    for p, group in enumerate(groups[:SHOWN_GROUPS]):
        prompt = group.prompt
        of_teacher, *of_rollouts = (tokens or {}).get(
            prompt.index, [[]] * (1 + len(group.rollouts))
        )
        rollouts = [
            {
                "text": rollout.text,
                "score": None if scores_PG is None else float(scores_PG[p, g]),
                "advantage": None if advantages_PG is None else float(advantages_PG[p, g]),
                **({"rewards": {n: float(v[p, g]) for n, v in rewards.items()}} if rewards else {}),
                "length": len(rollout.ids),
                "finish_reason": rollout.finish_reason,
                **({"tokens": of_rollouts[g]} if of_rollouts[g] else {}),
            }
            for g, rollout in enumerate(group.rollouts)
        ]
        asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt.messages)
        row: dict[str, Any] = {"prompt": asked, "teacher": prompt.teacher_text}
        if teacher_scores_P is not None:
            row["teacher_score"] = float(teacher_scores_P[p])
        if of_teacher:
            row["teacher_tokens"] = of_teacher
        rows.append({**row, "rollouts": rollouts})
    return rows
