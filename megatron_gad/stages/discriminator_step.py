"""The discriminator's turn: groups to its ranks, scores and a step there, scores back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

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
from megatron_gad.stages.step_result import ModelStep
from megatron_gad.training.exchange import move
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Group, Loss, PairBatch, ScorerOutput


@dataclass(frozen=True)
class Judged:
    """What the discriminator made of groups.

    scores_PG: [P, G] float32 of the student's responses, from before any update.
    teacher_scores_P: [P] float32 of the teacher's.
    """

    scores_PG: Tensor
    teacher_scores_P: Tensor
    step: ModelStep


def judge_groups(
    run: Run, groups: Sequence[Group], learns: bool = True, trained_samples: int = 0
) -> Judged:
    """Score every response and, if the discriminator learns, take one step.

    The groups go to the discriminator's data ranks, if its layout has others, where they are shared
    by cost again: the student's data ranks may be fewer, or one, over which nothing is balanced.

    trained_samples: of a group that the loss is of; 0: all of them.
    """
    discriminator, kind = run.discriminator, run.config.gad.discriminator_loss
    moved = move(groups, group_cost, run.parallel, discriminator.parallel)
    pairs = pair_batch(moved.items, trained_samples)
    if learns:
        with run.turn("discriminator"):
            split_groups = run.config.discriminator.split_groups
            output = judge(discriminator, pairs, kind, split_groups)
    else:
        with run.turn("score"):
            output = discriminator.evaluate(pairs, partial(discriminator_loss, kind=kind))
    scores_R = moved.back(output.rows)
    teacher_P, scores_PG = split_scores(scores_R, pairs.group_size)
    rows = [group.prompt.index for group in moved.items for _ in range(1 + pairs.group_size)]
    return Judged(scores_PG, teacher_P, ModelStep.of("discriminator", output, pairs, rows))


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
