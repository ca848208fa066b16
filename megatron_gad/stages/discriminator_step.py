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
from megatron_gad.stages.skipped_steps import note_step
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
    output: StepOutput


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
        rows = [group.prompt.index for group in moved.items for _ in range(1 + pairs.group_size)]
        note_step(run, "discriminator", output, pairs, rows)
    else:
        with run.turn("score"):
            output = discriminator.evaluate(pairs, partial(discriminator_loss, kind=kind))
    teacher_P, scores_PG = split_scores(moved.back(output.rows), pairs.group_size)
    return Judged(scores_PG, teacher_P, output)


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
    # Every pair is counted once, at its rollout, wherever rows are split.
    counted = pairs.trained.clone()
    counted[:: 1 + pairs.group_size] = False
    by_row = replace(pairs.with_score_gradients(gradients), trained=counted)
    trained = discriminator.train(by_row, _row_loss)
    sums = discriminator_loss(ScorerOutput(scores), pairs, kind).metrics
    means = discriminator.parallel.mean_over_data(
        {name: (float(total), float(count)) for name, (total, count) in sums.items()}
    )
    return replace(trained, metrics={**means, **trained.metrics}, rows=scores)


def _row_loss(output: ScorerOutput, batch: PairBatch) -> Loss:
    assert batch.score_gradients is not None
    num_pairs = batch.trained.sum().float()
    return weighted_score_loss(output, batch, batch.score_gradients, num_pairs)
