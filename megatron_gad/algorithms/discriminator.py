"""The discriminator's losses: the teacher's response shall score above the student's.

Notation: t the score of the teacher's response to a prompt, s that of a response of the student.
A pair is a student's response that trains, together with the teacher's response to its prompt.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import softplus

from megatron_gad.algorithms.masking import masked_count, masked_sum, zero_outside
from megatron_gad.types import Loss, PairBatch, ScorerOutput

DiscriminatorKind = Literal["bradley_terry", "cross_entropy"]


def split_scores(scores: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
    """Return the scores of the teacher's responses, [P], and of the student's, [P, G].

    scores: [R] of whole groups, R = P * (1 + G), the teacher's row first in each. Works for
    anything else that has one entry per row, such as ``PairBatch.trained``.
    """
    rows = 1 + group_size
    if scores.shape[0] % rows:
        raise ValueError(
            f"{scores.shape[0]} rows are not whole groups of 1 + {group_size}; "
            "a microbatch of the discriminator has to hold whole groups"
        )
    groups = scores.reshape(-1, rows)
    return groups[:, 0], groups[:, 1:]


def bradley_terry(
    teacher_scores: Tensor, student_scores: Tensor, trained: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum over pairs of -log sigmoid(t - s), and the number of pairs.

    log 2 a pair at chance. Source: arXiv 2511.10643, the game of section 2.

    teacher_scores: [P] float32. student_scores: [P, G] float32. trained: [P, G] bool.
    """
    teacher_scores, student_scores = _paired(teacher_scores, student_scores, trained)
    losses = softplus(student_scores - teacher_scores)
    return masked_sum(losses, trained), masked_count(trained)


def cross_entropy(
    teacher_scores: Tensor, student_scores: Tensor, trained: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the sum over pairs of the binary cross-entropy, and the number of pairs.

        -(log sigmoid(t) + log(1 - sigmoid(s))) / 2         label 1 the teacher, 0 the student

    A pair contributes the mean of its two labels, so the teacher's responses weigh as much as
    the student's however large the group is, and chance is log 2 as in ``bradley_terry``. The
    teacher's term enters once per pair, as if its response stood once for every rollout.

    teacher_scores: [P] float32. student_scores: [P, G] float32. trained: [P, G] bool.
    """
    teacher_scores, student_scores = _paired(teacher_scores, student_scores, trained)
    losses = (softplus(-teacher_scores) + softplus(student_scores)) / 2
    return masked_sum(losses, trained), masked_count(trained)


def discriminator_loss(output: ScorerOutput, batch: PairBatch, kind: DiscriminatorKind) -> Loss:
    """Return the discriminator's loss over the pairs of whole groups, counted in pairs.

    Metrics, all means over pairs: loss, accuracy (share with t > s, a tie counts half), margin
    (t - s), teacher_score, student_score.
    """
    teacher_scores, student_scores = split_scores(output.scores, batch.group_size)
    _, trained = split_scores(batch.trained, batch.group_size)
    if kind == "bradley_terry":
        total, count = bradley_terry(teacher_scores, student_scores, trained)
    elif kind == "cross_entropy":
        total, count = cross_entropy(teacher_scores, student_scores, trained)
    else:
        raise _unknown_kind(kind)
    metrics = _pair_metrics(teacher_scores.detach(), student_scores.detach(), trained)
    return Loss(total, count, {"loss": (total.detach(), count), **metrics})


def score_gradients(
    scores: Tensor, batch: PairBatch, kind: DiscriminatorKind
) -> tuple[Tensor, Loss]:
    """Return d total / d score of every row, [R], and the loss of these scores.

    For groups that are too long for one microbatch: score every row first, then train with
    ``weighted_score_loss``. Rollouts that are not trained get 0.

    scores: [R] float32.
    """
    leaf = scores.detach().requires_grad_()
    loss = discriminator_loss(ScorerOutput(leaf), batch, kind)
    (gradients,) = torch.autograd.grad(loss.total, leaf)
    return gradients, loss


def weighted_score_loss(
    output: ScorerOutput,
    batch: PairBatch,
    score_gradients: Tensor,
    num_pairs: Tensor | None = None,
) -> Loss:
    """Return a loss that is linear in the scores and has the gradient of the loss it stands for.

        sum over rows of score_gradient score

    By the chain rule, its gradient in the parameters is that of ``discriminator_loss`` at the
    parameters that the score gradients were computed with. Rows no longer meet in a formula, so
    a microbatch may hold any rows of a batch, if told for how many pairs they count.

    score_gradients: [R] float32, from ``score_gradients``, of the rows of this microbatch.
    num_pairs: scalar, this microbatch's part of the pairs of the batch: the parts have to add up
        to their number. None counts the trained rollouts of a microbatch of whole groups.
    The total is not the value of the loss, so there are no metrics.
    """
    if num_pairs is None:
        _, trained = split_scores(batch.trained, batch.group_size)
        num_pairs = masked_count(trained)
    # A row without gradient may carry any score, also one that is not a number.
    weights = score_gradients.detach()
    total = (weights * zero_outside(output.scores, weights != 0)).sum()
    return Loss(total, num_pairs)


def _paired(
    teacher_scores: Tensor, student_scores: Tensor, trained: Tensor
) -> tuple[Tensor, Tensor]:
    """Return t and s of every pair, both [P, G], 0 where trained is False."""
    teacher_scores = teacher_scores[:, None].expand_as(student_scores)
    return zero_outside(teacher_scores, trained), zero_outside(student_scores, trained)


def _pair_metrics(
    teacher_scores: Tensor, student_scores: Tensor, trained: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    count = masked_count(trained)
    teacher_scores, student_scores = _paired(teacher_scores, student_scores, trained)
    margins = teacher_scores - student_scores
    wins = (margins > 0).float() + (margins == 0).float() / 2
    return {
        "accuracy": (masked_sum(wins, trained), count),
        "margin": (masked_sum(margins, trained), count),
        "teacher_score": (masked_sum(teacher_scores, trained), count),
        "student_score": (masked_sum(student_scores, trained), count),
    }


def _unknown_kind(kind: str) -> ValueError:
    return ValueError(f"discriminator_loss = {kind!r}; use 'bradley_terry' or 'cross_entropy'")
