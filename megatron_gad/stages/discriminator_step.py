"""The discriminator's turn: groups to its ranks, scores and a step there, scores back."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from megatron_gad.algorithms.discriminator import split_scores
from megatron_gad.data.balance import group_cost
from megatron_gad.data.batching import pair_batch
from megatron_gad.runtime.run import Run
from megatron_gad.stages.judging import judge, score_only
from megatron_gad.stages.skipped_steps import note_step
from megatron_gad.stages.step_metrics import num_tokens, reported
from megatron_gad.training.exchange import Moved, move
from megatron_gad.types import Group, Metrics


@dataclass(frozen=True)
class Judged:
    """What the discriminator made of groups.

    scores_PG: [P, G] float32 of the student's responses, from before any update.
    metrics: as they are reported, the same on all ranks.
    """

    scores_PG: Tensor
    metrics: Metrics


def learn_from_groups(run: Run, groups: Sequence[Group], trained_samples: int = 0) -> Judged:
    """Score every response and take one step.

    trained_samples: of a group that train; 0: all of them.
    """
    moved = _to_discriminator(run, groups)
    pairs = pair_batch(moved.items, trained_samples)
    config = run.config
    with run.turn("discriminator"):
        output = judge(
            run.discriminator,
            pairs,
            config.gad.discriminator_loss,
            config.discriminator.split_groups,
        )
    rows = [group.prompt.index for group in moved.items for _ in range(1 + pairs.group_size)]
    note_step(run, "discriminator", output, pairs, rows)
    trained = {"tokens/trained": num_tokens(run.discriminator, pairs)}
    scores_PG = _back(moved, output.rows, pairs.group_size)
    return Judged(scores_PG, reported("discriminator", output) | trained)


def score_groups(run: Run, groups: Sequence[Group], trained_samples: int = 0) -> Judged:
    """Score every response without learning.

    trained_samples: of a group that the reported loss is of; 0: all of them.
    """
    moved = _to_discriminator(run, groups)
    pairs = pair_batch(moved.items, trained_samples)
    with run.turn("score"):
        output = score_only(run.discriminator, pairs, run.config.gad.discriminator_loss)
    scores_PG = _back(moved, output.rows, pairs.group_size)
    return Judged(scores_PG, reported("discriminator", output) | {"tokens/trained": 0.0})


def totals(steps: Sequence[Judged]) -> Metrics:
    """Return what is counted over all steps that the discriminator took."""
    counted = ("tokens/trained", "discriminator/skipped_steps")
    present = [key for key in counted if any(key in step.metrics for step in steps)]
    return {key: sum(step.metrics.get(key, 0.0) for step in steps) for key in present}


def _to_discriminator(run: Run, groups: Sequence[Group]) -> Moved[Group]:
    """Share the groups out to the discriminator's data ranks, if its layout has others.

    They are shared by cost there, too: the student's data ranks may be fewer, or one, over which
    nothing is balanced.
    """
    return move(groups, group_cost, run.parallel, run.discriminator.parallel)


def _back(moved: Moved[Group], rows: Tensor, group_size: int) -> Tensor:
    """Return the scores of the student's responses on the ranks that the groups came from."""
    return split_scores(moved.back(rows), group_size)[1]
