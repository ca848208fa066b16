"""The discriminator's turn: groups to its ranks, scores and a step there, scores back."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_gad.algorithms.discriminator import (
    DiscriminatorKind,
    discriminator_loss,
    score_gradients,
    split_scores,
    weighted_score_loss,
)
from megatron_gad.data.balance import group_cost
from megatron_gad.data.batching import pair_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.step_result import SHOWN_GROUPS, ModelStep
from megatron_gad.stages.token_values import Tokens, read_tokens
from megatron_gad.training.exchange import move
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Group, Loss, Metrics, PairBatch, ScorerOutput


@dataclass(frozen=True)
class Practice:
    """What the discriminator trains on besides a step's groups, and which of these it does not.

    past: this data rank's groups of earlier steps.
    resting: rows of the data whose groups are scored and not trained, of all data ranks.
    """

    past: Sequence[Group] = ()
    resting: Collection[int] = ()


class _Item(NamedTuple):
    group: Group
    is_trained: bool
    is_past: bool
    is_shown: bool = False


@dataclass(frozen=True)
class Judged:
    """What the discriminator made of groups.

    scores_PG: [P, G] float32 of the student's responses, from before any update.
    teacher_scores_P: [P] float32 of the teacher's.
    metrics: of past groups, if there may be any, apart from those of the step.
    tokens: of groups that are shown, by the row of the data: what the discriminator makes of every
        token of the teacher's response, and of each rollout; before any update.
    """

    scores_PG: Tensor
    teacher_scores_P: Tensor
    step: ModelStep
    metrics: Metrics = field(default_factory=dict[str, float])
    tokens: Mapping[int, Sequence[Tokens]] = field(default_factory=dict[int, Sequence[Tokens]])


def cost_of_group(run: Run) -> Callable[[Group], int]:
    """Return what a group costs the two models of a run, to share groups out at equal cost."""
    student = run.student
    discriminator = run.discriminator if run.has_discriminator else student
    return partial(
        group_cost,
        student_shares=student.settings.shares_prompts,
        discriminator_shares=discriminator.settings.shares_prompts,
    )


def judge_groups(
    run: Run,
    groups: Sequence[Group],
    learns: bool = True,
    trained_samples: int = 0,
    practice: Practice | None = None,
    shows: bool = False,
) -> Judged:
    """Score every response and, if the discriminator learns, take one step.

    The groups go to the discriminator's data ranks, if its layout has others, where they are shared
    by cost again: the student's data ranks may be fewer, or one, over which nothing is balanced.

    trained_samples: of a group that the loss is of; 0: all of them.
    practice: None trains on the groups alone.
    shows: read the first groups by token as well, if scores are made of tokens. It takes a pass
        over them.
    """
    discriminator, kind = run.discriminator, run.config.gad.discriminator_loss
    past, resting = (practice.past, practice.resting) if practice else ((), ())
    by_token = shows and run.config.discriminator.score != "last_token"
    num_shown = SHOWN_GROUPS if by_token and run.parallel.data_rank == 0 else 0
    items = [
        _Item(group, group.prompt.index not in resting, is_past=False, is_shown=place < num_shown)
        for place, group in enumerate(groups)
    ]
    items += [_Item(group, is_trained=True, is_past=True) for group in past]
    cost = cost_of_group(run)
    moved = move(items, lambda item: cost(item.group), run.parallel, discriminator.parallel)
    judged = [item.group for item in moved.items]
    pairs = pair_batch(judged, trained_samples, [item.is_trained for item in moved.items])
    tokens = {}
    with run.turn("discriminator" if learns else "score"):
        if by_token:
            codec = run.codecs.scorer or run.codecs.student
            is_shown = [item.is_shown for item in moved.items]
            tokens = read_tokens(discriminator, codec, judged, is_shown)
        if learns:
            split_groups = run.config.discriminator.split_groups
            output = judge(discriminator, pairs, kind, split_groups)
        else:
            output = discriminator.evaluate(pairs, partial(discriminator_loss, kind=kind))
    metrics = _accuracies(discriminator, moved.items, output.rows, pairs) if practice else {}
    teacher_P, scores_PG = split_scores(moved.back(output.rows), pairs.group_size)
    rows = [group.prompt.index for group in judged for _ in range(1 + pairs.group_size)]
    step = ModelStep.of("discriminator", output, pairs, rows)
    return Judged(scores_PG[: len(groups)], teacher_P[: len(groups)], step, metrics, tokens)


def _accuracies(
    discriminator: Trainer, items: Sequence[_Item], scores_R: Tensor, pairs: PairBatch
) -> Metrics:
    """Return in how many pairs the teacher is ahead, of the step's groups and of past ones."""
    teacher_P, student_PG = split_scores(scores_R, pairs.group_size)
    wins_P = ((teacher_P[:, None] - student_PG).sign() + 1).mean(dim=1) / 2
    sums = {}
    for name, is_past in (("fresh", False), ("past", True)):
        chosen = torch.tensor([item.is_past == is_past for item in items])
        sums[f"discriminator/{name}_accuracy"] = (float(wins_P[chosen].sum()), int(chosen.sum()))
    return discriminator.parallel.mean_over_data(sums)


def judge(
    discriminator: Trainer, pairs: PairBatch, kind: DiscriminatorKind, split_groups: bool
) -> StepOutput:
    """Score every row and take one step; the scores are those from before the update.

    split_groups: False lets one forward pass serve both. True scores first and trains on the
        gradients of the scores, for groups that do not fit in memory; equal gradients.
    """
    loss, scored = partial(discriminator_loss, kind=kind), None
    if split_groups:
        scores_R = discriminator.scores(pairs)
        gradients_R, whole = score_gradients(scores_R, pairs, kind)
        # Every pair is counted once, at its rollout, wherever rows are split.
        counted_R = pairs.trained.clone()
        counted_R[:: 1 + pairs.group_size] = False
        pairs = replace(pairs, trained=counted_R, score_gradients=gradients_R)
        loss, scored = _row_loss, (scores_R, whole.metrics)
    output = discriminator.train(pairs, loss)
    if scored is None:
        return output
    scores_R, metrics = scored
    sums = {name: (float(total), float(count)) for name, (total, count) in metrics.items()}
    means = discriminator.parallel.mean_over_data(sums)
    return replace(output, metrics={**means, **output.metrics}, rows=scores_R)


def _row_loss(output: ScorerOutput, batch: PairBatch) -> Loss:
    assert batch.score_gradients is not None
    num_pairs = batch.trained.sum().float()
    return weighted_score_loss(output, batch, batch.score_gradients, num_pairs)
