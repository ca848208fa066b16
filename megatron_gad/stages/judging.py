"""The discriminator's turn: score a batch of groups and, if it is to, learn from it."""

from dataclasses import replace
from functools import partial

from torch import Tensor

from megatron_gad.algorithms.discriminator import (
    DiscriminatorKind,
    discriminator_loss,
    score_gradients,
    split_scores,
    weighted_score_loss,
)
from megatron_gad.training.forward_backward import StepOutput
from megatron_gad.training.trainer import Trainer
from megatron_gad.types import Loss, PairBatch, ScorerOutput


def judge(
    discriminator: Trainer, pairs: PairBatch, kind: DiscriminatorKind, split_groups: bool
) -> StepOutput:
    """Score every row and take one step; the scores are those from before the update.

    split_groups: False lets one forward serve both. True scores first and trains on the
        closed-form score gradients, for groups that do not fit in memory; equal gradients.
    """
    loss = partial(discriminator_loss, kind=kind)
    if not split_groups:
        return discriminator.train(pairs, loss)
    scores = discriminator.scores(pairs)
    teacher_P, student_PG = split_scores(scores, pairs.group_size)
    _, trained_PG = split_scores(pairs.trained, pairs.group_size)
    gradients = score_gradients(teacher_P, student_PG, trained_PG, kind)
    trained = discriminator.train(_by_row(pairs, gradients), _row_loss)
    sums = discriminator_loss(ScorerOutput(scores), pairs, kind).metrics
    means = discriminator.parallel.mean_over_data(
        {name: (float(total), float(count)) for name, (total, count) in sums.items()}
    )
    return replace(trained, metrics={**means, **trained.metrics}, rows=scores)


def score_only(discriminator: Trainer, pairs: PairBatch, kind: DiscriminatorKind) -> StepOutput:
    """Score every row without learning."""
    return discriminator.evaluate(pairs, partial(discriminator_loss, kind=kind))


def _by_row(pairs: PairBatch, gradients: Tensor) -> PairBatch:
    """Mark rows so that every pair is counted once, at its rollout, wherever rows are split."""
    counted = pairs.trained.clone()
    counted[:: 1 + pairs.group_size] = False
    return replace(pairs.with_score_gradients(gradients), trained=counted)


def _row_loss(output: ScorerOutput, batch: PairBatch) -> Loss:
    assert batch.score_gradients is not None
    num_pairs = batch.trained.sum().float()
    return weighted_score_loss(output, batch, batch.score_gradients, num_pairs)
